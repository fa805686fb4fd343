"""The loss of wanted rows, against its formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_rlpr.actor.policy_gradient import LossTerms, RowValues, policy_gradient
from megatron_rlpr.types import TrainSequence, UserError

OLD, ENGINE = [[-1.0, -2.0], [-0.5]], [[-1.5, -1.0], [-3.0]]
CAP = 2.0


def sequences(engine: bool = True) -> list[TrainSequence]:
    return [
        TrainSequence(
            tuple(range(3 + len(old))),
            3,
            3 + len(old),
            np.array(old, np.float32),
            np.full(len(old), advantage, np.float32),
            engine_log_probs=np.array(written, np.float32) if engine else None,
        )
        for old, written, advantage in zip(OLD, ENGINE, (1.5, -0.5), strict=True)
    ]


def loss_and_gradient(values: RowValues, cap: float) -> tuple[float, list[list[float]]]:
    rows = torch.tensor([[-1.0, 0.3], [-2.0, 0.2], [-0.5, 0.1]], requires_grad=True)  # on-policy: every ratio is 1
    loss, _ = policy_gradient(rows, values, LossTerms(0.2, 0.27, 0.0, 0.01, 0.0, "low_var_kl", cap))
    loss.backward()
    assert rows.grad is not None
    return loss.item(), rows.grad.tolist()


def test_importance_sampling_weighs_the_policy_loss_of_every_token_and_nothing_else() -> None:
    loss, gradient = loss_and_gradient(RowValues.of(sequences(), [0.25, 0.5]), CAP)
    weights = np.minimum(np.exp(np.concatenate(OLD) - np.concatenate(ENGINE)), CAP)
    np.testing.assert_allclose(weights, [np.exp(0.5), np.exp(-1.0), CAP], rtol=1e-6)
    row_weights, advantages, entropy = (
        np.array([0.25, 0.25, 0.5]),
        np.array([1.5, 1.5, -0.5]),
        np.array([0.3, 0.2, 0.1]),
    )
    assert loss == pytest.approx(float((row_weights * (-advantages * weights - 0.01 * entropy)).sum()), rel=1e-6)
    np.testing.assert_allclose(np.array(gradient)[:, 0], -row_weights * advantages * weights, rtol=1e-6)
    np.testing.assert_allclose(np.array(gradient)[:, 1], -0.01 * row_weights, rtol=1e-6)


def test_without_a_cap_the_engines_log_probs_count_for_nothing() -> None:
    with_engine, without = (
        loss_and_gradient(RowValues.of(sequences(engine), [0.25, 0.5]), 0.0) for engine in (True, False)
    )
    assert with_engine == without


def test_selected_rows_keep_their_own_engine_log_probs() -> None:
    selected = RowValues.of(sequences(), [0.25, 0.5]).select(torch.tensor([2, 0]))
    assert selected.engine_log_probs is not None
    assert selected.engine_log_probs.tolist() == [-3.0, -1.5]


def test_a_cap_without_engine_log_probs_is_refused() -> None:
    with pytest.raises(UserError, match="importance_cap needs the engine's log-probs"):
        loss_and_gradient(RowValues.of(sequences(engine=False), [0.25, 0.5]), CAP)


def test_engine_log_probs_of_some_sequences_only_are_refused() -> None:
    mixed = [sequences()[0], sequences(engine=False)[1]]
    with pytest.raises(ValueError, match="either all sequences have engine log-probs or none"):
        RowValues.of(mixed, [0.25, 0.5])
