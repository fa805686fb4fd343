"""One of two ranks stops taking part: it raises ("error") or never joins the others ("silence"). Run by torchrun."""

from __future__ import annotations

import sys
import time

import torch
import torch.distributed as dist

from megatron_rlpr.actor import parallel
from megatron_rlpr.config.schema import ActorConfig

COLLECTIVE_TIMEOUT_S = 5


def main(fault: str) -> None:
    layout = parallel.initialize(ActorConfig(), seed=1, timeout_s=COLLECTIVE_TIMEOUT_S if fault == "silence" else 1800)
    dist.barrier()
    if layout.rank == 1:
        if fault == "error":
            raise RuntimeError("rank 1 broke")
        time.sleep(3600)  # far beyond the limit of the test
    dist.all_reduce(torch.ones(1))
    print("the collective came to an end", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
