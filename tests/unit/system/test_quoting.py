"""What is foreign is quoted on one line and in moderation."""

from __future__ import annotations

import pytest

from megatron_rlpr.system.quoting import LONGEST, quoted, reason


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, "a\nb" * 10**5, ["y"] * 10**5, {"k": "v" * 10**5}, [["z" * 10**5]] * 9, b"\n" * 10**5, 10**900],
)
def test_no_value_takes_more_than_its_share_of_one_line(value: object) -> None:
    assert len(quoted(value)) <= LONGEST
    assert "\n" not in quoted(value)


def test_small_values_are_shown_as_they_are() -> None:
    for value in ("a\n'b'", 4, None, ["a", {"b": 1.5}], ("system", "user")):
        assert quoted(value) == repr(value)


def test_a_reason_is_the_first_line_of_an_error_or_its_kind() -> None:
    assert reason(ValueError("no\nmore")) == "ValueError: no"
    assert reason(KeyError()) == "KeyError"
    assert len(reason(OSError("x" * 10**6))) == LONGEST
