"""Penalty for responses that repeat themselves (spec section 2.5)."""

from __future__ import annotations

from collections import Counter


def repetition_penalty(text: str, window: int = 10, limit: int = 10) -> float:
    """-1 when some run of `window` consecutive words occurs at least `limit` times, else 0.

    Words are split at white space and at "_" (empty words kept). Texts of at most `window` words are never penalised.
    """
    words = text.split()
    if "_" in text:
        words = [word for piece in words for word in piece.split("_")]
    if len(words) <= window:
        return 0.0
    # Every word of a window that occurs `limit` times occurs itself at least that often, so only windows made of
    # frequent words are counted: ordinary text has almost none, and a search among bytes tells.
    frequent = {word for word, count in Counter(words).items() if count >= limit}
    is_frequent = bytes(map(frequent.__contains__, words))
    only_frequent = b"\x01" * window
    windows: Counter[tuple[str, ...]] = Counter()
    start = is_frequent.find(only_frequent)
    while start >= 0:
        candidate = tuple(words[start : start + window])
        windows[candidate] += 1
        if windows[candidate] >= limit:
            return -1.0
        start = is_frequent.find(only_frequent, start + 1)
    return 0.0
