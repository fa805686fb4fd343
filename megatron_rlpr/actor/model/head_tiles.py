"""What the output head does with one tile of logits, forward and backward.

On a CPU by compiled loops (`cpu.loops`), which read the matrix product's result once or twice; elsewhere in tensor
operations. Sums and logits are in units of ln 2 ("bits"): exp2 is faster than exp.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_rlpr.actor.cpu import loops as cpu_loops


class LogitTiles:
    """Tiles of logits in buffers that are allocated once and reused by every tile.

    Fresh buffers of this size would be mapped and unmapped for each tile, which costs more than the arithmetic.
    size: elements of the largest tile; like: tells the compute dtype and the device; scale: turns a logit into bits.
    compiled: by loops; by default on a CPU.
    """

    def __init__(
        self, size: int, like: Tensor, softcap: float | None, scale: float, compiled: bool | None = None
    ) -> None:
        self.softcap, self.scale = softcap, scale
        self.compiled = compiled = not like.is_cuda if compiled is None else compiled
        self._products = torch.empty(size, dtype=like.dtype, device=like.device)
        stays_narrow = like.dtype == torch.float32 or (compiled and softcap is None)
        self._wide = self._products if stays_narrow else torch.empty(size, dtype=torch.float32, device=like.device)
        self._exponentials = None if compiled else torch.empty(size, dtype=torch.float32, device=like.device)

    def logits(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """hidden [r, h] @ weight [c, h]^T, soft-capped: [r, c], float32 or, where it suffices, the compute dtype."""
        shape = hidden.shape[0], weight.shape[0]
        products = torch.mm(hidden, weight.t(), out=_first(self._products, shape))
        logits = products if self._wide is self._products else _first(self._wide, shape).copy_(products)
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)

    def take_in(self, logits: Tensor, sums: Tensor) -> None:
        """Add a tile [r, c], which is overwritten, to the running sums fp32 [3, r] of RunningSums."""
        if self.compiled:
            cpu_loops.head_sums(len(logits), logits, sums, logits.shape[1], self.scale)
            return
        _raise_top(sums, logits.amax(-1) * self.scale)
        bits = torch.add(-sums[0, :, None], logits, alpha=self.scale, out=logits)
        exponentials = self._exp2(bits)
        sums[1] += exponentials.sum(-1)
        sums[2] += bits.mul_(exponentials).sum(-1)

    def gradient(self, logits: Tensor, rows: Tensor, target: Tensor) -> Tensor:
        """(factor + slope * bits) * 2**bits [r, c] in place of the logits, where bits = logits * scale - normaliser.

        rows: fp32 [4, r], normaliser, factor, slope, and what is added in the target's column before anything is
        rounded: for a likely target the two nearly cancel. target: int64 [r], -1 where it lies elsewhere.
        """
        if self.compiled:
            cpu_loops.head_gradient(len(logits), logits, rows, target, logits.shape[1], self.scale)
            return logits
        normaliser, factor, slope = rows[:3, :, None]
        bits = torch.add(-normaliser, logits, alpha=self.scale, out=logits)
        probabilities = self._exp2(bits)
        gradient = bits.mul_(slope).add_(factor).mul_(probabilities)
        here = (target >= 0).nonzero()[:, 0]
        gradient[here, target[here]] += rows[3, here]
        return gradient

    def in_compute_dtype(self, values: Tensor) -> Tensor:
        """[r, c] values, rounded; overwrites the products."""
        return values if values.dtype == self._products.dtype else _first(self._products, values.shape).copy_(values)

    def _exp2(self, bits: Tensor) -> Tensor:
        assert self._exponentials is not None
        return torch.exp2(bits, out=_first(self._exponentials, bits.shape))


def _first(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    return buffer[: shape[0] * shape[1]].view(shape)


class RunningSums:
    """What is known of every row after some of the vocabulary, fp32, in bits.

    sums [3, R]: the largest logit; the sums of 2**(logit - largest) and of 2**(logit - largest) * (logit - largest).
    target [R]: the target's logit.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.sums = torch.zeros(3, rows, device=device)
        # Not -inf: differences of two such must be 0, not nan.
        self.sums[0] = torch.finfo(torch.float32).min / 4
        self.target = torch.zeros(rows, device=device)

    def add(self, logits: Tensor, target: Tensor, tiles: LogitTiles) -> None:
        """Take in logits [R, c]; they are overwritten. target: int64 [R], -1 where it lies elsewhere."""
        found = logits.gather(1, target.clamp(min=0)[:, None])[:, 0].float() * tiles.scale
        self.target += found.where(target >= 0, 0.0)
        tiles.take_in(logits, self.sums)

    def log_prob_and_entropy(self, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
        """([R, 2] in bits, [R] log2 of the sum of 2**logit), over the shards of all ranks of the group."""
        if group is not None:
            top = self.sums[0].clone()
            dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
            _raise_top(self.sums, top)
            added = torch.stack([*self.sums[1:], self.target])
            dist.all_reduce(added, group=group)
            self.sums[1:], self.target = added[:2], added[2]
        top, total, expected = self.sums
        log_total = total.log2()
        normaliser = log_total + top
        return torch.stack([self.target - normaliser, log_total - expected / total], dim=1), normaliser


def _raise_top(sums: Tensor, top: Tensor) -> None:
    """Relate running sums [3, r] to a logit [r] that may be larger than the largest so far, in place."""
    new = torch.maximum(sums[0], top)
    drop = sums[0] - new
    factor = drop.exp2()
    sums[2] = factor * (sums[2] + drop * sums[1])
    sums[1] *= factor
    sums[0] = new
