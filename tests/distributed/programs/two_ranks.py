"""What programs of two trainer ranks with two engines in Ray have in common."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_rlpr.rollout.ray.rollouts import RayRollouts
from megatron_rlpr.rollout.ray.scheduler import CALL_S
from megatron_rlpr.rollout.requests import RolloutRequest, SamplingSettings
from megatron_rlpr.system import process_environment
from megatron_rlpr.types import Prompt


def nothing() -> None:
    """Happens."""


class Policy:
    """Weights that the ranks export together, as often as they are iterated; `at` does something at the sixth tensor of
    the next export, `at_end` when it is complete."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.exports = 0
        self.at: Callable[[], None] = nothing
        self.at_end: Callable[[], None] = nothing

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.exports += 1
        act, end, self.at, self.at_end = self.at, self.at_end, nothing, nothing
        for number, (name, tensor) in enumerate(self.tensors.items()):
            dist.barrier()  # as an exporter's gathers: a rank that is not there, or one export ahead, would hold all up
            if number == 5:
                act()
            yield name, tensor.contiguous()
        end()


def until_both_serve(rollouts: RayRollouts, prompt: Prompt) -> None:
    """Generate until every engine has started again and has the weights."""
    pool = rollouts._pool
    while True:
        rollouts.generate(RolloutRequest([prompt], 1, 9, 7, SamplingSettings(max_tokens=1)))
        time.sleep(CALL_S)  # which leaves the machine to those that start
        there = torch.tensor(int(pool is None or (len(pool.processes) == 2 and pool.delivered)))
        dist.all_reduce(there, op=dist.ReduceOp.MIN)
        if there:
            return


def report(observe: Callable[[Path, int], dict[str, Any]]) -> None:
    """Of a program that was started with MODELS RESULT: every rank writes RESULT.<rank>.json."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    Path(f"{sys.argv[2]}.{rank}.json").write_text(json.dumps(observe(Path(sys.argv[1]), rank)))
    process_environment.leave(0)
