"""The feed-forward of a mixture of experts: a router, and gated experts of which it chooses some for every token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_rlpr.types import UserError
from megatron_rlpr.weights.architectures import fields
from megatron_rlpr.weights.mapping import GateUp, HfTensor, ParamMapping, Replicated, Row
from megatron_rlpr.weights.shape import ExpertShape, ModelShape


@dataclass(frozen=True)
class ExpertNames:
    """How a family names a layer's experts in its Hugging Face files: the block, and an expert's three weights."""

    block: str
    gate: str
    up: str
    down: str


def expert_shape(config: Mapping[str, Any], ffn_field: str, normalised: bool) -> ExpertShape:
    """The experts of a config.json. Their number is num_local_experts; published files also say num_experts."""
    given = [field for field in ("num_local_experts", "num_experts") if config.get(field) is not None]
    count_field = given[0] if given else "num_experts"
    count = fields.positive_integer(config, count_field)
    if config[given[-1]] != count:  # transformers takes the one that is written last
        raise UserError(f"config.json: num_local_experts={count}, but num_experts={config['num_experts']!r:.80}")
    top_k = fields.positive_integer(config, "num_experts_per_tok")
    if top_k > count:
        raise UserError(f"config.json: num_experts_per_tok={top_k} is more than {count_field}={count}")
    if normalised and top_k == 1:
        raise UserError(
            "config.json: num_experts_per_tok=1 with normalised probabilities, which are then all 1, is not supported"
        )
    return ExpertShape(count, top_k, fields.positive_integer(config, ffn_field), normalised)


def expert_feed_forward(shape: ModelShape, megatron: str, hf: str, names: ExpertNames) -> list[ParamMapping]:
    """One layer's router and experts, which Transformer Engine holds in one module and the local spec in a list."""
    experts = shape.experts
    if experts is None:
        raise ValueError(f"{shape.architecture} was given no experts")
    hidden, ffn = shape.hidden_size, experts.ffn_hidden_size
    router = HfTensor(f"{hf}.{names.block}.gate.weight", (experts.count, hidden))
    table = [ParamMapping((f"{megatron}.mlp.router.weight",), (router,), Replicated())]
    for expert in range(experts.count):
        theirs = f"{hf}.{names.block}.experts.{expert}"
        gate_up = tuple(HfTensor(f"{theirs}.{x}.weight", (ffn, hidden)) for x in (names.gate, names.up))
        down = HfTensor(f"{theirs}.{names.down}.weight", (hidden, ffn))
        for linear, tensors, layout in (("linear_fc1", gate_up, GateUp()), ("linear_fc2", (down,), Row())):
            table.append(ParamMapping(_megatron_names(megatron, expert, linear), tensors, layout, of_expert=True))
    return table


def _megatron_names(layer: str, expert: int, linear: str) -> tuple[str, str]:
    experts = f"{layer}.mlp.experts"
    return f"{experts}.local_experts.{expert}.{linear}.weight", f"{experts}.{linear}.weight{expert}"
