"""One small model and data set for all end-to-end tests, and the run the others are compared with."""

from __future__ import annotations

import pytest
from tiny_policy import row, save_model, write_rows
from training_runs import Workplace


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("e2e")
    save_model(folder / "model")
    write_rows(folder / "train.parquet", [row(number) for number in range(120)])
    write_rows(folder / "val.parquet", [row(number) for number in range(200, 216)])
    return Workplace(folder)


@pytest.fixture(scope="session")
def undisturbed(workplace: Workplace) -> str:
    """The name of a run of six steps on one process that nothing happened to, started as a user does."""
    status, output = workplace.start("undisturbed", 0, "tracking.tensorboard=true", "trainer.export_hf=true")
    assert status == 0, output[-4000:]
    return "undisturbed"


@pytest.fixture(scope="session")
def replayed(workplace: Workplace, undisturbed: str) -> str:
    """The name of a run of six steps on the rollouts of that one."""
    workplace.train("replayed", 0, f"rollout.replay={workplace.run_folder(undisturbed) / 'rollouts'}")
    return "replayed"
