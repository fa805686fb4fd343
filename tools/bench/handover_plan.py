"""`bench handover_plan`: what each rank gets from others for a hand-over, by the exporter's own plan of its moves.

Nothing is allocated: sizes of tensors, groups and engines are all that counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from megatron_rlpr.weights.architectures import model_shape, parameter_table
from megatron_rlpr.weights.engine_slices import EngineRank
from megatron_rlpr.weights.export_plan import ExportPlan, Owner
from megatron_rlpr.weights.hf_folder import HfFolder
from megatron_rlpr.weights.mapping import ParamMapping
from tools.plan.job import MODELS


@dataclass(frozen=True)
class Sizes:
    """Of a layout; an expert is cut by expert_tensor ranks, or by as many as a layer."""

    tensor: int
    pipeline: int
    data: int
    expert: int = 1
    expert_tensor: int = 0


HANDOVERS = (
    ("qwen2.5-72b", Sizes(8, 8, 1), 8),
    ("qwen2.5-72b", Sizes(4, 8, 2), 8),
    ("qwen2.5-72b", Sizes(8, 8, 1), 4),
    ("qwen2.5-72b", Sizes(4, 8, 1), 4),
    ("qwen3-235b-a22b", Sizes(4, 8, 8, expert=8, expert_tensor=1), 8),
)


@dataclass(frozen=True)
class RankBytes:
    """kept: of what a rank's engine gets of all weights. received: what other ranks send to it for that."""

    kept: int
    received: int


def run() -> dict[str, Any]:
    """bf16; the rank that gets most, with the plan and with whole tensors."""
    points = []
    for model, sizes, engine in HANDOVERS:
        sliced, whole = (_most(bytes_of_ranks(model, sizes, of)) for of in (engine, 1))
        points.append(
            {
                "model": model,
                **{key: value for key, value in asdict(sizes).items() if value},
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


def bytes_of_ranks(model: str, sizes: Sizes, engine: int, itemsize: int = 2) -> list[RankBytes]:
    """Of one rank of every kind: engine rank, stage and expert-parallel rank.

    model: a folder of examples/recipes/models; layers are dealt evenly to the stages, the head to the last.
    """
    shape = model_shape(HfFolder(str(MODELS / model)).config())
    table = [mapping for mapping in parameter_table(shape) if not mapping.is_copy]
    owners = [
        _owner(mapping, shape.num_layers, shape.experts.count if shape.experts else 0, sizes) for mapping in table
    ]
    alike: dict[object, list[int]] = {}  # layers of a stage are, and experts
    for index, (mapping, owner) in enumerate(zip(table, owners, strict=True)):
        alike.setdefault((mapping.kind, owner), []).append(index)
    counts = [(indices[0], len(indices)) for indices in alike.values()]
    found = []
    for rank in range(engine):
        plan = ExportPlan(table, sizes.tensor, sizes.expert_tensor or sizes.tensor, EngineRank(rank, engine))
        kept = sum(plan.slices_numel(index) * count for index, count in counts)
        for stage in range(sizes.pipeline):
            for expert in range(sizes.expert):
                received = sum(plan.received_numel(i, owners[i], stage, expert) * count for i, count in counts)
                found.append(RankBytes(kept * itemsize, received * itemsize))
    return found


def _owner(mapping: ParamMapping, layers: int, experts: int, sizes: Sizes) -> Owner:
    name = mapping.hf[0].name
    layer, expert = (re.search(rf"\.{kind}\.(\d+)\.", name) for kind in ("layers", "experts"))
    stage = int(layer[1]) * sizes.pipeline // layers if layer else (0 if "embed" in name else sizes.pipeline - 1)
    of_one = expert is not None and sizes.expert > 1
    return Owner(stage, int(expert[1]) * sizes.expert // experts if expert and of_one else None, mapping.of_expert)
