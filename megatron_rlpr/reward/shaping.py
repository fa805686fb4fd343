"""Functions of the difference between reference and base probability, chosen by name (spec section 2.5).

| name | f(x) |
|---|---|
| identity | x |
| one_minus | 1 - x |
| random | uniform in [0, 1), from the seed alone |
| threshold_T | 0 if x < T else x |
| sigmoid_K | s(K(2x - 1)); K = 0: s(x), with s the logistic function |
| leaky_T | 0.01 x if x < T else x |
| comp_threshold_T_sigmoid_K | y = s(K(2x - 1)); 0 if y < T else y |
| comp_threshold_T_sigmoidv2_K | 0 if x < T else s(K(x - T)) |
| comp_threshold_T_sigmoidv2fixed_K | 0 if x < T else s(K(x - T)) (1 - T) / 0.5 - ((1 - T) - T) |
| comp_threshold_T_sigmoidv3_K | 0 if x < T else s(K(x - 1)) + 0.5 |
| comp_threshold_T_tanh_K | y = (tanh(Kx - K/2) + 1) / 2; 0 if y < T else y |
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable

from megatron_rlpr.types import UserError

ShapingFunction = Callable[[float, int], float]
"""(difference, seed) -> shaped difference; only `random` looks at the seed, so that a resumed run repeats its draws."""

_NUMBER = r"(-?[0-9]{1,6}(?:\.[0-9]*)?|-?\.[0-9]+)"
_SIMPLE = re.compile(rf"(threshold|sigmoid|leaky)(?:_\w*?)?_{_NUMBER}")
_COMPOSED = re.compile(rf"comp_threshold_{_NUMBER}_(sigmoid|sigmoidv2|sigmoidv2fixed|sigmoidv3|tanh)_{_NUMBER}")


def shaping_function(name: str) -> ShapingFunction:
    """The function of a name; raises UserError for a name that is none of the table's."""
    if name == "random":
        return lambda x, seed: random.Random(seed).random()
    plain = _plain_function(name)
    if plain is None:
        raise UserError(
            f"reward.shaping_function_name={name!r} is unknown; expected identity, one_minus, random, threshold_T, "
            f"sigmoid_K, leaky_T or comp_threshold_T_{{sigmoid|sigmoidv2|sigmoidv2fixed|sigmoidv3|tanh}}_K with "
            "numbers for T and K, of at most six digits before the point"
        )
    return lambda x, seed: plain(x)


def _plain_function(name: str) -> Callable[[float], float] | None:
    if name == "identity":
        return lambda x: x
    if name == "one_minus":
        return lambda x: 1 - x
    if simple := _SIMPLE.fullmatch(name):
        return _simple(simple.group(1), float(simple.group(2)))
    if composed := _COMPOSED.fullmatch(name):
        return _composed(composed.group(2), float(composed.group(1)), float(composed.group(3)))
    return None


def _simple(kind: str, t: float) -> Callable[[float], float]:
    functions: dict[str, Callable[[float], float]] = {
        "threshold": lambda x: 0.0 if x < t else x,
        "leaky": lambda x: 0.01 * x if x < t else x,
        "sigmoid": lambda x: _logistic(t * (2 * x - 1) if t != 0 else x),
    }
    return functions[kind]


def _composed(kind: str, t: float, k: float) -> Callable[[float], float]:
    functions: dict[str, Callable[[float], float]] = {
        "sigmoid": lambda x: _zero_below(t, _logistic(k * (2 * x - 1))),
        "tanh": lambda x: _zero_below(t, (math.tanh(k * x - k / 2) + 1) / 2),
        "sigmoidv2": lambda x: 0.0 if x < t else _logistic(k * (x - t)),
        "sigmoidv3": lambda x: 0.0 if x < t else _logistic(k * (x - 1)) + 0.5,
        "sigmoidv2fixed": lambda x: 0.0 if x < t else _logistic(k * (x - t)) * (1 - t) / 0.5 - ((1 - t) - t),
    }
    return functions[kind]


def _zero_below(threshold: float, value: float) -> float:
    return 0.0 if value < threshold else value


def _logistic(x: float) -> float:
    # exp of a large positive number overflows; use the mirrored form there.
    if x < 0:
        e = math.exp(x)
        return e / (1 + e)
    return 1 / (1 + math.exp(-x))


def discrete_function(name: str) -> Callable[[float], float]:
    """identity, or bin_K: the nearest multiple of 1/K (halves to the even one, no clipping)."""
    if name in ("", "identity"):
        return lambda x: x
    match = re.fullmatch(r"bin_([1-9][0-9]{0,5})", name)
    if match is None:
        raise UserError(
            f"reward.discrete_function_name={name!r} is unknown; expected identity or bin_K with K from 1 to 999999"
        )
    return lambda x: map_to_bins(x, int(match.group(1)))


def map_to_bins(x: float, num_bins: int) -> float:
    """round(x / step) * step with step = 1 / num_bins; ties go to the even multiple."""
    if num_bins < 1:
        raise ValueError(f"num_bins is {num_bins}, expected at least 1")
    step = 1 / num_bins
    return round(x / step) * step
