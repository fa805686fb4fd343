"""Run planned micro-batches through Megatron's pipeline schedule, forward only or with backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_rlpr.actor.attention.backend import choose_backend
from megatron_rlpr.actor.attention.core import windows_of
from megatron_rlpr.actor.attention.layout import HeadRows, TreeLayout, TreeSeqParams
from megatron_rlpr.actor.attention.rotary import Rotary, inverse_frequencies
from megatron_rlpr.actor.cpu.megatron import device
from megatron_rlpr.packing import TreeMicroBatch
from megatron_rlpr.types import TokensDone
from megatron_rlpr.weights.shape import ModelShape


class MicroBatchRunner:
    """Turns packed micro-batches into model calls.

    shape: of the model; temperature: divides the logits of every row.
    """

    def __init__(self, shape: ModelShape, dtype: torch.dtype, temperature: float, head_chunk_rows: int) -> None:
        self._frequencies = inverse_frequencies(shape)
        self._backend = choose_backend(dtype, shape.head_dim, shape.attention_softcap, device())
        self._dtype = dtype
        self._temperature = temperature
        self._head_chunk_rows = head_chunk_rows

    def forward(
        self,
        chunks: Sequence[torch.nn.Module],
        micro_batches: Sequence[TreeMicroBatch],
        progress: TokensDone | None = None,
    ) -> list[torch.Tensor]:
        """fp32 [U, 2] (log-prob, entropy of every distinct row) per micro-batch on the last stage, [] on others."""

        def keep(output: torch.Tensor, non_loss_data: bool = False) -> torch.Tensor:
            return output.detach()

        with torch.no_grad():
            options = {"forward_only": True, "collect_non_loss_data": True}
            return self._run(chunks, micro_batches, lambda _: keep, progress, **options)

    def forward_backward(
        self,
        chunks: Sequence[torch.nn.Module],
        micro_batches: Sequence[TreeMicroBatch],
        loss: Callable[[TreeMicroBatch, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
        progress: TokensDone | None = None,
    ) -> list[torch.Tensor]:
        """Accumulate gradients of sum(loss) over the micro-batches.

        loss(micro_batch, output [U, 2]) -> (scalar, statistics [S]); the statistics come back per micro-batch on the
        last stage. Megatron divides the scalar by the number of micro-batches: the callee's scalar is multiplied by it.
        """

        def loss_of(micro_batch: TreeMicroBatch) -> Any:
            def compute(output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                scalar, statistics = loss(micro_batch, output)
                return scalar * len(micro_batches), statistics.detach()

            return compute

        return self._run(chunks, micro_batches, loss_of, progress, forward_only=False)

    def _run(
        self,
        chunks: Sequence[torch.nn.Module],
        micro_batches: Sequence[TreeMicroBatch],
        loss_func_of: Callable[[TreeMicroBatch], Any],
        progress: TokensDone | None,
        **schedule: Any,
    ) -> list[torch.Tensor]:
        windows = windows_of(model)

        def step(iterator: Iterable[TreeMicroBatch], stage: torch.nn.Module) -> tuple[torch.Tensor, Any]:
            micro_batch = next(iter(iterator))
            output = stage(**self._model_inputs(micro_batch, windows))
            if progress is not None:
                progress(len(micro_batch.token_ids))
            return output, partial(loss_func_of(micro_batch))

        return get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=iter(micro_batches),
            model=list(chunks),
            num_microbatches=len(micro_batches),
            seq_length=max(len(m.token_ids) for m in micro_batches),
            micro_batch_size=1,
            **schedule,
        )

    def _model_inputs(self, micro_batch: TreeMicroBatch, windows: Iterable[int]) -> dict[str, Any]:
        where = device()
        tokens, positions, source_rows, targets = (
            torch.from_numpy(array).to(where)
            for array in (micro_batch.token_ids, micro_batch.positions, micro_batch.source_row, micro_batch.target)
        )
        rotary = Rotary.at(positions, self._frequencies, self._dtype)
        by_window = {w: self._backend.lay_out(micro_batch.nodes, self._dtype, where, w) for w in windows}
        head = HeadRows(source_rows, targets, self._temperature, self._head_chunk_rows)
        return {
            "input_ids": tokens[None],
            "position_ids": positions[None],
            "attention_mask": None,
            "packed_seq_params": TreeSeqParams(TreeLayout(self._backend, by_window, rotary), head),
        }
