"""The policy's elementwise work on a CPU, each piece in one pass over data that stays in the cache.

In tensor operations every piece is several passes over memory, which on a CPU cost as much as the matrix products
beside them. Arithmetic is in float32, from and to float32 or bfloat16 (rounded once, to nearest, ties to even). nan and
infinities come out where they went in.

All of it is in one file: numba, which keeps compiled loops on disk, looks for changes in the file of the loop only.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic, overload

from megatron_rlpr.actor.cpu.openmp_loop import HEADER, SLOTS, Loop

_compiled = njit(error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"}, forceinline=True)
"""Sums in any order, so that they are vectorised. Nothing is assumed about nan and infinity.

Inlined, so that a loop is one function: where a part stays a function of its own, the process that compiled it calls
the copy made first, alone, and one that reads the loop from disk the copy made within the loop, which rounds
differently.
"""

_F32, _BF16 = np.float32, np.uint16
_BITS = np.float32(1 / math.log(2))
_ZERO, _ONE = np.float32(0), np.float32(1)


# --- arguments ---


@intrinsic
def _as_pointer(_: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


_thread = types.ExternalFunction("omp_get_thread_num", types.int32())
_threads = types.ExternalFunction("omp_get_num_threads", types.int32())


@_compiled
def _share(slots: Any) -> Any:
    """(start, stop) of this thread's rows."""
    return slots[0] * _thread() // _threads(), slots[0] * (_thread() + 1) // _threads()


@_compiled
def _row(address: Any, index: Any, width: Any, element: Any) -> Any:
    """Row `index` of a matrix of this width."""
    return carray(_as_pointer(address + index * width * np.int64(_size(element))), width, element)


@_compiled
def _pair(address: Any, index: Any, width: Any, element: Any) -> Any:
    """Rows 2 * index and 2 * index + 1: also the halves of row `index` of a matrix of twice this width."""
    return _row(address, 2 * index, width, element), _row(address, 2 * index + 1, width, element)


@_compiled
def _number(slots: Any, index: Any) -> Any:
    """A float argument."""
    return np.float32(slots.view(np.float64)[HEADER + index])


@_compiled
def _run(loop: Any, pointer: Any) -> None:
    """One thread's share of a loop, for the element type of this call."""
    slots = carray(pointer, SLOTS)
    if slots[1]:
        loop(slots, _BF16)
    else:
        loop(slots, _F32)


# --- numbers ---


def _size(element: Any) -> Any:
    """Bytes of an element."""


@overload(_size, strict=False)
def _size_of(element: Any) -> Any:
    size = element.dtype.bitwidth // 8
    return lambda element: size


def _wide(value: Any) -> Any:
    """float32 of a float32 or of the bits of a bfloat16."""


@overload(_wide, strict=False)
def _wide_of(value: Any) -> Any:
    if value == types.uint16:
        return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    return lambda value: value


def _rounded(value: Any, row: Any) -> Any:
    """A float32 as an element of this row."""


@overload(_rounded, strict=False)
def _rounded_for(value: Any, row: Any) -> Any:
    if row.dtype != types.uint16:
        return lambda value, row: np.float32(value)

    def to_nearest_even(value: Any, row: Any) -> Any:
        bits = np.float32(value).view(np.uint32)
        half = np.uint32(np.uint32(0x7FFF) + np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1)))
        return np.uint16(np.uint32(bits + half) >> np.uint32(16))

    return to_nearest_even


_LOWEST, _HIGHEST = np.float32(-126), np.float32(127)
_SERIES = np.polynomial.Chebyshev.interpolate(np.exp2, 6, domain=[-0.5, 0.5]).convert(kind=np.polynomial.Polynomial)
"""2 ** f for |f| <= 1/2, to 3e-9."""
_C0, _C1, _C2, _C3, _C4, _C5, _C6 = (np.float32(c) for c in _SERIES.coef)


@_compiled
def _exp2(x: Any) -> Any:
    """2 ** x, at most 2 ** 127, error about 1e-7. Less than 2 ** -126 is 0: products of subnormal numbers are slow."""
    bounded = _LOWEST if x < _LOWEST else x
    bounded = _HIGHEST if bounded > _HIGHEST else bounded
    # Rounds to nearest: what is converted is positive.
    whole = np.int32(np.int32(bounded + np.float32(126.5)) - np.int32(126))
    f = bounded - np.float32(whole)
    series = ((((((_C6 * f + _C5) * f + _C4) * f + _C3) * f + _C2) * f + _C1) * f) + _C0
    power = series * np.int32(np.int32(whole + np.int32(127)) << np.int32(23)).view(np.float32)
    return _ZERO if x < _LOWEST else power


@_compiled
def _sigmoid(x: Any) -> Any:
    return _ONE / (_ONE + _exp2(-x * _BITS))


@_compiled
def _largest(row: Any) -> Any:
    """The largest element; a positive nan counts as larger than infinity.

    Compares integers of the same order, because numba's comparisons of floats are not vectorised.
    """
    top = np.int32(-(2**31) + 1)
    for j in range(len(row)):
        bits = np.float32(_wide(row[j])).view(np.int32)
        key = np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))
        top = key if key > top else top
    return np.int32(top ^ np.int32(np.int32(top >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)


# --- loops ---


@_compiled
def _gated_silu(slots: Any, element: Any) -> None:
    start, stop = _share(slots)
    width = slots[HEADER + 2]
    for i in range(start, stop):
        gate, up = _pair(slots[HEADER], i, width, element)
        out = _row(slots[HEADER + 1], i, width, element)
        for j in range(width):
            value = _wide(gate[j])
            out[j] = _rounded(value * _sigmoid(value) * _wide(up[j]), out)


gated_silu = Loop(lambda pointer: _run(_gated_silu, pointer))
"""x [T, 2 f] (gate, then up), out [T, f], f: out = silu(gate) * up."""


@_compiled
def _gated_silu_gradient(slots: Any, element: Any) -> None:
    start, stop = _share(slots)
    width = slots[HEADER + 3]
    for i in range(start, stop):
        gate, up = _pair(slots[HEADER], i, width, element)
        grad = _row(slots[HEADER + 1], i, width, element)
        grad_gate, grad_up = _pair(slots[HEADER + 2], i, width, element)
        for j in range(width):
            value, slope = _wide(gate[j]), _wide(grad[j])
            share = _sigmoid(value)
            grad_up[j] = _rounded(slope * value * share, grad_up)
            grad_gate[j] = _rounded(slope * _wide(up[j]) * share * (_ONE + value * (_ONE - share)), grad_gate)


gated_silu_gradient = Loop(lambda pointer: _run(_gated_silu_gradient, pointer))
"""x [T, 2 f], grad [T, f] of the output, grad_x [T, 2 f], f."""


@_compiled
def _rms_norm_gradient(slots: Any, element: Any) -> None:
    start, stop = _share(slots)
    width, eps = slots[HEADER + 5], _number(slots, 6)
    factor = _row(slots[HEADER + 2], 0, width, np.float32)
    grad_factor = _row(slots[HEADER + 4], _thread(), width, np.float32)
    for i in range(start, stop):
        x, grad = _row(slots[HEADER], i, width, element), _row(slots[HEADER + 1], i, width, element)
        grad_x = _row(slots[HEADER + 3], i, width, element)
        square, along = _ZERO, _ZERO
        for j in range(width):
            square += _wide(x[j]) * _wide(x[j])
            along += _wide(x[j]) * _wide(grad[j]) * factor[j]
        inverse = _ONE / np.sqrt(square / np.float32(width) + eps)
        along *= inverse * inverse / np.float32(width)
        for j in range(width):
            grad_factor[j] += _wide(grad[j]) * _wide(x[j]) * inverse
            grad_x[j] = _rounded((_wide(grad[j]) * factor[j] - _wide(x[j]) * along) * inverse, grad_x)


rms_norm_gradient = Loop(lambda pointer: _run(_rms_norm_gradient, pointer))
"""x [T, n], grad [T, n] of the output, factor fp32 [n], grad_x [T, n], grad_factor fp32 [threads, n] (+=), n, eps."""


@_compiled
def _attention_gradient(slots: Any, element: Any) -> None:
    start, stop = _share(slots)
    block_rows, keys, tail, front = slots[HEADER + 4], slots[HEADER + 5], slots[HEADER + 6], slots[HEADER + 7]
    for i in range(start, stop):
        scores, grads = _row(slots[HEADER], i, keys, element), _row(slots[HEADER + 1], i, keys, element)
        tail_bias = _row(slots[HEADER + 2], i % block_rows, tail, element)
        front_bias = _row(slots[HEADER + 3], i % block_rows, front, element)
        for j in range(tail):
            scores[keys - tail + j] = _rounded(_wide(scores[keys - tail + j]) + _wide(tail_bias[j]), scores)
        for j in range(front):
            scores[j] = _rounded(_wide(scores[j]) + _wide(front_bias[j]), scores)
        top = _largest(scores) * _BITS
        total, mean = _ZERO, _ZERO
        for j in range(keys):
            weight = _exp2(_wide(scores[j]) * _BITS - top)
            total += weight
            mean += weight * _wide(grads[j])
        scale = _ONE / total
        mean *= scale
        for j in range(keys):
            weight = _exp2(_wide(scores[j]) * _BITS - top) * scale
            scores[j] = _rounded(weight, scores)
            grads[j] = _rounded(weight * (_wide(grads[j]) - mean), grads)


attention_gradient = Loop(lambda pointer: _run(_attention_gradient, pointer))
"""Softmax again, and its gradient, of a block of B rows of attention.

scores [R, S] become weights; grads [R, S] of the weights become those of the scores. Row r is row r % B of the block;
tail_bias [B, tail] belongs to the last keys and front_bias [B, front] to the first. Then B, S, tail, front.
"""


@_compiled
def _head_sums(slots: Any, element: Any) -> None:
    start, stop = _share(slots)
    width, rows = slots[HEADER + 2], slots[0]
    scale = _number(slots, 3)
    tops, totals = _pair(slots[HEADER + 1], 0, rows, np.float32)
    means = _row(slots[HEADER + 1], 2, rows, np.float32)
    for i in range(start, stop):
        logits = _row(slots[HEADER], i, width, element)
        before, top = tops[i], _largest(logits) * scale
        top = before if before > top else top
        total, mean = _ZERO, _ZERO
        for j in range(width):
            bits = _wide(logits[j]) * scale - top
            weight = _exp2(bits)
            total += weight
            mean += weight * bits
        drop = before - top
        factor = _exp2(drop)
        means[i] = factor * (means[i] + drop * totals[i]) + mean
        totals[i] = totals[i] * factor + total
        tops[i] = top


head_sums = Loop(lambda pointer: _run(_head_sums, pointer))
"""Take a tile of logits into the running sums of its rows.

logits [r, c]; sums fp32 [3, r]: largest logit, sum of 2 ** (logit - largest), sum of that times (logit - largest),
all in bits; c; scale, which turns a logit into bits.
"""


@_compiled
def _head_gradient(slots: Any, element: Any) -> None:
    start, stop = _share(slots)
    width, rows = slots[HEADER + 3], slots[0]
    scale = _number(slots, 4)
    targets = _row(slots[HEADER + 2], 0, rows, np.int64)
    normaliser, factor = _pair(slots[HEADER + 1], 0, rows, np.float32)
    slope, at_target = _pair(slots[HEADER + 1], 1, rows, np.float32)
    for i in range(start, stop):
        logits, target = _row(slots[HEADER], i, width, element), targets[i]
        wanted = _ZERO
        if target >= 0:  # before its logit is overwritten
            bits = _wide(logits[target]) * scale - normaliser[i]
            wanted = (bits * slope[i] + factor[i]) * _exp2(bits) + at_target[i]
        for j in range(width):
            bits = _wide(logits[j]) * scale - normaliser[i]
            logits[j] = _rounded((bits * slope[i] + factor[i]) * _exp2(bits), logits)
        if target >= 0:
            logits[target] = _rounded(wanted, logits)


head_gradient = Loop(lambda pointer: _run(_head_gradient, pointer))
"""logits [r, c] become (factor + slope * bits) * 2 ** bits, bits = logit * scale - normaliser, + at_target at target.

rows fp32 [4, r]: normaliser, factor, slope, at_target; target int64 [r], -1 for none; c; scale.
"""


@_compiled
def _rotate(slots: Any, element: Any) -> None:
    start, stop = _share(slots)
    heads, half, sign = slots[HEADER + 5], slots[HEADER + 6], _number(slots, 7)
    size = np.int64(_size(element))
    for i in range(start, stop):
        cos, sin = _pair(slots[HEADER + 2], i, half, element)
        for head in range(heads):
            source = slots[HEADER + 1] + (i * slots[HEADER + 3] + head * slots[HEADER + 4]) * size
            first, second = _pair(source, 0, half, element)
            out_first, out_second = _pair(slots[HEADER], i * heads + head, half, element)
            for j in range(half):
                a, b, c, s = _wide(first[j]), _wide(second[j]), _wide(cos[j]), sign * _wide(sin[j])
                out_first[j] = _rounded(a * c - b * s, out_first)
                out_second[j] = _rounded(b * c + a * s, out_second)


rotate = Loop(lambda pointer: _run(_rotate, pointer))
"""out [T, H, D] = x rotated by sign times its row's angles, halves paired.

out; x's address; table [T, D], cosines and sines of D / 2 angles; x's strides over rows and heads; H, D / 2, sign.
"""
