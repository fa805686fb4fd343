"""One call a step reaches every place numbers go; nothing secret does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_rlpr.config.loading import resolved
from megatron_rlpr.config.schema import Config
from megatron_rlpr.run.folder import RunFolder
from megatron_rlpr.tracking.tracker import Tracker
from megatron_rlpr.tracking.wandb_sink import check, wanted
from megatron_rlpr.types import UserError

SECRETS = {
    "WANDB_API_KEY": "sentinel0wandb0" + "5e" * 14,
    "OPENAI_API_KEY": "sentinel0openai",
    "HF_TOKEN": "sentinel0hub",
}


@pytest.fixture
def config() -> Config:
    config = Config()
    config.tracking.tensorboard = False
    config.trainer.total_training_steps = 6
    return config


def steps(config: Config, folder: Path, first: int, last: int, rank: int = 0) -> None:
    with Tracker(config, RunFolder(folder), resolved(config), first - 1, rank=rank) as tracker:
        for step in range(first, last + 1):
            tracker.log_step(step, {"reward/mean": step / 10, "actor/grad_norm": float("nan")})
        tracker.log_evaluation(last, {"val/held_out/greedy/reward": 0.5})


def test_a_resumed_run_leaves_the_same_logs(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps(config, tmp_path / "whole", 1, 6)
    steps(config, tmp_path / "resumed", 1, 4)
    steps(config, tmp_path / "resumed", 4, 6)
    for name in ("metrics.jsonl", "validation.jsonl"):
        assert (tmp_path / "resumed" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert [json.loads(line)["step"] for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    assert capsys.readouterr().out.splitlines()[5].startswith("step 6/6  reward  0.600")


def test_a_validation_that_is_done_again_takes_the_place_of_its_record(config: Config, tmp_path: Path) -> None:
    for resumed_at in (0, 0, 2, 2):
        with Tracker(config, RunFolder(tmp_path), resolved(config), resumed_at) as tracker:
            if resumed_at == 0:
                tracker.log_evaluation(0, {"val/held_out/greedy/reward": 0.25})
            tracker.log_evaluation(2, {"val/held_out/greedy/reward": 0.5})
            tracker.log_evaluation(4, {"val/held_out/greedy/reward": 0.75})
    lines = (tmp_path / "validation.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": step, "val/held_out/greedy/reward": reward} for step, reward in ((0, 0.25), (2, 0.5), (4, 0.75))
    ]


def test_only_the_first_rank_writes(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.tracking.tensorboard = config.tracking.wandb = True
    steps(config, tmp_path / "run", 1, 2, rank=1)
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_closing_twice_is_allowed(config: Config, tmp_path: Path) -> None:
    tracker = Tracker(config, RunFolder(tmp_path), resolved(config))
    tracker.close()
    tracker.close()


def test_tensorboard_forgets_the_steps_after_the_resumed_one(config: Config, tmp_path: Path) -> None:
    config.tracking.tensorboard = True
    with Tracker(config, RunFolder(tmp_path), resolved(config)) as tracker:
        for step in (1, 2, 3):
            tracker.log_step(step, {"reward/mean": 1.0, "actor/loss": float("inf")})
    with Tracker(config, RunFolder(tmp_path), resolved(config), 1) as tracker:
        tracker.log_step(2, {"reward/mean": 2.0})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(1, 1.0), (2, 2.0)]
    assert events.Tags()["scalars"] == ["reward/mean"], "numbers that are not finite are left out"


RUN_WITH_WANDB = """
import sys
from megatron_rlpr.config.schema import Config
from megatron_rlpr.config.loading import resolved
from megatron_rlpr.run.folder import RunFolder
from megatron_rlpr.tracking.tracker import Tracker
from pathlib import Path

folder, resume_step = sys.argv[1], int(sys.argv[2])
config = Config()
config.tracking.tensorboard = False
with Tracker(config, RunFolder(Path(folder)), resolved(config), resume_step, total_steps=6) as tracker:
    for step in range(resume_step + 1, resume_step + 3):
        tracker.log_step(step, {"reward/mean": step / 10, "actor/grad_norm": float("nan")})
"""


def run_with_wandb(folder: Path, resume_step: int, **environment: str) -> subprocess.CompletedProcess[str]:
    """Two steps in a new process: wandb keeps what it saw of the environment for the life of a process."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    command = [sys.executable, "-c", RUN_WITH_WANDB, str(folder), str(resume_step)]
    environment = {**inherited, "USE_WANDB": "true", **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)


def test_wandb_works_offline_keeps_its_run_and_no_secret(tmp_path: Path) -> None:
    ids, shown = [], ""
    for resume_step in (0, 1, 0):
        result = run_with_wandb(tmp_path, resume_step, WANDB_MODE="offline", **SECRETS)
        assert result.returncode == 0, result.stderr
        ids.append((tmp_path / "wandb_run_id").read_text().strip())
        shown += result.stdout + result.stderr
    assert ids[0] == ids[1], "a resumed run goes on in its wandb run"
    assert ids[0] != ids[2], "a new run in an old folder is a new wandb run"

    stored = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert sorted(path.name for path in stored) == sorted(f"run-{run_id}.wandb" for run_id in ids)
    for path in stored:
        assert b"reward/mean" in path.read_bytes()
        assert b"tensor_model_parallel_size" in path.read_bytes(), "the resolved configuration is there"
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name, secret in SECRETS.items():
        assert [path for path, content in written.items() if secret.encode() in content] == [], name
        assert secret not in shown, name


def test_wandb_without_a_login_is_a_user_error(tmp_path: Path) -> None:
    nowhere = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_BASE_URL": "http://127.0.0.1:9"}
    result = run_with_wandb(tmp_path / "run", 0, WANDB_MODE="online", **nowhere)
    assert result.returncode == 1
    assert "UserError: Weights & Biases cannot start" in result.stderr
    assert "or set WANDB_MODE=offline" in result.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_setting_of_wandb_in_the_environment_that_is_wrong_is_a_user_error_without_its_value(tmp_path: Path) -> None:
    result = run_with_wandb(tmp_path, 0, WANDB_MODE="offline", WANDB_INIT_TIMEOUT="sentinel0")
    assert result.stderr.splitlines()[-1].startswith(
        "megatron_rlpr.types.UserError: Weights & Biases cannot start (init_timeout: Input should be a valid number"
    )
    assert "sentinel0" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("project", "mode", "named"),
    [
        ("team/project", "offline", "tracking.wandb_project='team/project': expected"),
        ("a" * 129, "offline", "1 to 128 characters"),
        ("", "online", "tracking.wandb_project=''"),
        ("project", "off-line", "WANDB_MODE=off-line: expected one of online, offline"),
    ],
)
def test_what_wandb_would_refuse_is_refused_first(
    project: str, mode: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    check("project")
    monkeypatch.setenv("WANDB_MODE", mode)
    with pytest.raises(UserError) as refused:
        check(project)
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("value", "by_config", "expected"),
    [("true", False, True), ("1", False, True), ("", False, False), ("false", True, True)],
)
def test_wandb_is_wanted_by_the_configuration_or_the_environment(
    value: str, by_config: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USE_WANDB", value)
    assert wanted(by_config) is expected


def test_another_word_for_true_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_WANDB", "yep")
    with pytest.raises(UserError, match="USE_WANDB=yep: expected true or false"):
        wanted(False)
