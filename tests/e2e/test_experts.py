"""A mixture of experts is trained, spread over ranks or not, with engines that follow every update."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_policy import row, save_model, write_rows
from training_runs import Workplace

pytestmark = pytest.mark.e2e

STEPS, SPREAD_STEPS = 3, 2


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder: Path = tmp_path_factory.mktemp("experts")
    save_model(folder / "model", num_hidden_layers=2, experts=4)
    write_rows(folder / "train.parquet", [row(number) for number in range(120)])
    return Workplace(folder)


def test_spread_experts_train_alike_and_go_on_in_one_process(mixture: Workplace) -> None:
    all_steps = ["data.val_files=[]", f"trainer.total_training_steps={STEPS}"]
    spread = [*all_steps, f"trainer.total_training_steps={SPREAD_STEPS}", "actor.expert_model_parallel_size=2"]
    mixture.train_all({"alone": (0, all_steps), "moved": (2, spread)})
    mixture.train("moved", 0, *all_steps)
    alone, moved = mixture.metrics("alone"), mixture.metrics("moved")
    assert [step["step"] for step in moved] == list(range(1, STEPS + 1))
    for step, other in zip(moved, alone, strict=True):
        for metric in ("actor/loss", "actor/grad_norm", "reward/mean"):
            assert step[metric] == pytest.approx(other[metric], rel=1e-4, abs=1e-6), (step["step"], metric)
    # Engine and actor are two implementations of the same weights: a stale or misplaced expert shows here.
    assert max(step["rollout/log_prob_gap_max"] for step in (*alone, *moved)) < 1e-4
    assert min(step["actor/grad_norm"] for step in alone) > 0.01
