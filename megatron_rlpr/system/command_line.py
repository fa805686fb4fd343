"""How every tool ends: 0 when it did its work, 2 with one line on standard error when the user can fix the fault."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable

from megatron_rlpr.system.disk import refusal
from megatron_rlpr.types import UserError

SECONDS_FOR_THE_FIRST_RANK = 3
"""It speaks for all, and another only when the fault is its own, so that no line is printed twice: when the first has
ended, torchrun ends the others within so long."""


def tool_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m tools.<name>`, whose --help shows the module's own text."""
    return argparse.ArgumentParser(
        prog=f"python -m tools.{name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def exit_status(command: Callable[[], None]) -> int:
    """Run the command; a UserError, or what the system refuses, becomes one line on standard error and status 2.

    Anything else raises.
    """
    try:
        command()
    except (UserError, OSError) as error:
        mistake = error if isinstance(error, UserError) else refusal(error)
        if mistake is None:
            raise
        rank = int(os.environ.get("RANK", "0"))
        if rank:
            time.sleep(SECONDS_FOR_THE_FIRST_RANK)
        print(f"error{f' on rank {rank}' if rank else ''}: {mistake}", file=sys.stderr, flush=True)
        return 2
    return 0
