"""What pools of engines in Ray do, beside an engine in this process: ray_pool.py MODELS RESULT.

One of two engines through shared memory, then one of a single engine of two workers in a group of its own.

MODELS holds two small models, a and b, that hardly ever end a response.
"""

from megatron_rlpr.system import process_environment

if __name__ == "__main__":
    process_environment.ensure()

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from error_text import error_of
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_rlpr.rollout.engine import EngineSettings
from megatron_rlpr.rollout.ray import cluster as ray_cluster
from megatron_rlpr.rollout.ray.actor import HEARTBEAT, Request
from megatron_rlpr.rollout.ray.pool import EnginePool
from megatron_rlpr.rollout.ray.rollouts import RayRollouts
from megatron_rlpr.rollout.ray.scheduler import CALL_S
from megatron_rlpr.rollout.requests import RolloutRequest, SamplingSettings, group_requests
from megatron_rlpr.rollout.vllm.colocated import ColocatedRollouts
from megatron_rlpr.rollout.vllm.engine import VllmEngine
from megatron_rlpr.types import Prompt, RolloutGroup
from megatron_rlpr.weights.checksum import weights_checksum
from megatron_rlpr.weights.receiver import Announcement
from megatron_rlpr.weights.transports.choice import TransportName, Transports
from megatron_rlpr.weights.transports.lane import Lane

SAMPLING = SamplingSettings(temperature=0.7, max_tokens=150)
SETTINGS = {"max_model_len": 200, "max_num_seqs": 6, "kv_cache_gb": 0.1}
PROMPTS = [
    Prompt(
        index=20 + i,
        token_ids=tuple(range(200 + 10 * i, 240 + 10 * i)),
        messages=(),
        reference_answer="",
        data_source="sums",
    )
    for i in range(8)
]
STILL_S = 15.0
"""Without any computation an engine hangs: what the stopped one costs."""
NEVER_S = 600.0


def lane(transport: TransportName, address: str) -> Lane:
    return Lane(Transports(transport, address, bucket_nbytes=2**17, timeout_s=NEVER_S))


def plain(groups: list[RolloutGroup]) -> list[Any]:
    return [
        [g.prompt.index, [[r.seed, r.token_ids, r.engine_log_probs, r.weight_versions] for r in g.responses]]
        for g in groups
    ]


def log_probs_of(model: Path, prompt: tuple[int, ...], written: tuple[int, ...]) -> list[float]:
    """Of every written token, by transformers, under the sampling temperature."""
    ids = torch.tensor([[*prompt, *written]])
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(ids).logits[0]
    rows = torch.log_softmax(logits[len(prompt) - 1 : -1] / SAMPLING.temperature, -1)
    return rows.gather(1, ids[0, len(prompt) :, None])[:, 0].tolist()


def observe(models: Path) -> dict[str, Any]:
    ray_cluster.connect("", cpus=3)
    events: list[str] = []

    def make_pool() -> EnginePool:
        settings = EngineSettings(str(models / "a"), "float32", **SETTINGS)
        return EnginePool(2, settings, timeout_s=STILL_S, on_event=events.append)

    rollouts = RayRollouts(make_pool, partial(lane, "auto"), str)
    pool = rollouts._pool
    assert pool is not None
    alone = ColocatedRollouts(VllmEngine(EngineSettings(str(models / "a"), "float32", **SETTINGS)))
    tensors = {name: load_file(models / name / "model.safetensors") for name in "ab"}
    manifest = {name: tuple(tensor.shape) for name, tensor in tensors["a"].items()}
    cut = {name: tensor for name, tensor in tensors["b"].items() if "layers.1" not in name}

    def groups(of: Any, step: int, on_progress: Any = None) -> list[Any]:
        return plain(of.generate(RolloutRequest(PROMPTS, 3, step, 7, SAMPLING), on_progress))

    disturbed: list[int] = []

    def disturb(tokens: int, *_: int) -> None:
        """While both engines are at work, kill one and stop the other."""
        if tokens and not disturbed:
            disturbed.extend(pool.processes)
            os.kill(disturbed[0], signal.SIGKILL)
            os.kill(disturbed[1], signal.SIGSTOP)

    seen: dict[str, Any] = {"alone": groups(alone, 1), "pool": groups(rollouts, 1)}
    seen["unknown_token"] = error_of(
        lambda: rollouts.generate(RolloutRequest([Prompt(99, (1, 5000), (), "", "sums")], 1, 1, 7, SAMPLING))
    )
    seen["cut_manifest"] = error_of(
        lambda: rollouts.update_weights(Announcement({n: tuple(t.shape) for n, t in cut.items()}, 1), cut.items())
    )
    for version in (2, 3):  # twice: the second frees the first
        rollouts.update_weights(Announcement(manifest, version), tensors["b"].items())
    alone.update_weights(Announcement(manifest, 3), tensors["b"].items())
    seen |= {"alone_updated": groups(alone, 2), "pool_updated": groups(rollouts, 2), "version": rollouts.weight_version}

    seen["disturbed"] = groups(rollouts, 2, disturb)
    while len(pool.processes) < 2:  # a replacement starts while the other one is at work
        rollouts.generate(RolloutRequest(PROMPTS[:1], 1, 3, 7, SamplingSettings(max_tokens=1)))
        time.sleep(CALL_S)  # which leaves the machine to the one that starts
    seen["survivors"] = [
        pid for pid in disturbed if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]
    seen["events"] = events
    seen["after_replacements"] = groups(rollouts, 2)
    seen["heartbeats"] = heartbeats(pool)

    ticket = pool.begin(group_requests(RolloutRequest(PROMPTS, 3, 4, 7, SAMPLING)), SAMPLING)
    answers: list[Any] = []
    some_are_finished = threading.Event()

    def watch(_tokens: int, done: int, _total: int) -> None:
        if done:
            some_are_finished.set()

    worker = threading.Thread(target=lambda: answers.extend(pool.finish(ticket, watch)))
    worker.start()
    some_are_finished.wait()
    rollouts.update_weights(Announcement(manifest, 4), tensors["a"].items())
    worker.join()
    mixed = next((i for i, response in enumerate(answers) if len(response.weight_versions) == 2), None)
    seen["in_flight"] = [[r.weight_versions, len(r.token_ids), r.finish_reason] for r in answers]
    if mixed is not None:
        prompt, response = PROMPTS[mixed // 3].token_ids, answers[mixed]
        seen["mixed"] = {
            "engine": response.engine_log_probs,
            **{name: log_probs_of(models / name, prompt, response.token_ids) for name in "ab"},
        }
    seen["tensor_parallel"] = tensor_parallel(models, manifest, tensors, groups)
    return seen


def heartbeats(pool: EnginePool) -> list[float]:
    """Of an engine, as it was asked again and again in the middle of one call."""
    import ray

    actor = pool._scheduler.engines[0]._actor
    asked = [one for group in group_requests(RolloutRequest(PROMPTS, 3, 9, 7, SAMPLING)) for one in group]
    call = actor.advance.remote([Request(f"{n}th", one, SAMPLING) for n, one in enumerate(asked)], NEVER_S)
    heard = []
    while not ray.wait([call], timeout=0)[0]:
        heard.append(ray.get(actor.computed_s.options(concurrency_group=HEARTBEAT).remote()))
    return heard


def tensor_parallel(models: Path, manifest: Any, tensors: Any, groups: Callable[..., list[Any]]) -> dict[str, Any]:
    """Hand-overs by broadcasts to an engine of two workers; in the third one of them is killed."""
    events: list[str] = []

    def make_pool() -> EnginePool:
        settings = EngineSettings(str(models / "a"), "float32", **SETTINGS, tensor_parallel_size=2)
        return EnginePool(1, settings, timeout_s=NEVER_S, on_event=events.append)

    rollouts = RayRollouts(make_pool, partial(lane, "collective"), str)
    assert rollouts._pool is not None
    (engine,) = rollouts._pool.processes
    workers = [
        process.pid for process in psutil.Process(engine).children() if "Worker_TP" in "".join(process.cmdline())
    ]
    seen: dict[str, Any] = {"folder": groups(rollouts, 1), "workers": list(workers)}
    confirmed = [
        rollouts.update_weights(Announcement(manifest, version), tensors[name].items())
        for version, name in ((1, "a"), (2, "b"))
    ]
    seen["updated"] = groups(rollouts, 2)

    class Killing(dict[str, torch.Tensor]):
        """Tensors in whose first iteration a worker is killed."""

        def __iter__(self) -> Any:
            for number, named in enumerate(self.items()):
                if number == 5 and len(workers) == 2:
                    os.kill(workers.pop(), signal.SIGKILL)
                yield named

    confirmed.append(rollouts.update_weights(Announcement(manifest, 3), Killing(tensors["b"])))
    seen["right"] = [
        [c.version, c.checksums == (weights_checksum(tensors[n].items()),)]
        for c, n in zip(confirmed, "abb", strict=True)
    ]
    return {**seen, "after_a_kill": groups(rollouts, 2), "events": events, "replaced": rollouts.engines_replaced}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(observe(Path(sys.argv[1]))))
    process_environment.leave(0)
