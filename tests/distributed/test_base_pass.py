"""The base probabilities are the same for any number of ranks, after a kill, and for the next run, which computes
nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from program_report import PROGRAMS
from transformers import LlamaConfig, LlamaForCausalLM
from warm_start import start

pytestmark = pytest.mark.distributed

TOKENIZER = Path(__file__).parents[1] / "goldens" / "tokenizers" / "bpe_chat"
CHUNK, PROMPTS, DIFFERENT = 16, 44, 34
WORLDS = (1, 2, 4)

Did = list[dict[str, Any]]
"""What each rank did, in rank order."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    vocabulary = json.loads((TOKENIZER / "tokenizer.json").read_text())
    words = len(vocabulary["model"]["vocab"]) + len(vocabulary["added_tokens"])
    config = LlamaConfig(**sizes, vocab_size=words, num_key_value_heads=2, initializer_range=0.1)
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in TOKENIZER.iterdir():
        shutil.copy(file, folder)
    return folder


def passed(model: Path, place: Path, ranks: int) -> Did:
    """A pass to its end."""
    place.mkdir(parents=True, exist_ok=True)
    arguments = [model, place, CHUNK, 0]
    status, output = start(str(PROGRAMS / "passing_ranks.py"), arguments, place / "log", ranks).end(600)
    assert status == 0, output[-4000:]
    return [json.loads((place / f"did_{rank}.jsonl").read_text().splitlines()[-1]) for rank in range(ranks)]


def killed(model: Path, place: Path, ranks: int, after: int) -> None:
    """A pass whose first rank is killed when so many pieces are stored."""
    place.mkdir(parents=True)
    arguments = [model, place, CHUNK, after]
    status, _ = start(str(PROGRAMS / "passing_ranks.py"), arguments, place / "log", ranks).end(600)
    assert status != 0
    assert not list(place.glob("did_*")), "no rank came to the end"


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, Did]]:
    """By number of ranks: the folder of a run, beside what it shares with others, and what it did."""
    places = {ranks: tmp_path_factory.mktemp(f"of_{ranks}") / "first" for ranks in WORLDS}
    return {ranks: (place, passed(model, place, ranks)) for ranks, place in places.items()}


def test_any_number_of_ranks_scores_the_same_and_comes_to_the_same_table(
    undisturbed: dict[int, tuple[Path, Did]],
) -> None:
    (_, (alone,)) = undisturbed[1]
    assert [len(piece) for piece in alone["scored"]] == [16, 16, 2], "what stands in a piece before is known"
    for ranks, (_, did) in undisturbed.items():
        assert [one["scored"] for one in did] == [alone["scored"]] * ranks
        assert [one["added"] for one in did] == [DIFFERENT] * ranks
        assert all(one["probabilities"] == did[0]["probabilities"] for one in did), "every bit, on every rank"
        # Another layout computes other sequences together, which fp32 rounds in another order.
        assert did[0]["probabilities"] == pytest.approx(alone["probabilities"], rel=1e-5), ranks
        assert all(0 < value < 1 for value in did[0]["probabilities"])


@pytest.mark.parametrize("ranks", WORLDS)
def test_every_prompt_is_tokenised_once_by_one_rank(undisturbed: dict[int, tuple[Path, Did]], ranks: int) -> None:
    shares = [one["tokenised"] for one in undisturbed[ranks][1]]
    assert sorted(row for share in shares for row in share) == list(range(DIFFERENT))
    assert max(map(len, shares)) <= DIFFERENT / ranks + 3, "one more in each piece at most"


def test_progress_counts_to_the_end(undisturbed: dict[int, tuple[Path, Did]]) -> None:
    for _, did in undisturbed.values():
        done, in_all = did[0]["progress"]
        assert done == in_all > 1


@pytest.mark.parametrize("after", [1, 2])
def test_a_killed_pass_goes_on_after_the_last_piece_and_comes_to_the_same_bits(
    model: Path, undisturbed: dict[int, tuple[Path, Did]], tmp_path: Path, after: int
) -> None:
    (_, truth), place = undisturbed[2], tmp_path / "killed"
    killed(model, place, 2, after)
    did = passed(model, place, 2)
    assert [one["scored"] for one in did] == [truth[0]["scored"][after:]] * 2
    assert [one["probabilities"] for one in did] == [truth[0]["probabilities"]] * 2


def test_the_next_run_computes_nothing_and_has_every_bit(model: Path, undisturbed: dict[int, tuple[Path, Did]]) -> None:
    place, truth = undisturbed[2]
    for ranks in (1, 4):
        did = passed(model, place.parent / f"next_{ranks}", ranks)
        assert [(one["scored"], one["tokenised"], one["added"]) for one in did] == [([], [], 0)] * ranks
        assert [one["probabilities"] for one in did] == [truth[0]["probabilities"]] * ranks
        shared = (place.parent / f"next_{ranks}" / "base.json").read_text()
        assert json.loads(shared) == json.loads((place / "base.json").read_text())
