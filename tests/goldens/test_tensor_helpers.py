"""The reference's small numerical helpers, where this project computes the same thing; the table of corrections names
the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from corrections import correction
from golden_files import load, to_float

from megatron_rlpr.actor.model.selected_head import VocabShard, selected_log_probs
from megatron_rlpr.algorithm.advantage import whiten
from megatron_rlpr.algorithm.aggregation import row_weights
from megatron_rlpr.reward.metrics import final_reward_distribution

FILE = "tensor_helpers.json"
GOLDEN: dict[str, Any] = load(FILE)["cases"]


def head_of(logits: list[Any], labels: list[Any] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies by the selected-row head; an identity output layer turns the logits into hidden
    states."""
    rows = torch.tensor(logits)
    vocabulary = rows.shape[-1]
    targets = torch.zeros(rows.shape[:-1], dtype=torch.int64) if labels is None else torch.tensor(labels)
    shard = VocabShard(0, vocabulary)
    out = selected_log_probs(rows.reshape(-1, vocabulary), torch.eye(vocabulary), targets.reshape(-1), shard, 1.0, 4)
    return out[:, 0].reshape(targets.shape), out[:, 1].reshape(targets.shape)


def check_entropy_from_logits(case: dict[str, Any]) -> None:
    torch.testing.assert_close(head_of(case["logits"])[1], torch.tensor(case["expected"]), rtol=1e-5, atol=1e-6)


def check_logprobs_from_logits(case: dict[str, Any]) -> None:
    torch.testing.assert_close(
        head_of(case["logits"], case["labels"])[0], torch.tensor(case["expected"]), rtol=1e-5, atol=1e-6
    )


def check_masked(case: dict[str, Any]) -> None:
    masks = np.array(case["mask"], dtype=bool)
    rows = [np.array(values)[mask] for values, mask in zip(case["values"], masks, strict=True)]
    lengths = [len(row) for row in rows]
    token_mean = sum(
        weight * row.sum() for weight, row in zip(row_weights(lengths, "token-mean", 0), rows, strict=True)
    )
    assert token_mean == pytest.approx(to_float(case["mean"]), rel=1e-5)
    assert [row.mean() for row in rows] == pytest.approx(case["mean_axis1"], rel=1e-5)
    # Whitened rows keep the overall mean out and have unit variance: undoing it with the recorded moments gives the
    # values back.
    for row, mask, expected in zip(whiten(rows), masks, case["whiten"], strict=True):
        assert list(row) == pytest.approx(list(np.array(expected)[mask]), rel=1e-4, abs=1e-5)
    assert np.var(np.concatenate(rows), ddof=1) == pytest.approx(to_float(case["var"]), rel=1e-5)


def check_final_reward_distribution(case: dict[str, Any]) -> None:
    assert final_reward_distribution(case["scores"]) == pytest.approx(case["expected"])


CHECKS = {
    "entropy_from_logits": check_entropy_from_logits,
    "logprobs_from_logits": check_logprobs_from_logits,
    "masked": check_masked,
    "final_reward_distribution": check_final_reward_distribution,
}


@pytest.mark.parametrize("name", list(GOLDEN))
def test_helper(name: str) -> None:
    without_counterpart = correction(FILE, name)
    if without_counterpart is None:
        CHECKS[name](GOLDEN[name])
    else:
        assert without_counterpart[0] == "not applicable"
        assert name not in CHECKS
