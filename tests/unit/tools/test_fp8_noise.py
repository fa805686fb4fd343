"""tools.fp8_noise: what it makes of labelled responses, and what it calls noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from megatron_rlpr.types import UserError
from tools.fp8_noise.__main__ import main
from tools.fp8_noise.noise import area_under_curve, changed_signs, compare_gradients, flipped_pairs, noise
from tools.fp8_noise.plot import svg
from tools.fp8_noise.responses import labelled_groups

TOKENIZER = Path(__file__).parents[2] / "goldens" / "tokenizers" / "bpe_chat"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TOKENIZER)


def row(question: str, response: str, **fields: Any) -> dict[str, Any]:
    return {"question": question, "response": response, "reference": "two", "correct": True, **fields}


def write(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_responses_to_a_question_become_a_group_in_the_format(tokenizer: Any, tmp_path: Path) -> None:
    options = ["one", "two"]
    rows = (
        row("1+1?", "We add. The answer is (B).", options=options, pred="B"),
        row("alone?", "nobody"),
        row("1+1?", "First line.\nSo three", correct=False),
    )
    labelled = labelled_groups(tokenizer, write(tmp_path / "r.jsonl", *rows), 10, longest=500)
    (group,) = labelled.groups
    texts = [response.text.removesuffix(tokenizer.eos_token) for response in group.responses]
    assert texts == [
        "<think> We add. </think> <answer> two </answer>",
        "<think> First line.\nSo three </think> <answer> So three </answer>",
    ]
    assert labelled.correct == (True, False)
    assert group.prompt.reference_answer == "two"
    assert tokenizer.decode(group.responses[0].token_ids) == group.responses[0].text


def test_the_limit_and_the_length_leave_whole_groups(tokenizer: Any, tmp_path: Path) -> None:
    rows = [row(f"{n}?", f"thought {m}" * (200 if n == 1 and m else 1)) for n in range(4) for m in range(2)]
    file = write(tmp_path / "r.jsonl", *rows)
    kept = labelled_groups(tokenizer, file, 5, longest=300)
    assert [group.prompt.messages[0]["content"] for group in kept.groups] == ["0?", "2?"]
    with pytest.raises(UserError, match="no question has two responses of at most 5 tokens"):
        labelled_groups(tokenizer, file, 8, longest=5)


@pytest.mark.parametrize(
    ("line", "fault"), [("{", "line 2: it is no JSON"), ('{"question": "?"}', "line 2: response, reference, correct")]
)
def test_a_bad_line_is_named(tokenizer: Any, tmp_path: Path, line: str, fault: str) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(json.dumps(row("?", "!")) + "\n" + line)
    with pytest.raises(UserError, match=fault):
        labelled_groups(tokenizer, file, 8, longest=100)


def test_flips_and_signs_are_counted_within_groups() -> None:
    reference, groups = np.array([0.1, 0.25, 0.3, 0.5, 0.4, np.nan, 0.9]), (3, 2, 2)
    found = np.array([0.1, 0.3, 0.15, 0.4, 0.5, np.nan, 0.1])
    assert flipped_pairs(found, reference, groups) == 2 / 4
    assert changed_signs(found, reference, groups) == 3 / 5
    assert flipped_pairs(reference, reference, groups) == changed_signs(reference, reference, groups) == 0


def test_the_area_counts_ties_half() -> None:
    assert area_under_curve(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False])) == 0.875
    assert np.isnan(area_under_curve(np.array([0.9]), np.array([True])))


def test_gradients_are_compared_as_one_vector() -> None:
    reference = [torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])]
    assert compare_gradients(reference, reference) == pytest.approx((1, 1))
    assert compare_gradients([2 * t for t in reference], reference) == pytest.approx((1, 2))
    turned = [torch.tensor([4.0]), torch.tensor([[0.0, -3.0]])]
    assert compare_gradients(turned, reference) == pytest.approx((0, 1))


def test_rows_without_a_splice_are_left_out() -> None:
    reference = np.array([0.5, np.nan, 0.2, 0.1])
    found = noise(np.array([0.6, np.nan, 0.2, 0.1]), reference, (2, 2), (True, True, True, False))
    assert found.mean_change == pytest.approx(0.1 / 3)
    assert (found.flips, found.auc, found.auc_lost) == (0, 1, 0)


def test_the_plot_has_a_row_and_a_dot_for_each() -> None:
    picture = ElementTree.fromstring(svg({"fp32": np.array([1e-4, 0.0, 2.0]), "mxfp8": np.array([0.01, 0.02])}))
    space = "{http://www.w3.org/2000/svg}"
    assert len(picture.findall(f"{space}circle")) == 5
    assert {"fp32", "mxfp8"} <= {text.text for text in picture.findall(f"{space}text")}


def test_without_transformer_engine_the_way_out_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(tmp_path), "--responses", str(tmp_path)]) == 2
    assert "choose --emulated on a CPU" in capsys.readouterr().err
