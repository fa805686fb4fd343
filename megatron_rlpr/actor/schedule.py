"""Run planned micro-batches through Megatron's pipeline schedule, forward only or with backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.utils import get_model_config
from torch import Tensor
from torch.nn import Module

from megatron_rlpr.actor.attention.backend import choose_backend
from megatron_rlpr.actor.attention.context import ContextGather
from megatron_rlpr.actor.attention.core import HeadRows, TreeSeqParams, windows_of
from megatron_rlpr.actor.attention.rotary import Rotary, inverse_frequencies
from megatron_rlpr.actor.cpu.megatron import device
from megatron_rlpr.actor.fp8 import own_weight_copies
from megatron_rlpr.actor.interleaving import micro_batch_group
from megatron_rlpr.actor.to_device import to_device
from megatron_rlpr.packing import TreeMicroBatch
from megatron_rlpr.types import TokensDone
from megatron_rlpr.weights.shape import ModelShape

Chunks = Sequence[Module]
MicroBatches = Sequence[TreeMicroBatch]
Loss = Callable[[TreeMicroBatch, Tensor], tuple[Tensor, Tensor]]


class MicroBatchRunner:
    """Turns packed micro-batches into model calls.

    shape: of the model; temperature: divides the logits of every row; backend: who computes its attention.
    """

    def __init__(self, shape: ModelShape, dtype: torch.dtype, temperature: float, head_chunk_rows: int) -> None:
        self._frequencies = inverse_frequencies(shape)
        self.backend = choose_backend(
            dtype, shape.head_dim, shape.attention_softcap, any(shape.layer_windows), device()
        )
        self._dtype = dtype
        self._temperature = temperature
        self._head_chunk_rows = head_chunk_rows

    def forward(self, chunks: Chunks, micro_batches: MicroBatches, progress: TokensDone | None = None) -> list[Tensor]:
        """fp32 [U, 2] (log-prob, entropy of every distinct row) per micro-batch on the last stage, [] on others."""

        def keep(_: TreeMicroBatch, output: Tensor, non_loss_data: bool = False) -> Tensor:
            return output.detach()

        with torch.no_grad():
            return self._run(chunks, micro_batches, keep, progress, forward_only=True, collect_non_loss_data=True)

    def forward_backward(
        self, chunks: Chunks, micro_batches: MicroBatches, loss: Loss, progress: TokensDone | None = None
    ) -> list[Tensor]:
        """Accumulate gradients of sum(loss) over the micro-batches.

        loss(micro_batch, output [U, 2]) -> (scalar, statistics [S]); the statistics come back per micro-batch on the
        last stage. Megatron divides the scalar by the number of micro-batches: the callee's scalar is multiplied by it.
        """

        def scaled(micro_batch: TreeMicroBatch, output: Tensor) -> tuple[Tensor, Tensor]:
            scalar, statistics = loss(micro_batch, output)
            return scalar * len(micro_batches), statistics.detach()

        return self._run(chunks, micro_batches, scaled, progress, forward_only=False)

    def _run(
        self, chunks: Chunks, micro_batches: MicroBatches, of_output: Any, progress: TokensDone | None, **options: Any
    ) -> list[Tensor]:
        """of_output(micro_batch, output) is what Megatron calls a loss function."""
        windows, config = windows_of(chunks), get_model_config(chunks[0])
        real = sum(not micro_batch.is_filler for micro_batch in micro_batches)
        under_way: dict[int, dict[str, Any]] = {}
        """Model inputs of the micro-batches that have passed some of this rank's chunks, but not its last."""

        def step(numbered: Iterator[tuple[int, TreeMicroBatch]], chunk: Module) -> tuple[Tensor, Any]:
            number, micro_batch = next(numbered)
            inputs = under_way.pop(number, None) or self._model_inputs(micro_batch, windows)
            output = chunk(**inputs)
            if chunk is not chunks[-1]:
                under_way[number] = inputs
            elif progress is not None and not micro_batch.is_filler:
                progress(len(micro_batch.token_ids), real)
            return output, partial(of_output, micro_batch)

        if len(chunks) > 1:
            stages = config.pipeline_model_parallel_size
            config.microbatch_group_size_per_vp_stage = micro_batch_group(len(micro_batches), stages)
        with own_weight_copies(chunks):
            return get_forward_backward_func()(
                forward_step_func=step,
                data_iterator=[enumerate(micro_batches) for _ in chunks],
                model=list(chunks),
                num_microbatches=len(micro_batches),
                seq_length=max(len(m.token_ids) for m in micro_batches),
                micro_batch_size=1,
                **options,
            )

    def _model_inputs(self, micro_batch: TreeMicroBatch, windows: Iterable[int]) -> dict[str, Any]:
        where, share = device(), micro_batch.share
        tokens, positions, source_rows, targets = (
            to_device(array, where)
            for array in (micro_batch.token_ids, micro_batch.positions, micro_batch.source_row, micro_batch.target)
        )
        rotary = Rotary.at(positions, self._frequencies, self._dtype)
        forest = (micro_batch.nodes, self._dtype, where)
        visible = {w: self.backend.lay_out(*forest, w, share.tokens if share else None) for w in windows}
        context = ContextGather.of(share, parallel_state.get_context_parallel_group(), where) if share else None
        head = HeadRows(source_rows, targets, self._temperature, self._head_chunk_rows)
        return {
            "input_ids": tokens[None],
            "position_ids": positions[None],
            "attention_mask": None,
            "packed_seq_params": TreeSeqParams(
                self.backend, visible, rotary, head, micro_batch.num_tokens, micro_batch.padding, context
            ),
        }
