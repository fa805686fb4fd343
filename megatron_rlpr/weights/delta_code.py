"""What separates two versions of a tensor, as bytes: which values differ, and their new bits. Exact for every dtype.

    number of values that differ, int64 │ their new bits │ the gaps between them, a byte each

A gap is how many equal values lie before the next one that differs; the byte 255 stands for 255 equal ones after which
the gap goes on. bf16 weights after a step (0.2 to 4% differ) take three bytes for each that does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from megatron_rlpr.weights.receiver import WeightHandoverError

_ESCAPE = 255
_HEADER = 8
_WORTHWHILE = 0.5
"""Of the tensor's bytes: a longer code is not, since it takes time at both ends."""
_BLOCK = 2**24
"""Values that are compared at once: positions are 8 bytes each."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Difference(NamedTuple):
    """code: uint8 [bytes] on the device of the newer version, or None when it is not worthwhile. changed: how many
    values differ."""

    code: torch.Tensor | None
    changed: int


def difference(before: torch.Tensor, after: torch.Tensor, block: int = _BLOCK) -> Difference:
    """What turns one version of a tensor into another of the same dtype and shape, on any devices; both contiguous."""
    old, new = _bits(before), _bits(after)
    values, gaps = [], []
    last, changed, nbytes = -1, 0, _HEADER
    for start in range(0, len(new), block):
        part = new[start : start + block]
        differs = old[start : start + block].to(part.device) != part
        if nbytes > after.nbytes * _WORTHWHILE:
            changed += int(differs.sum())
            continue
        at = differs.nonzero()[:, 0]
        if not len(at):
            continue
        gaps.append(_as_bytes(torch.diff(at, prepend=at.new_tensor([last - start])) - 1))
        values.append(part[at].view(torch.uint8))
        last, changed = start + int(at[-1]), changed + len(at)
        nbytes += len(values[-1]) + len(gaps[-1])
    if nbytes > after.nbytes * _WORTHWHILE:
        return Difference(None, changed)
    header = torch.tensor([changed]).view(torch.uint8).to(new.device)
    return Difference(torch.cat([header, *values, *gaps]), changed)


def apply_difference(tensor: torch.Tensor, code: torch.Tensor, block: int = _BLOCK) -> None:
    """Turn the older version into the newer, in place; tensor: contiguous. code: uint8 [bytes] on its device.

    WeightHandoverError for a code that is damaged or of another tensor; the tensor is of no use then.
    """
    bits = _bits(tensor)
    changed = int(code[:_HEADER].view(torch.int64)) if len(code) >= _HEADER else -1
    end = _HEADER + changed * tensor.itemsize
    if not 0 <= changed <= len(bits) or end > len(code):
        raise WeightHandoverError(f"{len(code)} bytes are no difference of {len(bits)} values: it is cut or damaged")
    values = code[_HEADER:end].view(bits.dtype)
    last, done = -1, 0
    for start in range(end, len(code), block):
        part = code[start : start + block]
        reached = last + (part.long() + (part != _ESCAPE)).cumsum(0)
        at = reached[part != _ESCAPE]
        last = int(reached[-1])
        if done + len(at) > changed or last >= len(bits):
            raise WeightHandoverError(f"a difference leads beyond the {len(bits)} values that it is of: it is damaged")
        bits[at] = values[done : done + len(at)]
        done += len(at)
    if done != changed:
        raise WeightHandoverError(f"a difference has {changed} values and places for {done}: it is damaged")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """A flat view as integers, in which equal means the same bits, NaN or not."""
    return tensor.detach().view(-1).view(_BITS[tensor.itemsize])


def _as_bytes(gaps: torch.Tensor) -> torch.Tensor:
    escapes = gaps // _ESCAPE
    coded = gaps.new_full((len(gaps) + int(escapes.sum()),), _ESCAPE, dtype=torch.uint8)
    coded[torch.arange(len(gaps), device=gaps.device) + escapes.cumsum(0)] = (gaps % _ESCAPE).to(torch.uint8)
    return coded
