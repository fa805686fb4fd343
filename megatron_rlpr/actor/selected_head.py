"""Log-probability and entropy at selected rows, without ever holding their logits.

The output layer is applied to chunks of rows; per chunk the vocabulary shards of the tensor-parallel ranks agree on
maximum, sum of exponentials, target logit and expected logit. Backward computes the chunk's logits again. Extra memory
is one chunk of fp32 logits (chunk rows x vocabulary / TP), whatever the number of rows.

With logits z already divided by the temperature, p = softmax(z), y the target and H the entropy:
    log p_y = z_y - logsumexp(z)                 d log p_y / dz = onehot(y) - p
    H       = logsumexp(z) - sum_j p_j z_j       d H / dz_j     = -p_j (z_j - logsumexp(z) + H)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


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
    """Two fp32 buffers [chunk rows, V/TP], allocated once and reused by every chunk.

    Fresh buffers of this size would be mapped and unmapped for each chunk, which costs more than the arithmetic.
    """

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, chunk_rows: int) -> None:
        rows = min(chunk_rows, max(hidden.shape[0], 1))
        self.shifted = torch.empty(rows, weight.shape[0], dtype=torch.float32, device=hidden.device)
        self.exponentials = torch.empty_like(self.shifted)


@dataclass
class _Chunk:
    """One chunk's distribution: exponentials [r, V/TP] relative to the row maximum, and the whole vocabulary's sums."""

    shifted: torch.Tensor
    exponentials: torch.Tensor
    total: torch.Tensor
    target_column: torch.Tensor
    target_is_here: torch.Tensor


def _reduce(x: torch.Tensor, shard: VocabShard, op: Any) -> torch.Tensor:
    if shard.group is not None:
        dist.all_reduce(x, op=op, group=shard.group)
    return x


def _distribution(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, shard: VocabShard, temperature: float, workspace: _Workspace
) -> _Chunk:
    logits = workspace.shifted[: hidden.shape[0]].copy_(torch.mm(hidden, weight.t()))
    if temperature != 1.0:
        logits.div_(temperature)
    if shard.valid_rows < weight.shape[0]:
        logits[:, shard.valid_rows :] = -torch.inf
    top = _reduce(logits.amax(-1, keepdim=True), shard, dist.ReduceOp.MAX)
    shifted = logits.sub_(top)
    exponentials = torch.exp(shifted, out=workspace.exponentials[: hidden.shape[0]])
    total = _reduce(exponentials.sum(-1), shard, dist.ReduceOp.SUM)
    column = targets - shard.first
    here = (column >= 0) & (column < shard.valid_rows)
    return _Chunk(shifted, exponentials, total, column.clamp(0, weight.shape[0] - 1), here)


def _expected_logit(chunk: _Chunk, shard: VocabShard) -> torch.Tensor:
    """sum_j p_j (z_j - max) per row; the padding's -inf has probability 0 and must not make it NaN."""
    valid = slice(0, shard.valid_rows)
    weighted = torch.bmm(chunk.exponentials[:, None, valid], chunk.shifted[:, valid, None]).flatten()
    return _reduce(weighted, shard, dist.ReduceOp.SUM) / chunk.total


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
    ) -> torch.Tensor:
        out = torch.empty(hidden.shape[0], 2, dtype=torch.float32, device=hidden.device)
        workspace = _Workspace(hidden, weight, chunk_rows)
        for rows in _chunks(hidden.shape[0], chunk_rows):
            chunk = _distribution(hidden[rows], weight, targets[rows], shard, temperature, workspace)
            target_logit = chunk.shifted.gather(1, chunk.target_column[:, None])[:, 0].where(chunk.target_is_here, 0.0)
            log_total = chunk.total.log()
            out[rows, 0] = _reduce(target_logit, shard, dist.ReduceOp.SUM) - log_total
            out[rows, 1] = log_total - _expected_logit(chunk, shard)
        ctx.save_for_backward(hidden, weight, targets, out)
        ctx.constants = (shard, temperature, chunk_rows)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, targets, out = ctx.saved_tensors
        shard, temperature, chunk_rows = ctx.constants
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        workspace = _Workspace(hidden, weight, chunk_rows)
        for rows in _chunks(hidden.shape[0], chunk_rows):
            chunk = _distribution(hidden[rows], weight, targets[rows], shard, temperature, workspace)
            grad_log_prob, grad_entropy = grad[rows, 0], grad[rows, 1]
            log_total = chunk.total.log()
            # dz = grad_log_prob * (onehot - p) - grad_entropy * p * (z - logsumexp + H)
            #    = grad_log_prob * onehot - p * (grad_log_prob + grad_entropy * (z - logsumexp + H))
            factor = grad_log_prob + grad_entropy * (out[rows, 1] - log_total)
            if shard.valid_rows < weight.shape[0]:
                chunk.shifted[:, shard.valid_rows :] = 0.0
            grad_logits = chunk.shifted.mul_(grad_entropy[:, None]).add_(factor[:, None])
            grad_logits.mul_(chunk.exponentials).div_(-chunk.total[:, None])
            here = grad_log_prob.where(chunk.target_is_here, 0.0)
            grad_logits.scatter_add_(1, chunk.target_column[:, None], here[:, None])
            if temperature != 1.0:
                grad_logits.div_(temperature)
            grad_logits = grad_logits.to(hidden.dtype)
            torch.mm(grad_logits, weight, out=grad_hidden[rows])
            grad_weight += torch.mm(grad_logits.t(), hidden[rows])
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None, None


def _chunks(num_rows: int, chunk_rows: int) -> list[slice]:
    return [slice(start, min(start + chunk_rows, num_rows)) for start in range(0, num_rows, chunk_rows)]


def selected_log_probs(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, shard: VocabShard, temperature: float, chunk_rows: int
) -> torch.Tensor:
    """Log-prob of the target and entropy at every row, fp32 [R, 2], differentiable in hidden and weight.

    hidden: [R, h] (the same on every tensor-parallel rank); weight: this rank's [V/TP, h] output weight;
    targets: int64 [R] global token ids. The gradient of hidden is this rank's part: the caller sums it over the
    tensor-parallel group (Megatron's copy/gather regions do).
    """
    if hidden.dim() != 2 or hidden.shape[1] != weight.shape[1] or targets.shape != hidden.shape[:1]:
        raise ValueError(f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} and targets {tuple(targets.shape)} do not fit")
    return _SelectedHead.apply(hidden, weight, targets, shard, temperature, chunk_rows)
