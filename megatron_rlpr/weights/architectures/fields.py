"""Typed, checked access to the fields of a Hugging Face config.json; what we would compute differently is refused."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from megatron_rlpr.types import UserError
from megatron_rlpr.weights.shape import RopeScaling

HfConfig = Mapping[str, Any]
Inert = Mapping[str, tuple[Any, ...] | None]
"""Fields that change a decoder's numbers, with the values under which they do not."""

_MOST: Mapping[str, int] = {"num_hidden_layers": 10_000, "num_local_experts": 10_000, "num_experts": 10_000}
_LARGEST_SIZE = 2**31 - 1
"""Far beyond any model: a larger number is a damaged one, and a list of so many layers takes minutes and all memory."""

_DEFAULT_ROPE_THETA = 10000.0  # transformers', for Llama and Qwen2 without rope_theta and rope_parameters

_INERT: Inert = {
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False,),
    "quantization_config": ({},),
    "partial_rotary_factor": (1, 1.0),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
    "use_qk_norm": (False,),
    "use_bidirectional_attention": (False,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "layer_types": (),
}


def architecture_name(config: HfConfig) -> str:
    """The one class name in `architectures`."""
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise UserError(f"config.json: expected 'architectures' to be a list of one class name, found {names!r:.200}")
    return names[0]


def positive_integer(config: HfConfig, field: str) -> int:
    """A required field that must be a positive integer, and a size that a model can have."""
    value, most = config.get(field), _MOST.get(field, _LARGEST_SIZE)
    if type(value) is not int or value < 1:
        raise UserError(f"config.json: expected '{field}' to be a positive integer, found {value!r:.80}")
    if value > most:
        raise UserError(f"config.json: expected '{field}' to be at most {most}, found a larger one")
    return value


def positive_number(config: HfConfig, field: str) -> float:
    """A required field that must be a positive number."""
    value = config.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise UserError(f"config.json: expected '{field}' to be a positive number, found {value!r:.80}")
    return float(value)


def flag(config: HfConfig, field: str, default: bool) -> bool:
    """A field that must be true or false; `default` is transformers' own where the field is not written."""
    value = default if config.get(field) is None else config[field]
    if not isinstance(value, bool):
        raise UserError(f"config.json: expected '{field}' to be true or false, found {value!r:.80}")
    return value


def head_dim(config: HfConfig, default: int | None = None) -> int:
    """`head_dim`, else the family's default, else hidden size / heads. Rotary embedding needs an even one."""
    heads = positive_integer(config, "num_attention_heads")
    if config.get("head_dim") is not None:
        dim = positive_integer(config, "head_dim")
    elif default is not None:
        dim = default
    else:
        hidden = positive_integer(config, "hidden_size")
        if hidden % heads:
            sizes = f"hidden_size={hidden} is no multiple of num_attention_heads={heads}"
            raise UserError(f"config.json: {sizes} and there is no 'head_dim'")
        dim = hidden // heads
    if dim % 2:
        raise UserError(f"config.json: head_dim={dim} is odd; rotary embedding needs an even one")
    return dim


def query_groups(config: HfConfig) -> int:
    """Key/value heads: `num_key_value_heads`, or as many as query heads."""
    heads = positive_integer(config, "num_attention_heads")
    if config.get("num_key_value_heads") is None:
        return heads
    groups = positive_integer(config, "num_key_value_heads")
    if heads % groups:
        raise UserError(f"config.json: num_attention_heads={heads} is no multiple of num_key_value_heads={groups}")
    return groups


def rope(config: HfConfig) -> tuple[float, RopeScaling | None]:
    """Rotary base and scaling, from `rope_theta` and `rope_scaling` or from transformers 5's `rope_parameters`.

    As in transformers, rope_scaling wins over rope_parameters, and a rope_theta inside them over the one outside.
    """
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, Mapping) or any(isinstance(v, Mapping) for v in given.values()):
        raise UserError(f"config.json: one set of rotary parameters for all layers is supported, found {given!r:.200}")
    if given.get("partial_rotary_factor") not in (None, 1):
        factor = given["partial_rotary_factor"]
        raise UserError(f"config.json: partial_rotary_factor={factor!r:.80} is not supported; supported is 1")
    kind = given.get("rope_type", given.get("type", "default"))
    where = given if given.get("rope_theta") is not None else config
    theta = positive_number(where, "rope_theta") if where.get("rope_theta") is not None else _DEFAULT_ROPE_THETA
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(
            f"config.json: rotary scaling {kind!r:.80} is not supported; supported are 'default' and 'llama3'"
        )
    return theta, RopeScaling(
        factor=positive_number(given, "factor"),
        low_freq_factor=positive_number(given, "low_freq_factor"),
        high_freq_factor=positive_number(given, "high_freq_factor"),
        original_max_position_embeddings=positive_integer(given, "original_max_position_embeddings"),
    )


def layer_windows(config: HfConfig, layer_types: Any) -> tuple[int, ...]:
    """The sliding window of every layer, 0 for full attention; empty when none can act. layer_types: one name a layer.

    A window that holds all positions of the model hides nothing.
    """
    layers, kinds = positive_integer(config, "num_hidden_layers"), ("full_attention", "sliding_attention")
    named = isinstance(layer_types, list) and all(kind in kinds for kind in layer_types)
    if not named or len(layer_types) != layers:
        expected = f"{layers} of {', '.join(kinds)}"
        raise UserError(f"config.json: layer_types={layer_types!r:.200} is not supported; expected {expected}")
    if "sliding_attention" not in layer_types:
        return ()
    window = positive_integer(config, "sliding_window")
    if window >= positive_integer(config, "max_position_embeddings"):
        return ()
    return tuple(window if kind == "sliding_attention" else 0 for kind in layer_types)


def refuse_what_changes_numbers(config: HfConfig, inert: Inert) -> None:
    """Raise UserError for a field that would make this project compute other numbers than transformers does.

    inert: of a family, beside those of all. None: the family reads the field itself.
    """
    for field, harmless in {**_INERT, **inert}.items():
        value = config.get(field)
        if harmless is None or value is None or any(value == x and type(value) is type(x) for x in harmless):
            continue
        full = field == "layer_types" and isinstance(value, list) and [kind == "full_attention" for kind in value]
        if full and all(full):
            continue
        expected = " or ".join(map(repr, harmless)) or ("all 'full_attention'" if field == "layer_types" else "null")
        name = architecture_name(config)
        raise UserError(f"config.json: {field}={value!r:.80} is not supported for {name}; supported is {expected}")
