"""What depends on time or on a disk is decided once: ranks that see different things do the same."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig
from warm_start import start

from megatron_rlpr.reward.base_table import BaseProbabilityTable
from megatron_rlpr.run.folder import RunFolder
from megatron_rlpr.system import sealed_folder
from megatron_rlpr.types import Prompt
from megatron_rlpr.weights.architectures import model_shape
from megatron_rlpr.weights.hf_folder import HfFolder

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "programs" / "first_rank_decides.py"
TOKENIZER = ROOT / "tests" / "goldens" / "tokenizers" / "bpe_chat"
SETTINGS = {
    "model": "model",
    "tokenizer": "tokenizer",
    "max_response_length": 512,
    "dtype": "bfloat16",
    "temperature": 1.0,
    "compute_score_name": "mean_exp_log_softmax",
}


def write_checkpoint(folder: Path, model: Path) -> None:
    """The small files by which a checkpoint is known to be complete."""
    (folder / "megatron").mkdir(parents=True)
    for name in ("metadata.json", ".metadata"):
        (folder / "megatron" / name).touch()
    (folder / "model_shape.json").write_text(json.dumps(asdict(model_shape(HfFolder(str(model)).config()))))
    (folder / "run_state.json").write_text("{}")
    sealed_folder.seal(folder, {}, {name: sealed_folder.sha256(folder / name) for name in sealed_folder.files(folder)})


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found in its own folder, in rank order."""
    place = tmp_path_factory.mktemp("ranks")
    config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(place / "model")
    for rank, steps in ((0, (3,)), (1, (3, 6))):
        folder = RunFolder(place / str(rank))
        for step in steps:
            write_checkpoint(folder.checkpoints / f"step_{step:06d}", place / "model")
        table = BaseProbabilityTable(SETTINGS, folder.base_probabilities("train"))
        table.record([Prompt(rank, (rank,), (), "", "")], [0.5])
        table.save()
    status, output = start(str(PROGRAM), [TOKENIZER, place, place / "model"], place / "log", ranks=2).end()
    assert status == 0, output[-4000:]
    return [json.loads((place / str(rank) / "found.json").read_text()) for rank in range(2)]


def test_a_grader_that_runs_out_of_time_on_one_rank_changes_no_reward(found: list[dict[str, Any]]) -> None:
    first, second = (line["grading"] for line in found)
    assert first == [[1.0, 0.0], True]
    assert second == [[1.0, 0.0], False], "the second rank has no time to grade, and need not"


def test_ranks_that_see_different_folders_go_on_from_the_same_step(found: list[dict[str, Any]]) -> None:
    assert [line["folders"] for line in found] == [[3, [1, 2]]] * 2


def test_what_one_rank_refuses_is_refused_on_all(found: list[dict[str, Any]]) -> None:
    expected = "trainer.resume=never, but /0/checkpoints/step_000003 is a checkpoint of an earlier run"
    assert [line["refusal"] for line in found] == [expected] * 2


def test_content_that_differs_between_ranks_stops_all_of_them(found: list[dict[str, Any]]) -> None:
    expected = "step 3: rewards differ between ranks: rank 1 has others than rank 0"
    assert [line["content"] for line in found] == [expected] * 2


def test_groups_of_our_own_are_as_patient_as_the_world(found: list[dict[str, Any]]) -> None:
    assert [line["patience"] for line in found] == [77.0] * 2
