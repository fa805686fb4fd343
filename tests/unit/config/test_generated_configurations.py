"""Whatever stands in a recipe or on a command line is refused in one line, or the run that it describes can be made.

RLPR_SEED and RLPR_CASES choose other configurations; a failure names its case. What is allowed is taken from --help
(documented_ranges.py), and which keys cannot be combined is written down once more (contradictions.py).
"""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path
from typing import Any

from built_runs import SECONDS_A_CASE, outcome
from contradictions import contradictions
from generated_cases import SEED, case_count
from generated_settings import case_of
from odd_values import WRONG
from time_limit import Hung, time_limit
from tiny_run import Place, as_arguments

from megatron_rlpr.config.keys import all_keys
from megatron_rlpr.config.loading import load_config

CASES = case_count(500)


def judge(number: int, place: Place, folder: Path) -> str | None:
    """What is wrong with the outcome of a case; None when nothing is."""
    arguments, world, settings, malformed = case_of(number, folder)
    try:
        with time_limit(SECONDS_A_CASE):
            result = outcome(arguments, world, place)
    except (Exception, Hung) as error:
        return f"{type(error).__name__}: {str(error)[:400]}"
    wrong = [one.key.full_name for one in settings if one.meaning is WRONG]
    if isinstance(result, str):
        named = any(name in result for name in all_keys()) or "command line" in result or ".yaml" in result
        if not named and "--config" not in result and "unknown option" not in result:
            return f"names neither key nor file: {result}"
        return None
    if malformed or wrong:
        return f"accepted although {wrong or 'its form'} is wrong"
    for one in settings:
        if (got := one.key.value(result)) != one.meaning or type(got) is not type(one.meaning):
            return f"{one.key.full_name} means {one.meaning!r} and became {got!r}"
    return None


def test_a_configuration_is_refused_in_one_line_or_can_be_built(place: Place, tmp_path: Path) -> None:
    faults = {number: fault for number in range(CASES) if (fault := judge(number, place, tmp_path))}
    assert faults == {}, f"with RLPR_SEED={SEED}"


# --- combinations of right values

AXES: dict[str, list[Any]] = {
    "world": [1, 2, 4],
    "actor.tensor_model_parallel_size": [1, 2],
    "actor.pipeline_model_parallel_size": [1, 2, 4],
    "actor.virtual_pipeline_model_parallel_size": [1, 2],
    "actor.pipeline_model_parallel_layout": ["", "Et|tttL"],
    "actor.sequence_parallel": [False, True],
    "actor.context_parallel_size": [1, 2],
    "actor.recompute_granularity": ["none", "selective", "full"],
    "actor.recompute_method": ["uniform", "block"],
    "actor.recompute_num_layers": [1, 2, 3],
    "actor.ppo_mini_batch_size": [0, 2, 4],
    "actor.dtype": ["float32", "bfloat16"],
    "actor.lr_decay_style": ["constant", "linear", "cosine"],
    "actor.min_lr": [0.0, 1e-7],
    "actor.share_prefixes": [True, False],
    "data.train_batch_size": [4, 6],
    "data.val_files": [[], ["val.parquet"]],
    "rollout.n": [1, 2, 8],
    "rollout.tensor_parallel_size": [1, 2],
    "rollout.placement": ["colocated", "ray"],
    "rollout.engines": [1, 3],
    "rollout.pipeline": [0, 1],
    "rollout.replay": ["", "stored"],
    "algorithm.importance_cap": [0.0, 2.0],
    "algorithm.adv_estimator": [
        "grpo", "grpo_nostd", "prnostd_vrstd", "prstd_vrstd", "rloo", "reinforce_plus_plus", "remax"
    ],
    "algorithm.use_kl_loss": [True, False],
    "algorithm.kl_loss_coef": [0.0, 0.01],
    "algorithm.kl_ctrl_type": ["fixed", "adaptive"],
    "algorithm.kl_loss_type": ["kl", "abs", "mse", "low_var_kl"],
    "algorithm.loss_agg_mode": ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean"],
    "reward.reward_manager": ["prob", "mix", "naive"],
    "reward.reward_type": ["pr", "pr+vr"],
    "reward.base_probability": ["initial", "current", "none"],
    "reward.format_only": [False, True],
    "filter.enabled": [True, False],
    "filter.mode": ["EMA", "fixed"],
    "filter.target": ["final_reward_std", "scoreB-scoreA", "scoreB", "vr_acc"],
    "filter.cache_regenerate": [True, False],
    "trainer.val_only": [False, True],
    "trainer.test_freq": [0, 5],
}  # fmt: skip

Row = dict[str, Any]


def pairs_of(row: Row) -> set[tuple[tuple[str, str], ...]]:
    return set(combinations([(name, str(value)) for name, value in row.items()], 2))


def settings_of(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "world"}


def working_rows(rng: random.Random) -> list[Row]:
    """Rows without contradiction that cover nearly all pairs of values which can occur together at all."""
    config = load_config(as_arguments({}))

    def random_row() -> Row:
        row = {name: values[0] for name, values in AXES.items()}
        for name, values in settings_of(row).items():
            all_keys()[name].set(config, values)
        for name in rng.sample(list(AXES), len(AXES)) + rng.sample(list(AXES), len(AXES)):
            before, row[name] = row[name], rng.choice(AXES[name])
            set_axis(name, row[name])
            if contradictions(config, row["world"]):
                row[name] = before
                set_axis(name, before)
        return row

    def set_axis(name: str, value: Any) -> None:
        if name != "world":
            all_keys()[name].set(config, value)

    candidates = [random_row() for _ in range(200)]
    uncovered: set[Any] = set().union(*map(pairs_of, candidates))
    chosen: list[Row] = []
    while uncovered and len(chosen) < 60:
        best = max(candidates, key=lambda row: len(pairs_of(row) & uncovered))
        chosen.append(best)
        uncovered -= pairs_of(best)
    return chosen


def test_combinations_are_accepted_and_can_be_built_exactly_when_nothing_speaks_against_them(place: Place) -> None:
    rng = random.Random(SEED)
    rows = working_rows(rng)
    assert [name for name, values in AXES.items() if len({str(row[name]) for row in rows}) < len(values)] == []
    faults = []
    for row in rows:
        changed = dict(row)
        for name in rng.sample(list(AXES), 3):
            changed[name] = rng.choice(AXES[name])
        for tried in (row, changed):
            why = contradictions(load_config(as_arguments(settings_of(tried))), tried["world"])
            result = outcome(as_arguments(settings_of(tried)), tried["world"], place)
            if isinstance(result, str) != bool(why):
                faults.append((result if isinstance(result, str) else "accepted", why, tried))
    assert faults == []
