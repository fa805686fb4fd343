"""Penalty for responses that repeat themselves (spec section 2.5)."""

from __future__ import annotations

from collections import Counter


def repetition_penalty(text: str, window: int = 10, limit: int = 10) -> float:
    """-1 when some run of `window` consecutive words occurs at least `limit` times, else 0.

    Words are split at white space and at "_" (empty words kept). Texts of at most `window` words are never penalised.
    """
    words = [word for piece in text.split() for word in piece.split("_")]
    if len(words) <= window:
        return 0.0
    # Every word of a window that occurs `limit` times occurs itself at least that often, so only windows made of frequent
    # words are counted: ordinary text has almost none.
    counts = Counter(words)
    windows: Counter[tuple[str, ...]] = Counter()
    run = 0
    for end, word in enumerate(words, start=1):
        run = run + 1 if counts[word] >= limit else 0
        if run >= window:
            candidate = tuple(words[end - window : end])
            windows[candidate] += 1
            if windows[candidate] >= limit:
                return -1.0
    return 0.0
