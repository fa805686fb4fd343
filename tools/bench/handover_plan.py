"""`bench handover_plan`: what each rank gets from others for a hand-over, by the exporter's own plan of its moves.

Nothing is allocated: sizes of tensors, groups and engines are all that counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from megatron_rlpr.weights.architectures import model_shape, parameter_table
from megatron_rlpr.weights.engine_slices import EngineRank
from megatron_rlpr.weights.export_plan import ExportPlan, Owner
from megatron_rlpr.weights.mapping import ParamMapping

_QWEN = {"rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768, "tie_word_embeddings": False}
QWEN_72B: dict[str, Any] = _QWEN | {
    "architectures": ["Qwen2ForCausalLM"],
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
}
QWEN_235B: dict[str, Any] = _QWEN | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_hidden_layers": 94,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
}


class Sizes(NamedTuple):
    """Of a layout; an expert is cut by expert_tensor ranks, or by as many as a layer."""

    tensor: int
    pipeline: int
    data: int
    expert: int = 1
    expert_tensor: int = 0


_CASES = (
    ("Qwen2.5-72B", QWEN_72B, Sizes(8, 8, 1), 8),
    ("Qwen2.5-72B", QWEN_72B, Sizes(4, 8, 2), 8),
    ("Qwen2.5-72B", QWEN_72B, Sizes(8, 8, 1), 4),
    ("Qwen2.5-72B", QWEN_72B, Sizes(4, 8, 1), 4),
    ("Qwen3-235B-A22B", QWEN_235B, Sizes(4, 8, 8, expert=8, expert_tensor=1), 8),
)


@dataclass(frozen=True)
class RankBytes:
    """kept: of what a rank's engine gets of all weights. received: what other ranks send to it for that."""

    kept: int
    received: int


def run() -> dict[str, Any]:
    """bf16; the rank that gets most, with the plan and with whole tensors."""
    points = []
    for name, config, sizes, engine in _CASES:
        sliced, whole = _most(bytes_of_ranks(config, sizes, engine)), _most(bytes_of_ranks(config, sizes, 1))
        points.append(
            {
                "model": name,
                **{key: value for key, value in sizes._asdict().items() if value},
                "engine": engine,
                "kept_gb": sliced.kept / 1e9,
                "received_gb": sliced.received / 1e9,
                "received_over_kept": sliced.received / sliced.kept,
                "received_whole_gb": whole.received / 1e9,
            }
        )
    return {"points": points}


def _most(ranks: Iterable[RankBytes]) -> RankBytes:
    return max(ranks, key=lambda rank: rank.received)


def bytes_of_ranks(config: Mapping[str, Any], sizes: Sizes, engine: int, itemsize: int = 2) -> list[RankBytes]:
    """Of one rank of every kind: engine rank, stage and expert-parallel rank.

    config: of config.json; layers are dealt evenly to the stages, the head to the last.
    """
    shape = model_shape(config)
    table = [mapping for mapping in parameter_table(shape) if not mapping.is_copy]
    owners = [
        _owner(mapping, shape.num_layers, shape.experts.count if shape.experts else 0, sizes) for mapping in table
    ]
    found = []
    for rank in {0, engine - 1}:  # those between hold as much: only the end of a vocabulary may be shorter
        plan = ExportPlan(table, sizes.tensor, sizes.expert_tensor or sizes.tensor, EngineRank(rank, engine))
        kept = sum(map(plan.slices_numel, range(len(table))))
        for stage in range(sizes.pipeline):
            for expert in range(sizes.expert):
                received = sum(plan.received_numel(i, owner, stage, expert) for i, owner in enumerate(owners))
                found.append(RankBytes(kept * itemsize, received * itemsize))
    return found


def _owner(mapping: ParamMapping, layers: int, experts: int, sizes: Sizes) -> Owner:
    name = mapping.hf[0].name
    layer, expert = (re.search(rf"\.{kind}\.(\d+)\.", name) for kind in ("layers", "experts"))
    stage = int(layer[1]) * sizes.pipeline // layers if layer else (0 if "embed" in name else sizes.pipeline - 1)
    of_one = expert is not None and sizes.expert > 1
    return Owner(stage, int(expert[1]) * sizes.expert // experts if expert and of_one else None, mapping.of_expert)
