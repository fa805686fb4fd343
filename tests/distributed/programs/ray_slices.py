"""Two trainer ranks that send slices of the weights to two engines of two workers in Ray: torchrun ray_slices.py MODELS
RESULT.

MODELS holds two small models, a and b, that hardly ever end a response. Every rank writes RESULT.<rank>.json.
"""

from megatron_rlpr.system import process_environment

if __name__ == "__main__":
    process_environment.ensure()

import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from error_text import error_of
from safetensors.torch import load_file
from two_ranks import Policy, report, until_both_serve

from megatron_rlpr.rollout.engine import EngineSettings
from megatron_rlpr.rollout.ray import cluster as ray_cluster
from megatron_rlpr.rollout.ray.pool import EnginePool
from megatron_rlpr.rollout.ray.rollouts import RayRollouts
from megatron_rlpr.rollout.requests import RolloutRequest, SamplingSettings
from megatron_rlpr.rollout.vllm.slice_load import engine_places
from megatron_rlpr.types import Prompt
from megatron_rlpr.weights.architectures import model_shape
from megatron_rlpr.weights.checksum import weights_checksum
from megatron_rlpr.weights.engine_slices import EngineRank
from megatron_rlpr.weights.receiver import Announcement
from megatron_rlpr.weights.transports.choice import TransportName, Transports
from megatron_rlpr.weights.transports.lane import Lane

SAMPLING = SamplingSettings(temperature=0.7, max_tokens=40)
PROMPTS = [Prompt(20 + i, tuple(range(200 + 10 * i, 240 + 10 * i)), (), "", "sums") for i in range(4)]
STILL_S = 30.0
WORKERS = 2
Weights = dict[str, torch.Tensor]


def observe(models: Path, rank: int) -> dict[str, Any]:
    events: list[str] = []
    transport: list[TransportName] = ["auto"]
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    no_more_files: list[bool] = []

    def make_pool() -> EnginePool:
        ray_cluster.connect("", cpus=4)
        small = {"max_model_len": 100, "max_num_seqs": 6, "kv_cache_gb": 0.1}
        settings = EngineSettings(str(models / "a"), "float32", **small, tensor_parallel_size=WORKERS)
        return EnginePool(2, settings, timeout_s=STILL_S, on_event=events.append)

    def make_lane(address: str) -> Lane:
        if no_more_files and rank == 1:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, files[1]))
        return Lane(Transports(transport[0], address, bucket_nbytes=2**16, timeout_s=STILL_S), delta=True)

    shape = model_shape(json.loads((models / "a" / "config.json").read_text()))
    whole = {name: load_file(models / name / "model.safetensors") for name in "ab"}
    manifest = {name: tuple(tensor.shape) for name, tensor in whole["a"].items()}
    rollouts = RayRollouts(make_pool, make_lane, str)
    pool = rollouts._pool

    def slices(tensors: Weights, of: int) -> Weights:
        places = engine_places(shape, EngineRank(of, WORKERS))
        return {name: place.cut.of(tensors[name]) for name, place in places.items()}

    def hand_over(version: int, tensors: Weights, **acts: Callable[[], None]) -> dict[str, Any]:
        policy = Policy(slices(tensors, rank))
        for when, act in acts.items():
            setattr(policy, when, act)
        confirmed = rollouts.update_weights(Announcement(manifest, version, EngineRank(rank, WORKERS)), policy)
        assert confirmed.sent is not None
        expected = tuple(weights_checksum(slices(tensors, worker).items()) for worker in range(WORKERS))
        return {
            "right": (confirmed.version, confirmed.checksums) == (version, expected),
            "bytes": confirmed.sent.nbytes / sum(tensor.nbytes for tensor in tensors.values()),
            "exports": policy.exports,
        }

    def groups() -> list[Any]:
        asked = rollouts.generate(RolloutRequest(PROMPTS, 3, 2, 7, SAMPLING))
        return [
            [[r.seed, list(map(int, r.token_ids)), list(map(float, r.engine_log_probs))] for r in g.responses]
            for g in asked
        ]

    def kill_a_worker() -> None:
        """The second one of the first engine, which reads from the second rank's lane."""
        if pool is not None:
            children = psutil.Process(pool.processes[0]).children()
            (worker,) = [child for child in children if "Worker_TP1" in "".join(child.cmdline())]
            os.kill(worker.pid, signal.SIGKILL)

    def go_away() -> None:
        if rank == 1:
            raise OSError("the second rank cannot export")

    seen: dict[str, Any] = {"why_whole": rollouts.why_whole()}
    seen["first"] = hand_over(1, whole["b"])
    seen["by_slices"] = groups()
    dice = torch.Generator().manual_seed(5)
    moved = {name: torch.rand(tensor.shape, generator=dice) < 0.02 for name, tensor in whole["b"].items()}
    stepped = {name: torch.where(moved[name], tensor + 0.1, tensor) for name, tensor in whole["b"].items()}
    seen["changes"] = hand_over(2, stepped)
    seen["by_changes"] = groups()

    rollouts.update_weights(Announcement(manifest, 3), Policy(whole["b"]))
    seen["by_whole_tensors"] = groups()
    rollouts.update_weights(Announcement(manifest, 4), Policy(stepped))
    seen["by_whole_changed_tensors"] = groups()

    replaced = rollouts.engines_replaced
    seen["worker_killed"] = hand_over(5, whole["b"], at=kill_a_worker)
    seen["replaced"] = rollouts.engines_replaced - replaced
    until_both_serve(rollouts, PROMPTS[0])
    seen["after_it"] = groups()

    transport[0], rollouts._lanes = "collective", None
    seen["broadcast"] = hand_over(6, stepped)
    seen["worker_killed_in_a_group"] = hand_over(7, whole["b"], at=kill_a_worker)
    until_both_serve(rollouts, PROMPTS[0])
    seen["after_the_group"] = groups()
    seen["failing_export"] = error_of(lambda: hand_over(8, stepped, at_end=go_away))
    seen["next"] = hand_over(9, whole["b"])
    transport[0], rollouts._lanes = "auto", None
    no_more_files.append(True)
    seen["not_opened"] = error_of(lambda: hand_over(10, stepped))
    resource.setrlimit(resource.RLIMIT_NOFILE, files)
    seen["next_but_one"] = hand_over(11, stepped)
    until_both_serve(rollouts, PROMPTS[0])
    seen["after_the_next"] = groups()
    return {**seen, "events": events}


if __name__ == "__main__":
    report(observe)
