"""Foreign text in messages: on one line, and never more of it than a reader wants to see."""

from __future__ import annotations

from reprlib import Repr

LONGEST = 200
"""Characters of anything foreign that a message shows."""

_shown = Repr()
_shown.maxstring = _shown.maxother = _shown.maxlong = LONGEST


def quoted(value: object) -> str:
    """The value as Python writes it, at most LONGEST characters of it; of a long text, its beginning and its end."""
    return _cut(_shown.repr(value))


def reason(error: BaseException) -> str:
    """What an error of a library says, its kind included where that says more: one line, at most LONGEST characters."""
    lines = str(error).strip().splitlines() or [""]
    return _cut(f"{type(error).__name__}: {lines[0]}".removesuffix(": "))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
