"""Counts this rank's open files and sockets before and after its groups are made: connected_ranks.py PLACE TP PP."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist

from megatron_rlpr.actor import parallel
from megatron_rlpr.actor.group_sizes import group_sizes
from megatron_rlpr.config.schema import ActorConfig
from megatron_rlpr.system.descriptors import of_groups


def open_now() -> int:
    return len(os.listdir("/proc/self/fd"))


if __name__ == "__main__":
    place, tensor, pipeline = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    actor = ActorConfig(tensor_model_parallel_size=tensor, pipeline_model_parallel_size=pipeline)
    before = open_now()
    layout = parallel.initialize(actor, 1, 120)
    dist.barrier()
    found = {"added": open_now() - before, "told": of_groups(group_sizes(actor, layout.world_size))}
    (place / f"found_{layout.rank}.json").write_text(json.dumps(found))
    dist.barrier()
