"""Log-probability and entropy at selected rows, without ever holding their logits.

Both directions go through the vocabulary in slices, each for all rows at once. Forward keeps per row a running maximum,
sum of exponentials and expected logit; at the end the vocabulary shards of the tensor-parallel ranks put theirs
together. Backward computes the logits again: with the normalisers known, slices are independent, the weight's gradient
is written once instead of being added up, and no collective is needed. The extra memory is that of one chunk (chunk
rows x vocabulary / TP), whatever the number of rows.

With logits z already divided by the temperature, p = softmax(z), y the target and H the entropy:
    log p_y = z_y - logsumexp(z)                 d log p_y / dz = onehot(y) - p
    H       = logsumexp(z) - sum_j p_j z_j       d H / dz_j     = -p_j (z_j - logsumexp(z) + H)
Soft-capped logits (Gemma 2) are z = c tanh(x / c) / temperature of the output layer's x, so dz/dx has the factor
1 - (z temperature / c)**2.
Inside, logits and their sums are in units of ln 2 ("bits"): exp2 is several times faster than exp on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_rlpr.actor.model.head_tiles import LogitTiles, RunningSums

_BITS = 1 / math.log(2)
_ROUND_WIDTHS = (1024, 64)
"""Matrix products of other widths run at three quarters of the rate on a CPU with AMX."""


@dataclass(frozen=True)
class VocabShard:
    """The slice of the vocabulary this rank's output weight holds.

    first: token id of the shard's first row; valid_rows: rows before the padding of the vocabulary;
    group: tensor-parallel group, None for a whole vocabulary.
    """

    first: int
    valid_rows: int
    group: dist.ProcessGroup | None = None


Constants = tuple[VocabShard, float, int, float | None]
"""Shard, temperature, chunk_rows, softcap."""


class _SelectedHead(torch.autograd.Function):
    """hidden [R, h], weight [V/TP, h], targets int64 [R] -> fp32 [R, 2]: log-prob and entropy."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, constants: Constants) -> Tensor:
        shard, temperature, chunk_rows, softcap = ctx.constants = constants
        sums, target = RunningSums(len(hidden), hidden.device), targets - shard.first
        width = _slice_width(len(hidden), shard.valid_rows, chunk_rows)
        tiles = LogitTiles(len(hidden) * width, hidden, softcap, _BITS / temperature)
        for columns, here in _slices(target, shard.valid_rows, width):
            sums.add(tiles.logits(hidden, weight[columns]), here, tiles)
        out, normaliser = sums.log_prob_and_entropy(shard.group)
        out /= _BITS
        ctx.save_for_backward(hidden, weight, target, out, normaliser)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, target, out, normaliser = ctx.saved_tensors
        shard, temperature, chunk_rows, softcap = ctx.constants
        grad_log_prob, grad_entropy = (grad / temperature).unbind(1)
        # dz = grad_log_prob * onehot - p * (factor + slope * bits), where bits = (z - logsumexp) / ln 2
        factor = -(grad_log_prob + grad_entropy * out[:, 1])
        of_rows = torch.stack([normaliser, factor, -grad_entropy / _BITS, grad_log_prob])
        grad_hidden = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
        grad_weight = torch.empty_like(weight)
        grad_weight[shard.valid_rows :] = 0
        width = _slice_width(len(hidden), shard.valid_rows, chunk_rows)
        tiles = LogitTiles(len(hidden) * width, hidden, softcap, _BITS / temperature)
        for columns, here in _slices(target, shard.valid_rows, width):
            logits = tiles.logits(hidden, weight[columns])
            derivative = None if softcap is None else 1 - (logits / softcap).square_()
            grad_logits = tiles.gradient(logits, of_rows, here)
            if derivative is not None:
                grad_logits.mul_(derivative)
            rounded = tiles.in_compute_dtype(grad_logits)
            torch.mm(rounded.t(), hidden, out=grad_weight[columns])
            if hidden.dtype == torch.float32:
                grad_hidden.addmm_(rounded, weight[columns])
            else:
                grad_hidden += torch.mm(rounded, weight[columns])
        return grad_hidden.to(hidden.dtype), grad_weight, None, None


def _slice_width(num_rows: int, num_columns: int, chunk_rows: int) -> int:
    """Columns whose logits for all rows fill one chunk's memory: at least one, a round number where they suffice."""
    width = chunk_rows * num_columns // max(num_rows, 1)
    width -= width % next((multiple for multiple in _ROUND_WIDTHS if width > multiple), 1)
    return max(1, min(width, num_columns))


def _slices(target: Tensor, num_columns: int, width: int) -> Iterator[tuple[slice, Tensor]]:
    """The columns, `width` at a time, and which of them is each row's target: int64 [R], -1 where it lies elsewhere."""
    for start in range(0, num_columns, width):
        stop = min(start + width, num_columns)
        yield slice(start, stop), (target - start).where((target >= start) & (target < stop), -1)


def selected_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    shard: VocabShard,
    temperature: float,
    chunk_rows: int,
    softcap: float | None = None,
) -> Tensor:
    """Log-prob of the target and entropy at every row, fp32 [R, 2], differentiable in hidden and weight.

    hidden: [R, h] (the same on every tensor-parallel rank); weight: this rank's [V/TP, h] output weight;
    targets: int64 [R] global token ids. The gradient of hidden is this rank's part: the caller sums it over the
    tensor-parallel group (Megatron's copy/gather regions do). softcap: of the logits, before the temperature.
    """
    if hidden.dim() != 2 or hidden.shape[1] != weight.shape[1] or targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} and targets {tuple(targets.shape)} do not fit"
        )
    return _SelectedHead.apply(hidden, weight, targets, (shard, temperature, chunk_rows, softcap))
