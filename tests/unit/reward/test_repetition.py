"""The repetition penalty, against counting every window."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.reward.repetition import repetition_penalty


def counted_plainly(text: str, window: int, limit: int) -> float:
    words = [part for word in text.split() for part in word.split("_")]
    windows = Counter(tuple(words[i : i + window]) for i in range(len(words) - window + 1))
    return -1.0 if len(words) > window and max(windows.values()) >= limit else 0.0


@settings(deadline=None)
@given(
    words=st.lists(st.sampled_from(["a", "b", "a_b", "_", "c"]), max_size=60),
    window=st.integers(1, 5),
    limit=st.integers(1, 6),
)
def test_the_penalty_is_that_of_counting_every_window(words: list[str], window: int, limit: int) -> None:
    text = " ".join(words)
    assert repetition_penalty(text, window, limit) == counted_plainly(text, window, limit)


def test_a_phrase_repeated_ten_times_is_penalised_and_nine_times_is_not() -> None:
    phrase = "one two three four five six seven eight nine ten "
    assert repetition_penalty(phrase * 10) == -1.0
    assert repetition_penalty(phrase * 9) == 0.0
    assert repetition_penalty(phrase.replace(" ", "_") * 10) == -1.0, "words joined by underscores count"
    assert repetition_penalty("word " * 19) == -1.0, "windows may overlap"
    assert repetition_penalty("word " * 10) == 0.0, "ten words hold one window"
