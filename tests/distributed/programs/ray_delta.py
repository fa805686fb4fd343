"""Hand-overs of changes alone to engines in Ray, beside an engine in this process that gets whole weights: ray_delta.py
MODELS RESULT.

Two engines through shared memory, then one of two workers in a group of its own. MODELS holds a small model, a.
"""

from megatron_rlpr.system import process_environment

if __name__ == "__main__":
    process_environment.ensure()

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from megatron_rlpr.rollout.engine import EngineSettings
from megatron_rlpr.rollout.ray import cluster as ray_cluster
from megatron_rlpr.rollout.ray.pool import EnginePool
from megatron_rlpr.rollout.ray.rollouts import RayRollouts
from megatron_rlpr.rollout.ray.scheduler import CALL_S
from megatron_rlpr.rollout.requests import RolloutRequest, SamplingSettings
from megatron_rlpr.rollout.vllm.colocated import ColocatedRollouts
from megatron_rlpr.rollout.vllm.engine import VllmEngine
from megatron_rlpr.types import Prompt
from megatron_rlpr.weights.checksum import weights_checksum
from megatron_rlpr.weights.receiver import Announcement
from megatron_rlpr.weights.transports.choice import Transports
from megatron_rlpr.weights.transports.lane import Lane

SAMPLING = SamplingSettings(temperature=0.7, max_tokens=40)
SETTINGS = {"max_model_len": 100, "max_num_seqs": 6, "kv_cache_gb": 0.1}
PROMPTS = [Prompt(20 + i, tuple(range(200 + 10 * i, 240 + 10 * i)), (), "", "sums") for i in range(4)]
NEVER_S = 600.0
CHANGED = 0.02
"""Of the weights between two editions."""

Weights = dict[str, torch.Tensor]


class Policy:
    """Counts how often its weights are exported."""

    def __init__(self, tensors: Weights) -> None:
        self.tensors = tensors
        self.exports = 0

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.exports += 1
        yield from self.tensors.items()


def editions_of(model: Path, count: int) -> list[Weights]:
    """The model's weights, and what steps would make of them."""
    generator = torch.Generator().manual_seed(5)
    found = [load_file(model / "model.safetensors")]
    while len(found) < count:
        stepped = {}
        for name, tensor in found[-1].items():
            moved = torch.rand(tensor.shape, generator=generator) < CHANGED
            stepped[name] = torch.where(moved, tensor + 0.3 * torch.randn(tensor.shape, generator=generator), tensor)
        found.append(stepped)
    return found


def groups(of: Any) -> list[Any]:
    asked = of.generate(RolloutRequest(PROMPTS, 3, 2, 7, SAMPLING))
    return [[[r.seed, r.token_ids, r.weight_versions] for r in g.responses] for g in asked]


def hand_over(rollouts: RayRollouts, version: int, tensors: Weights) -> dict[str, Any]:
    """What is said about it, and how often it exported."""
    policy = Policy(tensors)
    manifest = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    confirmed = rollouts.update_weights(Announcement(manifest, version), policy)
    assert confirmed.sent is not None
    return {
        "right": (confirmed.version, confirmed.checksums) == (version, (weights_checksum(tensors.items()),)),
        "bytes": confirmed.sent.nbytes / sum(tensor.nbytes for tensor in tensors.values()),
        "density": confirmed.sent.density,
        "exports": policy.exports,
        "replaced": rollouts.engines_replaced,
    }


def start(model: Path, engines: int, workers: int, transport: Any, events: list[str]) -> tuple[RayRollouts, EnginePool]:
    def make_pool() -> EnginePool:
        settings = EngineSettings(str(model), "float32", **SETTINGS, tensor_parallel_size=workers)
        return EnginePool(engines, settings, NEVER_S, events.append)

    def make_lane(address: str) -> Lane:
        return Lane(Transports(transport, address, bucket_nbytes=2**17, timeout_s=NEVER_S), delta=True)

    rollouts = RayRollouts(make_pool, make_lane, str)
    assert rollouts._pool is not None
    return rollouts, rollouts._pool


def observe(model: Path) -> dict[str, Any]:
    ray_cluster.connect("", cpus=3)
    editions, events = editions_of(model, 7), []
    alone = ColocatedRollouts(VllmEngine(EngineSettings(str(model), "float32", **SETTINGS)))

    def by_whole_weights(version: int) -> list[Any]:
        manifest = {name: tuple(tensor.shape) for name, tensor in editions[version].items()}
        alone.update_weights(Announcement(manifest, version), editions[version].items())
        return groups(alone)

    rollouts, pool = start(model, 2, 1, "auto", events)
    seen: dict[str, Any] = {"first": hand_over(rollouts, 1, editions[1])}
    assert rollouts._lanes is not None
    assert rollouts._lanes.lane is not None
    delta = rollouts._lanes.lane.delta
    assert delta is not None
    seen["changes"] = [hand_over(rollouts, version, editions[version]) for version in (2, 3)]
    seen["sampled"], seen["expected"] = groups(rollouts), by_whole_weights(3)

    delta._run = "another run"  # whose streams no worker has kept
    seen["unknown_base"] = hand_over(rollouts, 4, editions[4])

    # The sender believes that its engines hold a part of the new weights already.
    name = next(iter(editions[5]))
    delta._tensors[name].copy_(editions[5][name])
    seen["wrong_base"] = hand_over(rollouts, 5, editions[5])
    seen["events"] = events
    seen["sampled_by_new"], seen["expected_of_new"] = groups(rollouts), by_whole_weights(5)
    while len(pool.processes) < 2 or not pool.delivered:  # one may start later than the other
        rollouts.generate(RolloutRequest(PROMPTS[:1], 1, 3, 7, SamplingSettings(max_tokens=1)))
        time.sleep(CALL_S)
    seen["changes_to_new"] = hand_over(rollouts, 6, editions[6])
    seen["two_workers"] = two_workers(model, editions, lambda: by_whole_weights(3))
    return seen


def two_workers(model: Path, editions: list[Weights], expected: Callable[[], list[Any]]) -> dict[str, Any]:
    rollouts, _ = start(model, 1, 2, "collective", [])
    said = [hand_over(rollouts, version, editions[version]) for version in (1, 2, 3)]
    return {"said": said, "sampled": groups(rollouts), "expected": expected()}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(observe(Path(sys.argv[1]) / "a")))
    process_environment.leave(0)
