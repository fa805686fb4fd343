"""How every tool ends: 0 when it did its work, 2 with one line on standard error when the user can fix the fault."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from megatron_rlpr.system.disk import refusal
from megatron_rlpr.types import UserError


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
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    return 0
