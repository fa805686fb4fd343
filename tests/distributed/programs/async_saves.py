"""Two ranks that save while they train, killed again and again; see test_async_saves.py, which judges.

    python async_saves.py WORK SEED KILLS

Every rank is forked from this process. They train a small policy with a distributed optimizer and begin a checkpoint
after every update. An undisturbed start writes down a digest of all it has after every step. Each other start goes on
from the newest checkpoint, is killed at a random moment of a save, and says first what it went on with. Prints one JSON
line with what was found.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megatron_rlpr.actor import parallel
from megatron_rlpr.actor.checkpoint import CheckpointStore
from megatron_rlpr.actor.optimizer_state import optimizer_parts
from megatron_rlpr.actor.policy import MegatronPolicy
from megatron_rlpr.actor.policy_gradient import LossTerms
from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.types import TrainSequence, UserError
from megatron_rlpr.weights.architectures import model_shape

RANKS = 2
KEEP = 2
TERMS = LossTerms(clip_low=0.2, clip_high=0.27, dual_clip=0.0, entropy_coeff=0.01, kl_coef=0.0, kl_type="low_var_kl")
SHAPE = model_shape(
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": 2000,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64,
    }
)


def update(policy: MegatronPolicy, step: int) -> None:
    dice = np.random.default_rng(step)
    tokens = [tuple(int(token) for token in dice.integers(0, 2000, 12)) for _ in range(2)]
    ones = np.ones(6, dtype=np.float32)
    policy.update([TrainSequence(ids, 6, 12, -ones, ones) for ids in tokens], [1 / 12] * 2, TERMS, lr=1e-3)


def digest(policy: MegatronPolicy) -> str:
    """Of this rank's weights, their fp32 copies and averages."""
    found = hashlib.sha256()
    assert policy.optimizer is not None
    for chunk in policy.chunks:
        for tensor in chunk.parameters():
            found.update(tensor.detach().view(torch.uint8).numpy())
    for part in optimizer_parts(policy.optimizer):
        for state in part.optimizer.state.values():
            for tensor in state.values():
                found.update(tensor.detach().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def one_rank(rank: int, store: str, folder: Path, steps: int, events: int) -> None:
    """Go on from the newest checkpoint to step `steps`. Writes one JSON line for each thing that happens."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, RANKS), rank=rank, world_size=RANKS)
    actor = ActorConfig(dtype="float32", use_distributed_optimizer=True)
    policy = MegatronPolicy(SHAPE, actor, parallel.initialize(actor, seed=1), temperature=1.0)
    checkpoints = CheckpointStore(folder, SHAPE, keep_last=KEEP)

    def tell(what: str, **facts: Any) -> None:
        os.write(events, (json.dumps({"what": what, "rank": rank, **facts}) + "\n").encode())

    done = max(checkpoints.steps(), default=0)
    if done:
        problems = checkpoints.problems(done)
        checkpoints.load(done, policy)
        tell("resumed", step=done, digest=digest(policy), problems=problems, kept=checkpoints.steps())
    for step in range(done + 1, steps + 1):
        update(policy, step)
        checkpoints.settle(wait=False)
        tell("trained", step=step, digest=digest(policy))
        began = time.monotonic()
        checkpoints.save(step, policy, {"step": step}, in_background=True)
        tell("saving", step=step, blocked=time.monotonic() - began)
    checkpoints.settle()
    tell("ended", newest=checkpoints.steps())


def limited_rank(rank: int, store: str, folder: Path, events: int) -> None:
    """A save in the background that the system refuses in the middle of a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, RANKS), rank=rank, world_size=RANKS)
    actor = ActorConfig(dtype="float32")
    policy = MegatronPolicy(SHAPE, actor, parallel.initialize(actor, seed=1), temperature=1.0)
    checkpoints = CheckpointStore(folder, SHAPE, keep_last=KEEP)
    checkpoints.save(1, policy, {"step": 1}, in_background=True)
    checkpoints.settle()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
    checkpoints.save(2, policy, {"step": 2}, in_background=True)
    try:
        checkpoints.settle()
        said = ""
    except UserError as error:
        said = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    dist.barrier()
    left = sorted(path.name for path in folder.iterdir())
    os.write(events, (json.dumps({"rank": rank, "said": said, "left": left}) + "\n").encode())


class Start:
    """Ranks forked from this process, and what they tell."""

    def __init__(self, function: Any, work: Path, *arguments: Any) -> None:
        reader, writer = os.pipe()
        store = work / f"{time.monotonic_ns()}.store"
        self._ranks = mp.start_processes(
            function, (str(store), *arguments, writer), nprocs=RANKS, join=False, start_method="fork"
        )
        os.close(writer)
        self._lines = os.fdopen(reader)

    def events(self) -> Any:
        return map(json.loads, self._lines)

    def kill(self, victims: list[int]) -> None:
        for number in victims:
            os.kill(self._ranks.processes[number].pid, signal.SIGKILL)

    def end(self, dice: random.Random) -> None:
        """Kill one rank or both, then whoever is left."""
        self.kill(dice.choice([[0, 1], [0], [1]]))
        time.sleep(0.02)
        self.kill([0, 1])
        for process in self._ranks.processes:
            process.join()

    def join(self) -> None:
        while not self._ranks.join():
            continue


def undisturbed(work: Path, steps: int) -> tuple[dict[str, list[str]], float]:
    """Digests of both ranks after every step, and how long a save takes."""
    start = Start(one_rank, work, work / "undisturbed", steps)
    digests: dict[str, list[str]] = {}
    began: list[float] = []
    for event in start.events():
        if event["what"] == "trained":
            digests.setdefault(str(event["step"]), ["", ""])[event["rank"]] = event["digest"]
        if event["what"] == "saving" and event["rank"] == 0:
            began.append(time.monotonic())
    start.join()
    return digests, (began[-1] - began[0]) / (len(began) - 1)


def killed(work: Path, steps: int, kills: int, save_s: float, dice: random.Random) -> list[dict[str, Any]]:
    """What each start went on with, the last step that it trained, and the last whose save it began."""
    found: list[dict[str, Any]] = []
    for _ in range(kills):
        start = Start(one_rank, work, work / "killed", steps)
        told: dict[str, list[dict[str, Any]]] = {"resumed": [], "trained": [], "saving": []}
        for event in start.events():
            told[event["what"]].append(event)
            if [event["rank"] for event in told["saving"]].count(0) == 2:  # the first is complete: something to go on
                time.sleep(dice.uniform(0, save_s))
                break
        start.end(dice)
        for event in start.events():
            told[event["what"]].append(event)
        found.append(
            {
                "resumed": sorted(told["resumed"], key=lambda event: event["rank"]),
                "trained": max(event["step"] for event in told["trained"]),
                "saving": max(event["step"] for event in told["saving"]),
            }
        )
    return found


def main(work: Path, seed: str, kills: int) -> None:
    torch.set_num_threads(1)
    digests, save_s = undisturbed(work, 2 * kills + 4)
    report = {
        "digests": digests,
        "save_s": save_s,
        "starts": killed(work, 2 * kills + 4, kills, save_s, random.Random(seed)),
    }
    end = Start(one_rank, work, work / "killed", 2 * kills + 4)
    events = sorted(end.events(), key=lambda event: event["rank"])
    report["end"] = {what: [event for event in events if event["what"] == what] for what in ("resumed", "ended")}
    end.join()
    limited = Start(limited_rank, work, work / "limited")
    report["limited"] = list(limited.events())
    limited.join()
    print("RESULT " + json.dumps(report), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
