r"""The content of the last \boxed{...} of a text."""

from __future__ import annotations


def last_boxed(text: str) -> str | None:
    r"""What the braces behind the last \boxed (else the last \fbox) enclose, stripped; None without one or when it is
    not closed."""
    place = text.rfind(r"\boxed")
    if place < 0:
        place = text.rfind(r"\fbox")
    if place < 0:
        return None
    start = text.find("{", place)
    # a stray closing brace before the first opening one leaves the count at zero too early: not closed, as far as the
    # reference can tell
    depth = -text.count("}", place, start) if start >= 0 else 0
    for position in range(start, len(text)) if start >= 0 else ():
        if text[position] == "{":
            depth += 1
        elif text[position] == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : position].strip()
    return None
