"""Train a policy with RLPR: torchrun --nproc-per-node N pretrain_rlpr.py --config FILE.yaml [section.key=value ...]."""

from megatron_rlpr.system import process_environment

if __name__ == "__main__":
    process_environment.ensure()

import os
import sys
import time
import traceback

from megatron_rlpr.config.loading import load_config
from megatron_rlpr.types import UserError

# The first rank speaks for all; another rank speaks only when its mistake is its own, so that no line is printed twice.
SECONDS_FOR_THE_FIRST_RANK = 3


def main(argv: list[str]) -> int:
    """Parse, check, build, train. Returns the exit status: 0, or 2 for a user's mistake."""
    rank = int(os.environ.get("RANK", "0"))
    try:
        config = load_config(argv)
        from megatron_rlpr.config import checks

        checks.check(config, int(os.environ.get("WORLD_SIZE", "1")))
        from megatron_rlpr.run.build import build_parts
        from megatron_rlpr.trainer import Trainer

        parts = build_parts(config)
        with parts.tracker:
            Trainer(parts).run()
    except UserError as error:
        if rank:
            time.sleep(SECONDS_FOR_THE_FIRST_RANK)
        print(f"error{f' on rank {rank}' if rank else ''}: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    try:
        status = main(sys.argv[1:])
    except Exception:
        # Python's own end would wait for threads and helper processes, and the other ranks for this one.
        traceback.print_exc()
        status = 1
    process_environment.leave(status)
