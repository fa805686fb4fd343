"""A recipe is a file that ends and holds a plain tree of keys, an argument sets one key: all else is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from built_runs import SECONDS_A_CASE, outcome
from odd_values import WRONG_ARGUMENTS, WRONG_RECIPES
from time_limit import time_limit
from tiny_run import Place, as_arguments


@pytest.mark.parametrize("content", WRONG_RECIPES, ids=lambda content: repr(content[:24]))
def test_a_recipe_that_is_no_plain_tree_of_keys_is_refused(content: bytes, place: Place, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(content)
    with time_limit(SECONDS_A_CASE):
        assert str(recipe) in str(outcome([*as_arguments({}), f"--config={recipe}"], 1, place))


@pytest.mark.parametrize("argument", WRONG_ARGUMENTS, ids=lambda argument: repr(argument[:24]))
def test_an_argument_that_sets_no_key_is_refused(argument: str, place: Place) -> None:
    with time_limit(SECONDS_A_CASE):
        assert isinstance(outcome([*as_arguments({}), argument], 1, place), str)


def test_a_recipe_must_be_a_file_that_ends(place: Place, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), str(tmp_path), "a\0b", "x" * 5000):
        with time_limit(SECONDS_A_CASE):
            assert "--config" in str(outcome([f"--config={path}"], 1, place))
