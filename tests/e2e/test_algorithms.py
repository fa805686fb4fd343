"""The algorithm's other paths train too: KL to a reference policy, greedy baselines, mixed rewards, carried surplus."""

from __future__ import annotations

import math

import pytest
from training_runs import Workplace

pytestmark = pytest.mark.e2e

SHORT = ["trainer.total_training_steps=2", "trainer.save_freq=1", "data.val_files=[]"]
VARIANTS = {
    "kl_in_the_loss": ["algorithm.kl_loss_coef=0.5"],
    "kl_in_the_reward": [
        "algorithm.kl_loss_coef=0.5",
        "algorithm.use_kl_loss=false",
        "algorithm.kl_ctrl_type=adaptive",
    ],
    "remax": ["algorithm.adv_estimator=remax"],
    "mixed_reward": ["reward.reward_manager=mix", "algorithm.adv_estimator=prstd_vrstd"],
}


@pytest.fixture(scope="module")
def trained(workplace: Workplace) -> None:
    """All variants are trained."""
    workplace.train_all({variant: (1, [*SHORT, *keys]) for variant, keys in VARIANTS.items()})


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_answers_alike_and_learns_otherwise(workplace: Workplace, undisturbed: str, variant: str) -> None:
    """The first step samples from the same policy with the same seeds; what it learns from the answers is the
    variant's."""
    first, second = workplace.metrics(variant)
    expected_first, expected_second = workplace.metrics(undisturbed)[:2]
    assert first["response_length/mean"] == expected_first["response_length/mean"]
    assert first["reward/reference_probability"] == pytest.approx(
        expected_first["reward/reference_probability"], rel=1e-5
    )
    assert second["actor/grad_norm"] != pytest.approx(expected_second["actor/grad_norm"], rel=1e-3)
    assert all(math.isfinite(step["actor/loss"]) for step in (first, second))
