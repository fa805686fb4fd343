"""Run planned micro-batches through Megatron's pipeline schedule, forward only or with backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_rlpr.actor.attention.block_layout import attention_runs
from megatron_rlpr.actor.attention.flash_attention import flash_applies
from megatron_rlpr.actor.attention.flash_layout import path_segments
from megatron_rlpr.actor.attention.layout import HeadRows, TreeLayout, TreeSeqParams, Visible
from megatron_rlpr.actor.attention.paged_attention import paged_attention_applies
from megatron_rlpr.actor.attention.paged_layout import paged_paths
from megatron_rlpr.actor.attention.rotary import cos_sin, inverse_frequencies
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
        self._windows = frozenset(shape.window(layer) for layer in range(shape.num_layers))
        self._flash = flash_applies(dtype, shape.head_dim, shape.attention_softcap)
        self._paged = paged_attention_applies(dtype, shape.head_dim)
        self._dtype = dtype
        self._temperature = temperature
        self._head_chunk_rows = head_chunk_rows

    def forward(
        self,
        chunks: Sequence[torch.nn.Module],
        micro_batches: Sequence[TreeMicroBatch],
        progress: TokensDone | None = None,
    ) -> list[torch.Tensor]:
        """fp32 [U, 2] (log-prob, entropy of every distinct row) per micro-batch on the last stage; [] on other
        stages."""

        def keep(output: torch.Tensor, non_loss_data: bool = False) -> torch.Tensor:
            return output.detach()

        with torch.no_grad():
            return self._run(
                chunks, micro_batches, lambda _: keep, progress, forward_only=True, collect_non_loss_data=True
            )

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
        def step(iterator: Iterable[TreeMicroBatch], stage: torch.nn.Module) -> tuple[torch.Tensor, Any]:
            micro_batch = next(iter(iterator))
            output = stage(**self._model_inputs(micro_batch))
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

    def _model_inputs(self, micro_batch: TreeMicroBatch) -> dict[str, Any]:
        where = device()
        positions = torch.from_numpy(micro_batch.positions).to(where)
        cos, sin = cos_sin(positions, self._frequencies, self._dtype)
        head = HeadRows(
            torch.from_numpy(micro_batch.source_row).to(where),
            torch.from_numpy(micro_batch.target).to(where),
            self._temperature,
            self._head_chunk_rows,
        )
        return {
            "input_ids": torch.from_numpy(micro_batch.token_ids).to(where)[None],
            "position_ids": positions[None],
            "attention_mask": None,
            "packed_seq_params": TreeSeqParams(
                TreeLayout({w: self._visible(micro_batch, w) for w in self._windows}, cos, sin), head
            ),
        }

    def _visible(self, micro_batch: TreeMicroBatch, window: int) -> Visible:
        nodes = (micro_batch.node_start, micro_batch.node_stop, micro_batch.node_parent)
        if self._flash:
            return path_segments(*nodes, device(), window)
        if self._paged:
            return paged_paths(*nodes, micro_batch.node_subtree_stop, self._dtype, window)
        return attention_runs(*nodes, micro_batch.node_subtree_stop, self._dtype, device(), window=window)
