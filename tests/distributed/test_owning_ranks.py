"""What ranks make of the prompts that they own is what one rank makes of all, to the last bit."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from warm_start import start

from megatron_rlpr.rollout.store import forget_after, read_rollouts, read_table, stored_steps
from megatron_rlpr.types import UserError

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "programs" / "owning_ranks.py"
TOKENIZER = ROOT / "tests" / "goldens" / "tokenizers" / "bpe_chat"
WORLDS = {"1 rank": (1, 1), "4 ranks": (4, 4), "4 ranks on 2 nodes": (4, 2), "3 ranks on 3 nodes": (3, 1)}
EVERYWHERE = ("rewards", "kept", "without", "lengths", "carried", "spread", "goes_on")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[dict[str, Any]]]]:
    """Of every world the folder of its rollouts and what each of its ranks found."""
    made = {}
    for name, (ranks, of_node) in WORLDS.items():
        place = tmp_path_factory.mktemp("owners")
        environment = {"LOCAL_WORLD_SIZE": str(of_node)}
        status, output = start(str(PROGRAM), [TOKENIZER, place], place / "log", ranks, environment).end()
        assert status == 0, output[-4000:]
        found = [json.loads((place / f"found_{rank}.json").read_text()) for rank in range(ranks)]
        made[name] = place / "rollouts", found
    return made


@pytest.mark.parametrize("name", list(WORLDS)[1:])
def test_rewards_and_kept_groups_are_those_of_one_rank(worlds: dict[str, Any], name: str) -> None:
    (alone,) = worlds["1 rank"][1]
    for found in worlds[name][1]:
        for what in EVERYWHERE[:5]:
            assert found[what] == alone[what], what
        assert found["spread"] == [True, True, True]


@pytest.mark.parametrize("name", list(WORLDS)[1:])
def test_stored_rollouts_are_those_of_one_rank_with_a_file_a_node(worlds: dict[str, Any], name: str) -> None:
    folder, _ = worlds[name]
    whole = worlds["1 rank"][0]
    assert stored_steps(folder) == [3]
    assert read_table(folder, 3).equals(read_table(whole, 3))
    assert read_table(folder, 3, ["prompt", "reward"]).equals(read_table(whole, 3, ["prompt", "reward"]))
    assert read_rollouts(folder, 3) == read_rollouts(whole, 3)
    ranks, of_node = WORLDS[name]
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.parquet"))
    assert files == [*(f"node_{n}/step_000003.parquet" for n in range(1, ranks // of_node)), "step_000003.parquet"]


@pytest.mark.parametrize("name", list(WORLDS)[1:])
def test_the_answers_of_a_validation_are_graded_as_by_one_rank(worlds: dict[str, Any], name: str) -> None:
    folders = [worlds[world][0].parent / "validation" / "step_000000" for world in ("1 rank", name)]
    alone, shared = (pd.read_csv(f / "unit.sampling.csv", dtype=str, keep_default_na=False) for f in folders)
    assert shared.equals(alone)
    assert alone.accuracy.map(float).sum() == 6, "one of four, but that of prompt 2 is empty"


def test_every_text_is_with_one_rank_which_grades_it(worlds: dict[str, Any]) -> None:
    for _, found in worlds.values():
        owned = [rank["texts_here"] for rank in found]
        assert sorted(chain.from_iterable(owned)) == list(range(7))
        assert [rank["graded_here"] for rank in found] == owned


def test_an_owner_that_fails_stops_all_ranks_and_the_next_exchange_works(worlds: dict[str, Any]) -> None:
    for found in worlds["4 ranks"][1]:
        assert found["user"] == "UserError: a bad row"
        assert found["other"] == "RankError: grading failed on 1 of 4 ranks: rank 3: ValueError: a bug"
        assert found["goes_on"] == [0, 1, 2, 3]


def test_a_step_of_which_a_nodes_file_is_missing_is_refused_and_all_are_forgotten(worlds: dict[str, Any]) -> None:
    folder, _ = worlds["3 ranks on 3 nodes"]
    (folder / "node_2" / "step_000003.parquet").unlink()
    with pytest.raises(UserError, match=r"node_2/step_000003.parquet: missing, a part of step 3 of 3 nodes"):
        read_table(folder, 3)
    forget_after(folder, 2)
    assert not list(folder.rglob("*.parquet"))
