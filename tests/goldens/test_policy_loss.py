"""The policy loss, its aggregation and its gradient give the reference's numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from golden_files import load

from megatron_rlpr.algorithm.aggregation import row_weights
from megatron_rlpr.algorithm.policy_loss import token_policy_loss

FILE = "policy_loss.json"
MAX_TOKENS = int(re.findall(r"max_tokens=(\d+)", load(FILE)["note"])[0])


def cases() -> Iterator[Any]:
    for number, case in enumerate(load(FILE)["cases"]):
        for setting in case["expected"]:
            yield pytest.param(case, setting, id=f"{number}-{setting}")


def clips(setting: str) -> tuple[float, float]:
    """ "clip=0.2_0.27" -> (0.2, 0.27); "clip=sym0.2" -> (0.2, 0.2)."""
    text = setting.removeprefix("clip=")
    low, _, high = text.removeprefix("sym").partition("_")
    return float(low), float(high or low)


@pytest.mark.parametrize(("case", "setting"), cases())
def test_loss_and_gradient_agree_with_the_reference(case: dict[str, Any], setting: str) -> None:
    clip, mode = setting.split("|")
    expected = case["expected"][setting]
    mask = torch.tensor(case["mask"]).bool()
    log_probs = torch.tensor(case["log_prob"], requires_grad=True)
    old = torch.tensor(case["old_log_prob"])
    weights = torch.tensor(row_weights(mask.sum(1).tolist(), mode, MAX_TOKENS)).float()

    loss, clipped = token_policy_loss(log_probs[mask], old[mask], torch.tensor(case["advantages"])[mask], *clips(clip))
    total = (loss * weights[:, None].expand(mask.shape)[mask]).sum()
    total.backward()

    assert total.item() == pytest.approx(expected["pg_loss"], rel=1e-5, abs=1e-7)
    assert clipped.float().mean().item() == pytest.approx(expected["pg_clipfrac"], abs=1e-6)
    assert (old - log_probs)[mask].mean().item() == pytest.approx(expected["ppo_kl"], rel=1e-5, abs=1e-6)
    torch.testing.assert_close(log_probs.grad, torch.tensor(expected["grad_log_prob"]), rtol=1e-5, atol=1e-7)
