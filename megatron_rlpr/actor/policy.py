"""The actor: scores token sequences and trains on them, whatever the layout.

Every rank calls `score` and `update` with the same arguments. The sequences are packed into prefix trees, split over
the data-parallel ranks (and their tokens over the context-parallel ones) and run through Megatron's pipeline schedule;
results come back identical on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from megatron_rlpr.actor import fp8
from megatron_rlpr.actor.costs import cost_model
from megatron_rlpr.actor.cpu.megatron import device
from megatron_rlpr.actor.delayed_scaling import CALIBRATION_PASSES, uncalibrated
from megatron_rlpr.actor.memory import ActorMemory
from megatron_rlpr.actor.model.tree_policy import build_chunks
from megatron_rlpr.actor.optimizer import (
    apply_gradients,
    in_their_precision,
    masters_from_weights,
    set_learning_rate,
    weights_from_masters,
    wrap_for_training,
)
from megatron_rlpr.actor.parallel import Layout
from megatron_rlpr.actor.policy_gradient import STATISTICS, LossTerms, RowValues, policy_gradient
from megatron_rlpr.actor.schedule import MicroBatchRunner
from megatron_rlpr.actor.to_device import to_device
from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.packing import Plan, TreeMicroBatch, plan, share_of
from megatron_rlpr.system.clock import Clock
from megatron_rlpr.system.decisions import gather_or_raise
from megatron_rlpr.system.dtypes import DTYPES, all_finite
from megatron_rlpr.types import ScoreRequest, TokenScores, TokensDone, TrainSequence, UpdateResult, UserError
from megatron_rlpr.weights.local_parameters import in_bf16, take_unrounded
from megatron_rlpr.weights.shape import ModelShape


class MegatronPolicy:
    """The policy model of this rank, its optimizer, and the two things a trainer asks of it.

    temperature divides all logits, in scoring and in training, as it did in sampling.
    With `trainable=False` there is no optimizer (a reference policy).
    """

    def __init__(
        self,
        shape: ModelShape,
        actor: ActorConfig,
        layout: Layout,
        temperature: float,
        trainable: bool = True,
        clock: Clock | None = None,
    ) -> None:
        """clock: is told when memory moves (actor.offload)."""
        self.layout = layout
        self._config = actor = fp8.resolved(actor)
        self._costs = cost_model(shape)
        self._vocab_size = shape.vocab_size
        with torch.set_grad_enabled(trainable):  # weights in FP8 are made for backward, too, or not
            self.chunks = build_chunks(shape, actor)
        """This rank's parts of the model, in the order data flows through them."""
        for chunk in self.chunks:
            chunk.requires_grad_(trainable)
        self._runner = MicroBatchRunner(shape, DTYPES[actor.dtype], temperature, actor.head_chunk_rows)
        self._callables: Sequence[torch.nn.Module]
        self.optimizer = None
        if trainable:
            self._callables, self.optimizer = wrap_for_training(self.chunks, actor)
        else:
            self._callables = in_their_precision(self.chunks)
        self.memory = ActorMemory(actor.offload, self.chunks, self._callables, self.optimizer, clock or Clock())
        """What of it is on the device. Every method brings back what it needs."""

    def weights_changed(self) -> None:
        """Call after loading weights into `chunks`: the optimizer's fp32 copies follow."""
        self.memory.restore()
        if self.optimizer is not None:
            masters_from_weights(self.optimizer, self.chunks)
        for chunk in self.chunks:
            for weight in chunk.parameters():
                take_unrounded(weight)

    def masters_changed(self) -> None:
        """Call after loading the optimizer: the weights follow its fp32 ones. Collective."""
        self.memory.restore()
        if self.optimizer is not None:
            weights_from_masters(self.optimizer)

    def check_weights(self, fault: str) -> None:
        """Raise UserError on every rank when a weight of any is NaN or infinite; it begins with fault. Collective."""
        self.memory.restore_weights()

        def check_mine() -> None:
            for chunk in self.chunks:
                for name, weight in chunk.named_parameters():
                    if not all_finite(in_bf16(weight)):
                        raise UserError(f"{fault}: {name} holds NaN or infinite weights")

        gather_or_raise(check_mine, dist.group.WORLD, "looking at the weights")

    def score(self, requests: Sequence[ScoreRequest], progress: TokensDone | None = None) -> list[TokenScores]:
        """Log-probs and entropies of the wanted tokens of every request, in request order, on every rank.

        progress is called for each micro-batch this rank has computed. Raises UserError for a token id that the model
        does not have.
        """
        if not requests:
            return []
        self.memory.restore_weights()
        for chunk in self._callables:
            chunk.eval()
        packed = self._pack(requests)
        self._check_token_ids(packed)
        mine = self._mine(packed)
        with fp8.scoring(self._callables, self._config):
            outputs = self._runner.forward(self._callables, mine, progress)
        first = _first_index(requests)
        flat = torch.zeros(int(first[-1]), 2, dtype=torch.float32, device=device())
        if self.layout.reports_outputs:
            for micro_batch, output in zip(mine, outputs, strict=True):
                flat[_flat_index(micro_batch, first)] = output[to_device(micro_batch.row_of_want, output.device)]
        dist.all_reduce(flat)
        values = flat.cpu().numpy()
        return [TokenScores(values[a:b, 0].copy(), values[a:b, 1].copy()) for a, b in pairwise(first)]

    def update(
        self,
        sequences: Sequence[TrainSequence],
        sequence_weights: Sequence[float],
        terms: LossTerms,
        lr: float,
        progress: TokensDone | None = None,
    ) -> UpdateResult:
        """One optimizer step on a mini-batch.

        sequence_weights: weight of every token of a sequence in the loss (global normalisation, so micro-batches and
        layouts do not change the sum). lr: learning rate of this step.
        """
        if self.optimizer is None:
            raise ValueError("this policy was built without an optimizer")
        requests = [ScoreRequest(s.token_ids, s.start, s.stop) for s in sequences]
        first = _first_index(requests)
        values = RowValues.of(sequences, sequence_weights).to(device())
        packed = self._pack(requests)
        mine = self._mine(packed)

        def loss(micro_batch: TreeMicroBatch, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            wanted = to_device(micro_batch.row_of_want, output.device)
            rows = F.embedding(wanted, output)  # whose gradient adds in one order on a GPU, too
            scalar, statistics = policy_gradient(rows, values.select(_flat_index(micro_batch, first)), terms)
            # Megatron averages gradients over data-parallel ranks; the weights are global already. It averages over
            # context-parallel ranks, too, and multiplies the loss by their number.
            return scalar * self.layout.data_size, statistics

        for chunk in self._callables:
            chunk.train()
        self.memory.restore(wait=False)
        set_learning_rate(self.optimizer, lr)
        for _ in range(CALIBRATION_PASSES if uncalibrated(self.chunks) else 0):
            self._without_gradients()
            self._runner.forward_backward(self._callables, mine, loss)
        self._without_gradients()
        statistics = self._runner.forward_backward(self._callables, mine, loss, progress)
        self.memory.arrived()
        grad_norm = apply_gradients(self.optimizer)
        total = torch.zeros(len(STATISTICS), dtype=torch.float64)
        if self.layout.reports_outputs:
            total += torch.stack(statistics).double().sum(0).cpu()
        total = total.to(device())
        dist.all_reduce(total)
        named = dict(zip(STATISTICS, total.tolist(), strict=True))
        tokens = int(first[-1])
        return UpdateResult(
            loss=named["loss"],
            entropy=named["entropy"] / max(tokens, 1),
            clip_fraction=named["clipped"] / max(tokens, 1),
            kl_to_old=named["kl_to_old"] / max(tokens, 1),
            grad_norm=grad_norm,
            trained_tokens=tokens,
            computed_tokens=packed.num_tokens,
            sequence_tokens=sum(s.stop - 1 for s in sequences),
        )

    def _without_gradients(self) -> None:
        assert self.optimizer is not None
        for chunk in self._callables:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()

    def _check_token_ids(self, packed: Plan) -> None:
        """Raise UserError for a token that the model does not have: its numbers would be made up. All that is trained
        on has been scored before."""
        for tokens in chain.from_iterable(run.tokens for runs in packed.runs for run in runs):
            for token_id in (int(tokens.min()), int(tokens.max())):
                if not 0 <= token_id < self._vocab_size:
                    known = f"the model has {self._vocab_size} tokens: use its own tokenizer"
                    raise UserError(f"a sequence holds token id {token_id}, but {known}")

    def _mine(self, packed: Plan) -> list[TreeMicroBatch]:
        """This rank's part of the micro-batches that its data-parallel rank computes."""
        rank, ranks = self.layout.context_rank, self.layout.context_size
        return [share_of(micro_batch, rank, ranks) for micro_batch in packed.for_rank(self.layout.data_rank)]

    def _pack(self, requests: Sequence[ScoreRequest]) -> Plan:
        return plan(
            requests,
            max_tokens=self._config.max_tokens_per_micro_batch,
            data_parallel_size=self.layout.data_size,
            share_prefixes=self._config.share_prefixes,
            cost_model=self._costs,
            sequence_multiple=fp8.sequence_multiple(self._config),
            min_micro_batches=self.layout.pipeline_size if len(self.chunks) > 1 else 1,
        )


def _first_index(requests: Sequence[ScoreRequest]) -> np.ndarray:
    """Where each request's wanted rows start in the flat order of all of them; one more entry for the end."""
    return np.concatenate([[0], np.cumsum([r.stop - r.start for r in requests])]).astype(np.int64)


def _flat_index(micro_batch: TreeMicroBatch, first: np.ndarray) -> torch.Tensor:
    """Flat index of every want of a micro-batch: int64 [W]."""
    return to_device(first[micro_batch.want_request] + micro_batch.want_offset, device())
