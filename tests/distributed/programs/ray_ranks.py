"""What two trainer ranks and a pool of two engines in Ray do when engines die at bad moments: torchrun ray_ranks.py
MODELS RESULT.

MODELS holds two small models, a and b, that hardly ever end a response. Every rank writes RESULT.<rank>.json.
"""

from megatron_rlpr.system import process_environment

if __name__ == "__main__":
    process_environment.ensure()

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from error_text import error_of
from safetensors.torch import load_file
from two_ranks import Policy, report, until_both_serve

from megatron_rlpr.rollout.engine import EngineSettings
from megatron_rlpr.rollout.ray import cluster as ray_cluster
from megatron_rlpr.rollout.ray.pool import EnginePool
from megatron_rlpr.rollout.ray.rollouts import RayRollouts
from megatron_rlpr.rollout.requests import RolloutRequest, SamplingSettings
from megatron_rlpr.types import Prompt
from megatron_rlpr.weights.checksum import weights_checksum
from megatron_rlpr.weights.receiver import Announcement
from megatron_rlpr.weights.transports.choice import Transports
from megatron_rlpr.weights.transports.lane import Lane

SAMPLING = SamplingSettings(temperature=0.7, max_tokens=200)
PROMPTS = [
    Prompt(
        index=20 + i,
        token_ids=tuple(range(200 + 10 * i, 240 + 10 * i)),
        messages=(),
        reference_answer="",
        data_source="sums",
    )
    for i in range(6)
]
STILL_S = 15.0
"""Without any computation an engine hangs, or without taking weights: what the stopped one costs."""


def observe(models: Path, rank: int) -> dict[str, Any]:
    events: list[str] = []

    def make_pool() -> EnginePool:
        ray_cluster.connect("", cpus=2)
        settings = EngineSettings(str(models / "a"), "float32", max_model_len=256, max_num_seqs=6, kv_cache_gb=0.1)
        return EnginePool(2, settings, timeout_s=STILL_S, on_event=events.append)

    def make_lane(address: str) -> Lane:
        return Lane(Transports("auto", address, bucket_nbytes=2**16, timeout_s=STILL_S))

    rollouts = RayRollouts(make_pool, make_lane, str)
    pool = rollouts._pool
    tensors = {name: load_file(models / name / "model.safetensors") for name in "ab"}
    manifest = {name: tuple(tensor.shape) for name, tensor in tensors["a"].items()}
    policies = {name: Policy(tensors[name]) for name in "ab"}

    def groups(step: int, on_progress: Any = None) -> list[Any]:
        return plain(rollouts.generate(RolloutRequest(PROMPTS, 2, step, 7, SAMPLING), on_progress))

    def plain(of: list[Any]) -> list[Any]:
        return [
            [g.prompt.index, [[r.seed, list(map(int, r.token_ids)), r.weight_versions] for r in g.responses]]
            for g in of
        ]

    def hand_over(policy: Policy, version: int) -> list[Any]:
        before = policy.exports
        confirmation = rollouts.update_weights(Announcement(manifest, version), policy)
        right = confirmation.checksums == (weights_checksum(policy.tensors.items()),)
        return [confirmation.version, right, policy.exports - before]

    def send(*signals: signal.Signals) -> Callable[[], None]:
        """One signal to each engine, on the first rank."""

        def act() -> None:
            for pid, what in zip(pool.processes if pool is not None else (), signals, strict=False):
                os.kill(pid, what)

        return act

    def at_work(act: Callable[[], None]) -> Callable[..., None]:
        done: list[bool] = []

        def on_progress(tokens: int, *_: int) -> None:
            if tokens and not done:
                done.append(True)
                act()

        return on_progress

    kill = send(signal.SIGKILL, signal.SIGKILL)

    def kill_at_work() -> None:
        while pool is not None and not any(engine.unfinished for engine in pool._scheduler.engines):
            time.sleep(0.001)
        kill()

    seen: dict[str, Any] = {"folder": groups(1), "version_0": hand_over(policies["b"], 0), "updated": groups(1)}

    exports = policies["b"].exports
    seen["killed_at_work"] = groups(1, at_work(kill))
    seen["exports_for_the_new"] = policies["b"].exports - exports
    until_both_serve(rollouts, PROMPTS[0])

    policies["a"].at = send(signal.SIGKILL)
    seen["one_killed_in_hand_over"] = hand_over(policies["a"], 1)
    seen["there_after_it"] = len(pool.processes) if pool is not None else 1
    seen["after_it"] = groups(1)
    until_both_serve(rollouts, PROMPTS[0])

    policies["b"].at = send(signal.SIGKILL, signal.SIGSTOP)
    seen["both_lost_in_hand_over"] = hand_over(policies["b"], 2)
    seen["after_both"] = groups(1)
    until_both_serve(rollouts, PROMPTS[0])

    rollouts.begin(RolloutRequest(PROMPTS, 2, 1, 7, SAMPLING))
    kill_at_work()
    seen["collected"] = plain(rollouts.collect())
    until_both_serve(rollouts, PROMPTS[0])

    rollouts.begin(RolloutRequest(PROMPTS, 2, 1, 7, SAMPLING))
    kill_at_work()
    seen["hand_over_to_the_new"] = hand_over(policies["a"], 3)
    seen["collected_after_it"] = plain(rollouts.collect())
    until_both_serve(rollouts, PROMPTS[0])

    seen["replaced"] = rollouts.engines_replaced
    policies["a"].tensors = tensors["b"]  # as if the policy had been trained meanwhile
    seen["changed"] = error_of(lambda: groups(1, at_work(kill)))
    return {**seen, "events": events, "exports": [policy.exports for policy in policies.values()]}


if __name__ == "__main__":
    report(observe)
