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
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from megatron_rlpr.rollout.engine import EngineSettings
from megatron_rlpr.rollout.ray import cluster as ray_cluster
from megatron_rlpr.rollout.ray.pool import EnginePool
from megatron_rlpr.rollout.ray.rollouts import RayRollouts
from megatron_rlpr.rollout.ray.scheduler import CALL_S
from megatron_rlpr.rollout.requests import RolloutRequest, SamplingSettings
from megatron_rlpr.types import Prompt
from megatron_rlpr.weights.architectures import model_shape, parameter_table
from megatron_rlpr.weights.checksum import weights_checksum
from megatron_rlpr.weights.engine_slices import EngineRank, Slice, slices_of
from megatron_rlpr.weights.receiver import Announcement
from megatron_rlpr.weights.transports.choice import TransportName, Transports
from megatron_rlpr.weights.transports.lane import Lane

SAMPLING = SamplingSettings(temperature=0.7, max_tokens=40)
PROMPTS = [Prompt(20 + i, tuple(range(200 + 10 * i, 240 + 10 * i)), (), "", "sums") for i in range(4)]
STILL_S = 30.0
WORKERS = 2
Weights = dict[str, torch.Tensor]


def error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


class Policy:
    """Weights that the ranks export together; `at` does something at the sixth tensor of the next export, `at_end` when
    it is complete."""

    def __init__(self, tensors: Weights) -> None:
        self.tensors = tensors
        self.exports = 0
        self.at = self.at_end = lambda: None

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.exports += 1
        (act, self.at), (end, self.at_end) = (self.at, lambda: None), (self.at_end, lambda: None)
        for number, (name, tensor) in enumerate(self.tensors.items()):
            dist.barrier()  # as an exporter's gathers
            if number == 5:
                act()
            yield name, tensor.contiguous()
        end()


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
        cuts: list[Slice] = [
            cut
            for mapping in parameter_table(shape)
            if not mapping.is_copy
            for cut in slices_of(mapping, EngineRank(of, WORKERS))
        ]
        return {cut.name: cut.of(tensors[cut.name]) for cut in cuts}

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

    def both_there() -> None:
        while True:
            rollouts.generate(RolloutRequest(PROMPTS[:1], 1, 9, 7, SamplingSettings(max_tokens=1)))
            time.sleep(CALL_S)
            there = torch.tensor(int(pool is None or (len(pool.processes) == 2 and pool.delivered)))
            dist.all_reduce(there, op=dist.ReduceOp.MIN)
            if there:
                return

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
    stepped = {name: torch.where(torch.rand(t.shape) < 0.02, t + 0.1, t) for name, t in whole["b"].items()}
    for tensor in stepped.values():
        dist.broadcast(tensor, 0)
    seen["changes"] = hand_over(2, stepped)
    seen["by_changes"] = groups()

    rollouts.update_weights(Announcement(manifest, 3), Policy(whole["b"]))
    seen["by_whole_tensors"] = groups()
    rollouts.update_weights(Announcement(manifest, 4), Policy(stepped))
    seen["by_whole_changed_tensors"] = groups()

    replaced = rollouts.engines_replaced
    seen["worker_killed"] = hand_over(5, whole["b"], at=kill_a_worker)
    seen["replaced"] = rollouts.engines_replaced - replaced
    both_there()
    seen["after_it"] = groups()

    transport[0], rollouts._lanes = "collective", None
    seen["broadcast"] = hand_over(6, stepped)
    seen["worker_killed_in_a_group"] = hand_over(7, whole["b"], at=kill_a_worker)
    both_there()
    seen["after_the_group"] = groups()
    seen["failing_export"] = error_of(lambda: hand_over(8, stepped, at_end=go_away))
    seen["next"] = hand_over(9, whole["b"])
    transport[0], rollouts._lanes = "auto", None
    no_more_files.append(True)
    seen["not_opened"] = error_of(lambda: hand_over(10, stepped))
    resource.setrlimit(resource.RLIMIT_NOFILE, files)
    seen["next_but_one"] = hand_over(11, stepped)
    both_there()
    seen["after_the_next"] = groups()
    return {**seen, "events": events}


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    number = dist.get_rank()
    Path(f"{sys.argv[2]}.{number}.json").write_text(json.dumps(observe(Path(sys.argv[1]), number)))
    process_environment.leave(0)
