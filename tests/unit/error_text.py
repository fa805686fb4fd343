"""What goes wrong, as text that a program can report."""

from __future__ import annotations

from collections.abc import Callable


def error_of(call: Callable[[], object]) -> str:
    """The kind and the message of what a call raises."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"
