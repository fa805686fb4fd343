"""Kills at random moments: however often, wherever and with whatever compiled loops, a run ends as if undisturbed.

Generated runs of two ranks on stored rollouts, without engines and validations. RLPR_SEED and RLPR_KILLS choose others
and how many.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from generated_cases import SEED
from generated_runs import make_place, replay
from same_run import assert_same_run
from training_runs import Workplace
from warm_start import KILLED, Started, start

pytestmark = pytest.mark.e2e

KILLS = int(os.environ.get("RLPR_KILLS", "20"))
KILLS_OF_A_RUN = 7
START_LIMIT_S = 300
LAYOUTS = (
    (),
    ("actor.tensor_model_parallel_size=2",),
    ("actor.pipeline_model_parallel_size=2",),
    ("actor.tensor_model_parallel_size=2", "actor.sequence_parallel=true"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return make_place(tmp_path_factory.mktemp("kills"), SEED)


def settings(dice: random.Random, place: Workplace) -> list[str]:
    """A run of two ranks that carries state of every kind from step to step."""
    return [
        *replay(place),
        *dice.choice(LAYOUTS),
        f"trainer.save_freq={dice.choice([1, 1, 2])}",
        f"trainer.keep_last={dice.choice([1, 2])}",
        f"actor.ppo_mini_batch_size={dice.choice([0, 2])}",
        f"actor.lr_decay_style={dice.choice(['constant', 'cosine'])}",
        f"algorithm.adv_estimator={dice.choice(['grpo', 'rloo', 'reinforce_plus_plus'])}",
        f"filter.cache_regenerate={dice.choice(['true', 'false'])}",
        *dice.choice(
            [(), ("algorithm.kl_loss_coef=0.01", "algorithm.use_kl_loss=false", "algorithm.kl_ctrl_type=adaptive")]
        ),
    ]


def named(place: Workplace, name: str) -> list[str]:
    """A run of its own, which finds no other run's base probabilities."""
    return [f"trainer.name={name}", f"reward.base_probability_cache={place.folder / 'base' / name}"]


def train(argv: list[str], log: Path, numba_cache: Path) -> Started:
    return start("pretrain_rlpr.py", argv, log, 2, {"NUMBA_CACHE_DIR": str(numba_cache)})


def finish(argv: list[str], log: Path, numba_cache: Path) -> float:
    """Run to the end; the seconds that it took."""
    began = time.monotonic()
    statuses = train(argv, log, numba_cache).ended(START_LIMIT_S)
    assert statuses == [0, 0], f"{statuses}: {log.read_text(errors='replace')[-4000:]}"
    return time.monotonic() - began


def kill(argv: list[str], log: Path, numba_cache: Path, after_s: float, victims: list[int]) -> bool:
    """Start and send SIGKILL to the victims (rank numbers), then to whoever is left, as a torchrun would soon.

    False when the run ended before.
    """
    ranks = train(argv, log, numba_cache)
    if (statuses := ranks.ended(after_s)) is not None:
        assert statuses == [0, 0], f"{statuses}: {log.read_text(errors='replace')[-4000:]}"
        return False
    ranks.kill(victims)
    statuses = ranks.ended(1.0)
    if statuses is None:
        ranks.kill([0, 1])
        statuses = ranks.ended(60)
    assert statuses is not None
    return KILLED in statuses


@pytest.mark.parametrize("number", range(-(-KILLS // KILLS_OF_A_RUN)))
def test_a_run_that_is_killed_again_and_again_equals_the_undisturbed_one(place: Workplace, number: int) -> None:
    dice = random.Random(f"{SEED}/{number}")
    argv = settings(dice, place)
    warm = place.folder / "numba"
    if not warm.exists():
        finish([*argv, "trainer.name=warm"], place.folder / "warm.log", warm)
    seconds = finish([*argv, *named(place, f"truth_{number}")], place.folder / "truth.log", warm)
    kills, left = 0, min(KILLS_OF_A_RUN, KILLS - number * KILLS_OF_A_RUN)
    for attempt in range(3 * left):
        if kills == left:
            break
        name = f"killed_{number}_{attempt}"
        numba_cache = warm if attempt else place.folder / f"cold_{number}"
        log = place.folder / f"{name}.log"
        mine = [*argv, *named(place, name)]
        while kills < left and kill(
            mine, log, numba_cache, dice.uniform(0.1, seconds), dice.choice([[0, 1], [0], [1]])
        ):
            kills += 1
        finish(mine, log, numba_cache)
        assert_same_run(place, name, f"truth_{number}")
    assert kills == left, "the runs ended before they could be killed"
