"""Every number and every text has a range: it holds the default, --help says it, and a value outside is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from documented_ranges import RANGES
from tiny_run import Place, as_arguments

from megatron_rlpr.config.checks import check
from megatron_rlpr.config.keys import all_keys
from megatron_rlpr.config.loading import load_config
from megatron_rlpr.types import UserError


def test_every_number_and_text_and_nothing_else_has_a_range_that_holds_its_default() -> None:
    open_ended = [key for key in all_keys().values() if key.annotation in (int, float, str, list[str])]
    assert {key.full_name for key in open_ended} == {key.full_name for key in all_keys().values() if key.bounds}
    assert [key.full_name for key in open_ended if not key.bounds.hold(key.default)] == []


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("rollout.top_k", [-1, 1, 50], [0, -2]),
        ("rollout.top_p", [1e-9, 1.0], [0.0, 1.1]),
        ("reward.format_coefficient", [0.0, 1.0, -1.0], [-0.1, 1.1]),
        ("algorithm.clip_ratio_dual", [0.0, 1.001], [1.0, -1.0]),
        ("actor.adam_beta1", [0.0, 0.999], [1.0]),
        ("trainer.save_freq", [-1, 0, 5], [-2]),
    ],
)
def test_ranges(name: str, inside: list[float], outside: list[float]) -> None:
    bounds = all_keys()[name].bounds
    assert all(bounds.hold(value) for value in inside)
    assert not any(bounds.hold(value) for value in outside)


def test_help_documents_both_ends_of_every_number_and_the_length_of_every_text() -> None:
    for key in all_keys().values():
        if key.annotation in (int, float):
            found = RANGES[key.full_name]
            assert -math.inf < found.low < found.high < math.inf, key.full_name
        elif key.annotation in (str, list[str]):
            assert RANGES[key.full_name].longest > 0, key.full_name


@pytest.mark.parametrize("name", sorted(RANGES))
def test_a_value_just_outside_its_range_is_refused_by_the_name_of_its_key(name: str, place: Place) -> None:
    key, found = all_keys()[name], RANGES[name]
    if found.longest:
        beyond: list[Any] = [
            "x" * (found.longest + 1),
            *(["y" * (found.longest_part + 1)] if found.longest_part else []),
        ]
        beyond = [[text] for text in beyond] if key.annotation == list[str] else beyond
    elif key.annotation is int:
        beyond = [int(found.low) - (not found.low_open), int(found.high) + 1, 2**63, 10**23]
    else:
        beyond = [found.low if found.low_open else math.nextafter(found.low, -math.inf)]
        beyond += [found.high if found.high_open else math.nextafter(found.high, math.inf), 1e17]
    for value in beyond:
        if found.allows(value):
            continue
        config = load_config(as_arguments({}))
        key.set(config, value)
        with pytest.raises(UserError) as refused:
            check(config, 1)
        assert str(refused.value).startswith(f"{name}="), value
