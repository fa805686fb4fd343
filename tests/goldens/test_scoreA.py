"""The base probability (the reference's scoreA): the same tokens are scored and aggregated to the same number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from golden_files import load, to_float
from golden_tokenizers import golden_tokenizer

from megatron_rlpr.reward.base_probability import base_requests
from megatron_rlpr.reward.probability import aggregate
from megatron_rlpr.types import Prompt, UserError

RUNS = load("scoreA.json")["runs"]
CASES = [
    pytest.param(run, case, id=f"{run['tokenizer']}-{case['ground_truth']!r}") for run in RUNS for case in run["cases"]
]


def recorded_log_prob(token: int, column: int) -> np.float32:
    """The log-prob that the golden run pretended its policy gave to a token at a column of the response."""
    return np.float32(-((7 * token + 13 * column) % 97) / 30)


@pytest.mark.parametrize(("run", "case"), CASES)
def test_base_probability_agrees_with_the_reference(run: dict[str, Any], case: dict[str, Any]) -> None:
    tokenizer = golden_tokenizer(run["tokenizer"])
    prompt_ids = tuple(tokenizer(run["prompt_text"], add_special_tokens=False)["input_ids"])
    prompt = Prompt(0, prompt_ids, (), case["ground_truth"], "golden")
    if "expected" not in case:
        with pytest.raises(UserError):
            base_requests(tokenizer, [prompt], 96)
        return

    (request,) = base_requests(tokenizer, [prompt], case["shapes"]["responses"][1])
    first = case["prompt_valid_len"]
    assert list(range(request.start - first, request.stop - first)) == case["gt_mask_positions"]
    assert list(request.token_ids[first:]) == case["response_valid_ids"][: request.stop - first]

    columns = range(request.start, request.stop)
    log_probs = np.array([recorded_log_prob(request.token_ids[i], i - first) for i in columns], dtype=np.float32)
    for name, value in case["expected"].items():
        assert aggregate(log_probs, name) == pytest.approx(to_float(value), rel=1e-5)
