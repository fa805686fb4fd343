"""Train a policy with RLPR: torchrun --nproc-per-node N pretrain_rlpr.py --config FILE.yaml [section.key=value ...]."""

from megatron_rlpr.system import process_environment

if __name__ == "__main__":
    process_environment.ensure()

import os
import re
import sys
import time
import traceback

from megatron_rlpr.config.loading import load_config
from megatron_rlpr.system import stop_signals
from megatron_rlpr.system.command_line import SECONDS_FOR_THE_FIRST_RANK, exit_status

# What gloo says when another rank has ended; that one knows why.
LOST_A_RANK = re.compile(r"Connection (closed|reset) by peer|Broken pipe", re.IGNORECASE)


def main(argv: list[str]) -> int:
    """Parse, check, build, train. Returns the exit status: 0, 2 for a user's mistake, 128 + N after signal N."""
    try:
        return exit_status(lambda: train(argv))
    except stop_signals.Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(stopped, file=sys.stderr, flush=True)
        return stopped.exit_status


def train(argv: list[str]) -> None:
    """The whole run. Raises UserError or OSError for a user's mistake, Stopped when it was asked to end."""
    config = load_config(argv)
    from megatron_rlpr.config import checks

    checks.check(config, int(os.environ.get("WORLD_SIZE", "1")))
    from megatron_rlpr.run.build import build_parts
    from megatron_rlpr.trainer import Trainer

    parts = build_parts(config)
    with parts.tracker, parts.writer:
        Trainer(parts).run()


if __name__ == "__main__":
    stop_signals.listen()
    try:
        status = main(sys.argv[1:])
    except Exception as error:
        if LOST_A_RANK.search(str(error)):
            time.sleep(SECONDS_FOR_THE_FIRST_RANK)
        # Python's own end would wait for threads and helper processes, and the other ranks for this one.
        traceback.print_exc()
        status = 1
    process_environment.leave(status)
