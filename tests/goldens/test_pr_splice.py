"""Text-mode splices are the reference's, token for token; its padded tensors follow from ours."""

from __future__ import annotations

from typing import Any

import pytest
from corrections import correction
from golden_files import load
from golden_tokenizers import golden_tokenizer

from megatron_rlpr.config.schema import RewardConfig
from megatron_rlpr.reward.splice import Splice, SpliceLimits, splice_texts
from megatron_rlpr.types import Prompt, Response

FILE = "pr_splice.json"
GOLDEN = load(FILE)
LIMITS = SpliceLimits(GOLDEN["max_prompt_length"], GOLDEN["max_response_length"])
WIDTH = LIMITS.max_prompt_length + LIMITS.max_response_length
CASES = [(run, case) for run in GOLDEN["runs"] for case in run["cases"]]


def case_name(case: dict[str, Any]) -> str:
    """The case's id and what about it the reference gets wrong or does not need to do."""
    name = str(case["id"])
    if case["response_text"].endswith("<answer>"):
        name += "-with-nothing-after-the-answer-tag"
    if "<answer>" in case["ground_truth"]:
        name += "-with-an-answer-tag-in-the-reference"
    if name == case["id"] and not case["expected"]["gt_mask_positions_in_response"]:
        name += "-masked-out"
    return name


def spliced(run: dict[str, Any], ground_truth: str, response_ids: list[int]) -> Splice:
    tokenizer = golden_tokenizer(run["tokenizer"])
    prompt = Prompt(0, tuple(run["prompt_ids"]), (), ground_truth, "golden")
    response = Response(tuple(response_ids), tokenizer.decode(response_ids), (0.0,) * len(response_ids), "stop", 0)
    return splice_texts(
        tokenizer, [(prompt, response)], RewardConfig(format_mode=run["format_mode"], **run["options"]), LIMITS
    )[0]


def reference_layout(splice: Splice, tokenizer: Any) -> dict[str, Any]:
    """What the reference stores for a spliced sequence: split at the answer tag, padded left and right, with masks and
    positions."""
    window = LIMITS.max_response_length
    left, right = list(splice.token_ids[: splice.answer_tag]), list(splice.token_ids[splice.answer_tag :])[:window]
    left_pad, right_pad, valid = WIDTH - len(left), window - len(right), len(left) + len(right)
    scored = range(splice.start - splice.answer_tag, splice.stop - splice.answer_tag)
    pad = tokenizer.pad_token_id
    return {
        "prompt_valid_ids": left,
        "response_valid_ids": right,
        "gt_mask_positions_in_response": list(scored),
        "gt_token_ids": [right[i] for i in scored],
        "left_pad": left_pad,
        "right_pad": right_pad,
        "valid_position_ids_first_last": [0, valid - 1],
        "right_pad_position_ids_first_last": [valid, valid + right_pad - 1] if right_pad else None,
        "full_rows": {
            "input_ids_pr": [pad] * left_pad + left + right + [pad] * right_pad,
            "attention_mask_pr": [0] * left_pad + [1] * valid + [0] * right_pad,
            "position_ids_pr": [0] * left_pad + list(range(valid + right_pad)),
            "ground_truth_mask_pr": [int(i in scored) for i in range(window)],
        },
        "decoded_valid_tail": tokenizer.decode(left + right),
    }


@pytest.mark.parametrize(
    ("run", "case"),
    CASES,
    ids=[f"{r['tokenizer']}-{r['format_mode']}-{'+'.join(r['options']) or 'default'}-{c['id']}" for r, c in CASES],
)
def test_the_splice_is_the_references(run: dict[str, Any], case: dict[str, Any]) -> None:
    splice = spliced(run, case["ground_truth"], case["response_ids"])
    expected = case["expected"]
    tokenizer = golden_tokenizer(run["tokenizer"])
    corrected = correction(FILE, case_name(case))

    if corrected is not None and corrected[0] == "Q3":
        assert splice.request() is None, corrected
    elif corrected is not None and corrected[0] == "Q24" and splice.valid:
        assert expected["gt_mask_positions_in_response"] == []
        assert list(splice.token_ids) == expected["prompt_valid_ids"] + expected["response_valid_ids"], corrected
        assert case["ground_truth"] in tokenizer.decode(splice.token_ids[splice.start : splice.stop]), corrected
    elif not expected["gt_mask_positions_in_response"]:
        assert corrected is not None, "the reference makes a sequence that it then masks out"
        assert splice.request() is None, corrected
    else:
        layout = reference_layout(splice, tokenizer)
        for name, value in expected.items():
            if name == "decoded_valid_tail":
                assert layout[name].endswith(value)
            else:
                assert layout[name] == value, name
        request = splice.request()
        assert request is not None
        assert request.token_ids[request.start :] == tuple(expected["gt_token_ids"])


def overflow_run() -> dict[str, Any]:
    """The run whose prompt and tokenizer the overflow cases share (the file does not say which)."""
    members = [case["expected"] for case in GOLDEN["overflow_batch"]["cases"]]
    last_ids = {member["response_valid_ids"][-1] for member in members}

    def fits(run: dict[str, Any]) -> bool:
        prompt = run["prompt_ids"]
        same_prompt = all(member["prompt_valid_ids"][: len(prompt)] == prompt for member in members)
        return same_prompt and golden_tokenizer(run["tokenizer"]).eos_token_id in last_ids

    return next(filter(fits, GOLDEN["runs"]))


@pytest.mark.parametrize(
    ("case", "alone"),
    list(zip(GOLDEN["overflow_batch"]["cases"], GOLDEN["overflow_singles"], strict=True)),
    ids=[case["id"] for case in GOLDEN["overflow_batch"]["cases"]],
)
def test_an_overlong_row_does_not_spoil_its_batch(case: dict[str, Any], alone: dict[str, Any]) -> None:
    corrected = correction(FILE, f"overflow_batch-{case['id']}")
    assert corrected is not None
    assert case["expected"]["gt_mask_positions_in_response"] == [], "the reference masks every row of this batch"
    run = overflow_run()
    tokenizer = golden_tokenizer(run["tokenizer"])
    pairs = []
    for member in GOLDEN["overflow_batch"]["cases"]:
        ids = [*tokenizer(member["response_text"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        prompt = Prompt(0, tuple(run["prompt_ids"]), (), member["ground_truth"], "golden")
        pairs.append(
            (
                case["id"] == member["id"],
                (prompt, Response(tuple(ids), tokenizer.decode(ids), (0.0,) * len(ids), "stop", 0)),
            )
        )
    splices = splice_texts(tokenizer, [pair for _, pair in pairs], RewardConfig(format_mode=run["format_mode"]), LIMITS)
    splice = next(s for (mine, _), s in zip(pairs, splices, strict=True) if mine)

    assert splice.stop - splice.start == alone["gt_mask_sum"], corrected
    if splice.valid:
        layout = reference_layout(splice, tokenizer)
        assert len(splice.token_ids) == alone["valid_len"]
        for name in (
            "prompt_valid_ids",
            "response_valid_ids",
            "left_pad",
            "right_pad",
            "valid_position_ids_first_last",
        ):
            assert layout[name] == case["expected"][name], name
