"""The KL estimators, their gradients and the adaptive controller give the reference's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from golden_files import load

from megatron_rlpr.algorithm.kl import AdaptiveKL, token_kl
from megatron_rlpr.types import UserError

FILE = "kl.json"


def cases() -> Iterator[Any]:
    for number, case in enumerate(load(FILE)["cases"]):
        for kind in case["expected"]:
            yield pytest.param(case, kind, id=f"{number}-{kind}")


@pytest.mark.parametrize(("case", "kind"), cases())
def test_token_kl_agrees_with_the_reference(case: dict[str, Any], kind: str) -> None:
    log_probs = torch.tensor(case["logprob"], requires_grad=True)
    value = token_kl(log_probs, torch.tensor(case["ref_logprob"]), kind)
    value.sum().backward()

    torch.testing.assert_close(value.detach(), torch.tensor(case["expected"][kind]["value"]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        log_probs.grad, torch.tensor(case["expected"][kind]["grad_logprob_of_sum"]), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", load(FILE)["errors"])
def test_an_unknown_kind_is_refused_by_name(kind: str) -> None:
    with pytest.raises(UserError, match=f"kl_loss_type.*{kind}"):
        token_kl(torch.zeros(2), torch.zeros(2), kind)


def test_the_adaptive_controller_follows_the_reference() -> None:
    """Steps of the recorded sequence may be missing from a file: the value then jumps by what one step can do at
    most."""
    adaptive = load(FILE)["adaptive"]
    controller = AdaptiveKL(adaptive["init"], adaptive["target"], adaptive["horizon"])
    largest_change = 0.2 * max(step["n_steps"] for step in adaptive["seq"]) / adaptive["horizon"]
    followed = 0
    for step in adaptive["seq"]:
        controller.update([step["current_kl"]] * step["n_steps"])
        if controller.value == pytest.approx(step["value_after"], rel=1e-9):
            followed += 1
        else:
            assert controller.value == pytest.approx(step["value_after"], rel=largest_change)
            controller.load_state_dict({"value": step["value_after"]})
    assert followed >= 2
