"""Log-probability and entropy at selected rows, without ever holding their logits.

Forward goes through tiles, some rows by a slice of the vocabulary, and keeps per row a running maximum, sum of exponentials
and expected logit; at the end the vocabulary shards of the tensor-parallel ranks put theirs together. Backward computes the
logits again, a slice of the vocabulary for all rows at once: with the normalisers known, slices are independent, the weight's
gradient is written once instead of being added up over tiles, and no collective is needed. Either way the extra memory is at
most that of one chunk (chunk rows x vocabulary / TP), whatever the number of rows. On a CPU a tile is much smaller: it stays
in the cache between its passes.

With logits z already divided by the temperature, p = softmax(z), y the target and H the entropy:
    log p_y = z_y - logsumexp(z)                 d log p_y / dz = onehot(y) - p
    H       = logsumexp(z) - sum_j p_j z_j       d H / dz_j     = -p_j (z_j - logsumexp(z) + H)
Soft-capped logits (Gemma 2) are z = c tanh(x / c) / temperature of the output layer's x, so dz/dx has the factor
1 - (z temperature / c)**2.
Inside, logits and their sums are in units of ln 2 ("bits"): exp2 is several times faster than exp on a CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

_BITS = 1 / math.log(2)
_COLUMNS_MULTIPLE = 64
_CPU_TILE_ROWS, _CPU_TILE_COLUMNS = 4096, 1024


@dataclass(frozen=True)
class VocabShard:
    """The slice of the vocabulary this rank's output weight holds.

    first: token id of the shard's first row; valid_rows: rows before the padding of the vocabulary;
    group: tensor-parallel group, None for a whole vocabulary.
    """

    first: int
    valid_rows: int
    group: dist.ProcessGroup | None = None


class _Workspace:
    """Buffers of `size` elements, allocated once and reused by every chunk: two fp32, one in the compute dtype.

    Fresh buffers of this size would be mapped and unmapped for each chunk, which costs more than the arithmetic.
    """

    def __init__(self, size: int, like: torch.Tensor) -> None:
        self._single = like.dtype == torch.float32
        self._floats = torch.empty(2, size, dtype=torch.float32, device=like.device)
        self._products = self._floats[0] if self._single else torch.empty(size, dtype=like.dtype, device=like.device)

    def logits(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """hidden [r, h] @ weight [c, h]^T as fp32 [r, c]."""
        products = torch.mm(hidden, weight.t(), out=self._shaped(self._products, hidden, weight))
        return products if self._single else self._shaped(self._floats[0], hidden, weight).copy_(products)

    def exp2(self, bits: torch.Tensor) -> torch.Tensor:
        """2 ** bits [r, c], beside them."""
        return torch.exp2(bits, out=self._floats[1, : bits.numel()].view(bits.shape))

    def in_compute_dtype(self, values: torch.Tensor) -> torch.Tensor:
        """fp32 [r, c] values, rounded; overwrites the products."""
        return values if self._single else self._products[: values.numel()].view(values.shape).copy_(values)

    @staticmethod
    def _shaped(buffer: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        rows, columns = hidden.shape[0], weight.shape[0]
        return buffer[: rows * columns].view(rows, columns)


def _reduce(x: torch.Tensor, shard: VocabShard, op: Any) -> torch.Tensor:
    if shard.group is not None:
        dist.all_reduce(x, op=op, group=shard.group)
    return x


class _RunningSums:
    """What is known of every row after some of the vocabulary, fp32 [R, 1] each, in bits.

    top: largest logit; total: sum of 2**(logit - top); expected: sum of 2**(logit - top) * (logit - top); target: its logit.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        # Not -inf: differences of two such must be 0, not nan.
        self.top = torch.full((rows, 1), torch.finfo(torch.float32).min / 4, device=device)
        self.total, self.expected, self.target = torch.zeros(3, rows, 1, device=device)

    def add(
        self, rows: slice, logits: torch.Tensor, column: torch.Tensor, inside: torch.Tensor, scale: float, workspace: _Workspace
    ) -> None:
        """Take one tile in: logits fp32 [r, c], overwritten; times scale they are bits. column, inside: [r], where the target lies."""
        self.target[rows] += (logits.gather(1, column[:, None]) * scale).where(inside[:, None], 0.0)
        self._raise_top(rows, logits.amax(-1, keepdim=True) * scale)
        bits = torch.add(-self.top[rows], logits, alpha=scale, out=logits)
        exponentials = workspace.exp2(bits)
        self.total[rows] += exponentials.sum(-1, keepdim=True)
        self.expected[rows] += bits.mul_(exponentials).sum(-1, keepdim=True)

    def log_prob_and_entropy(self, shard: VocabShard) -> tuple[torch.Tensor, torch.Tensor]:
        """([R, 2] in bits, [R] log2 of the sum of 2**logit), over all shards."""
        everything = slice(0, len(self.top))
        self._raise_top(everything, _reduce(self.top.clone(), shard, dist.ReduceOp.MAX))
        self.total, self.expected, self.target = _reduce(torch.stack([self.total, self.expected, self.target]), shard, dist.ReduceOp.SUM)
        log_total = self.total.log2()
        normaliser = log_total + self.top
        return torch.cat([self.target - normaliser, log_total - self.expected / self.total], dim=1), normaliser[:, 0]

    def _raise_top(self, rows: slice, top: torch.Tensor) -> None:
        new = torch.maximum(self.top[rows], top)
        drop = self.top[rows] - new
        factor = drop.exp2()
        self.expected[rows] = factor * (self.expected[rows] + drop * self.total[rows])
        self.total[rows] *= factor
        self.top[rows] = new


def _tile(hidden: torch.Tensor, columns: int, chunk_rows: int) -> tuple[int, int]:
    """(rows, columns) of a tile of forward: a chunk of whole rows, on a CPU not more than its cache holds."""
    if hidden.is_cuda:
        return chunk_rows, max(columns, 1)
    width = max(1, min(columns, _CPU_TILE_COLUMNS))
    return max(1, min(_CPU_TILE_ROWS, chunk_rows * columns // width)), width


def _capped(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """Soft-capped logits, in place."""
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


class _SelectedHead(torch.autograd.Function):
    """hidden [R, h], weight [V/TP, h], targets int64 [R] -> fp32 [R, 2]: log-prob and entropy."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        shard: VocabShard,
        temperature: float,
        chunk_rows: int,
        softcap: float | None,
    ) -> torch.Tensor:
        real = weight[: shard.valid_rows]
        column = targets - shard.first
        here = (column >= 0) & (column < shard.valid_rows)
        column = column.clamp(0, max(shard.valid_rows - 1, 0))
        sums = _RunningSums(hidden.shape[0], hidden.device)
        height, width = _tile(hidden, shard.valid_rows, chunk_rows)
        workspace = _Workspace(min(height, hidden.shape[0]) * width, hidden)
        for first in range(0, shard.valid_rows, width):
            part = real[first : first + width]
            for start in range(0, hidden.shape[0], height):
                rows = slice(start, start + height)
                logits = _capped(workspace.logits(hidden[rows], part), softcap)
                inside = here[rows] & (column[rows] >= first) & (column[rows] < first + len(part))
                sums.add(rows, logits, (column[rows] - first).clamp(0, len(part) - 1), inside, _BITS / temperature, workspace)
        out, normaliser = sums.log_prob_and_entropy(shard)
        out /= _BITS
        ctx.save_for_backward(hidden, weight, column, here, out, normaliser)
        ctx.constants = (shard, temperature, chunk_rows, softcap)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, column, here, out, normaliser = ctx.saved_tensors
        shard, temperature, chunk_rows, softcap = ctx.constants
        num_rows = hidden.shape[0]
        scale = _BITS / temperature
        grad_log_prob, grad_entropy = (grad / temperature).unbind(1)
        # dz = grad_log_prob * onehot - p * (factor + slope * bits), where bits = (z - logsumexp) / ln 2
        factor = -(grad_log_prob + grad_entropy * out[:, 1])[:, None]
        slope = -grad_entropy[:, None] / _BITS
        has_entropy = bool(grad_entropy.any())
        grad_hidden = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
        grad_weight = torch.empty_like(weight)
        grad_weight[shard.valid_rows :] = 0
        width = _slice_width(num_rows, shard.valid_rows, chunk_rows)
        workspace = _Workspace(num_rows * width, hidden)
        for start in range(0, shard.valid_rows, width):
            columns = slice(start, min(start + width, shard.valid_rows))
            logits = _capped(workspace.logits(hidden, weight[columns]), softcap)
            derivative = None if softcap is None else 1 - (logits / softcap).square_()
            bits = torch.add(-normaliser[:, None], logits, alpha=scale, out=logits)
            probabilities = workspace.exp2(bits)
            grad_logits = bits.mul_(slope).add_(factor).mul_(probabilities) if has_entropy else probabilities.mul_(factor)
            rows = (here & (column >= columns.start) & (column < columns.stop)).nonzero()[:, 0]
            grad_logits[rows, column[rows] - columns.start] += grad_log_prob[rows]
            if derivative is not None:
                grad_logits.mul_(derivative)
            rounded = workspace.in_compute_dtype(grad_logits)
            torch.mm(rounded.t(), hidden, out=grad_weight[columns])
            if hidden.dtype == torch.float32:
                grad_hidden.addmm_(rounded, weight[columns])
            else:
                grad_hidden += torch.mm(rounded, weight[columns])
        return grad_hidden.to(hidden.dtype), grad_weight, None, None, None, None, None


def _slice_width(num_rows: int, num_columns: int, chunk_rows: int) -> int:
    """Columns whose logits for all rows fill one chunk's memory: at least one, a round number where there are enough."""
    width = chunk_rows * num_columns // max(num_rows, 1)
    if width > _COLUMNS_MULTIPLE:
        width -= width % _COLUMNS_MULTIPLE
    return max(1, min(width, num_columns))


def selected_log_probs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    shard: VocabShard,
    temperature: float,
    chunk_rows: int,
    softcap: float | None = None,
) -> torch.Tensor:
    """Log-prob of the target and entropy at every row, fp32 [R, 2], differentiable in hidden and weight.

    hidden: [R, h] (the same on every tensor-parallel rank); weight: this rank's [V/TP, h] output weight;
    targets: int64 [R] global token ids. The gradient of hidden is this rank's part: the caller sums it over the
    tensor-parallel group (Megatron's copy/gather regions do). softcap: of the logits, before the temperature.
    """
    if hidden.dim() != 2 or hidden.shape[1] != weight.shape[1] or targets.shape != hidden.shape[:1]:
        raise ValueError(f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} and targets {tuple(targets.shape)} do not fit")
    return _SelectedHead.apply(hidden, weight, targets, shard, temperature, chunk_rows, softcap)
