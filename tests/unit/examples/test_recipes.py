"""The recipes of the published set-ups hold the reference's values (specification, section 7.1 and sections 3 to 6)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from zero_weights import write_zeros

from megatron_rlpr.config import checks
from megatron_rlpr.config.checks.engine import engine_settings
from megatron_rlpr.config.loading import load_config, resolved
from megatron_rlpr.config.schema import Config
from megatron_rlpr.data.dataset import samples_per_prompt
from tools.plan.__main__ import planned
from tools.plan.table import read_comments, text

RECIPES = Path(__file__).parents[3] / "examples" / "recipes"
GEMMA = "gemma-2-2b-it"

COMMON: dict[str, Any] = {
    "data.train_files": ["datasets/train/rlpr_train.parquet"],
    "data.val_max_prompt_length": 3072,
    "data.max_response_length": 3072,
    "data.shuffle": True,
    "data.seed": 1,
    "rollout.n": 8,
    "rollout.top_p": 1.0,
    "rollout.top_k": -1,
    "rollout.dtype": "bfloat16",
    "rollout.tensor_parallel_size": 2,
    "reward.reward_manager": "prob",
    "reward.reward_type": "pr",
    "reward.splice": "text",
    "reward.compute_score_name": "mean_exp_log_softmax",
    "reward.shaping_function_name": "threshold_0",
    "reward.discrete_function_name": "identity",
    "reward.format_coefficient": 0.1,
    "reward.format_only": False,
    "reward.repetition_penalty": True,
    "reward.repetition_penalty_max_repetitions_limit": 10,
    "reward.base_probability": "initial",
    "reward.gt_tokens_one_more": False,
    "reward.allow_empty_leading_whitespaces": False,
    "filter.enabled": True,
    "filter.mode": "EMA",
    "filter.target": "final_reward_std",
    "filter.truncated": False,
    "filter.ema_ratio": 0.99,
    "filter.ema_start_step": 6,
    "filter.start_step": 11,
    "filter.std_filter_beta_per_data_source": "",
    "filter.accuracy_lower_bound": 0.0,
    "filter.accuracy_upper_bound": 1e6,
    "filter.cache_regenerate": True,
    "algorithm.adv_estimator": "grpo",
    "algorithm.clip_ratio_low": 0.2,
    "algorithm.clip_ratio_high": 0.27,
    "algorithm.clip_ratio_dual": 0.0,
    "algorithm.loss_agg_mode": "token-mean",
    "algorithm.entropy_coeff": 0.001,
    "algorithm.use_kl_loss": True,
    "algorithm.kl_loss_coef": 0.0,
    "actor.dtype": "bfloat16",
    "actor.lr": 1e-6,
    "actor.lr_warmup_steps": 0,
    "actor.lr_decay_style": "constant",
    "actor.weight_decay": 0.01,
    "actor.adam_beta1": 0.9,
    "actor.adam_beta2": 0.999,
    "actor.adam_eps": 1e-8,
    "actor.clip_grad": 1.0,
    "evaluation.strategies": ["sampling"],
    "evaluation.seed": 42,
    "trainer.total_epochs": 100,
    "trainer.total_training_steps": 0,
    "trainer.save_freq": 40,
    "trainer.test_freq": 40,
    "trainer.val_before_train": True,
}

OWN: dict[str, tuple[Any, Any, Any]] = {
    # key: (qwen2.5-7b, llama-3.1-8b-instruct, gemma-2-2b-it), the columns of section 7.1
    "model.path": ("models/Qwen2.5-7B", "models/Llama-3.1-8B-Instruct", "models/gemma-2-2b-it"),
    "data.train_batch_size": (768, 256, 256),
    "actor.ppo_mini_batch_size": (192, 64, 64),
    "data.max_prompt_length": (2048, 2048, 1024),
    "data.template": ("as_is", "llama_gemma", "llama_gemma"),
    "reward.format_mode": ("R1", "R1_nothink", "R1_nothink"),
    "rollout.temperature": (1.0, 0.6, 0.6),
    "evaluation.temperature": (1.0, 0.6, 0.6),
    "evaluation.top_p": (1.0, 0.95, 0.95),
    "filter.std_filter_beta": (0.5, 0.9, 1.0),
    "actor.max_tokens_per_micro_batch": (24000, 24000, 16000),
}

NAMES = ("qwen2.5-7b", "llama-3.1-8b-instruct", GEMMA)

LARGER = ("qwen2.5-32b", "qwen2.5-72b", "llama-3.1-70b-instruct", "qwen3-30b-a3b")
"""Nobody published them: the settings of the smaller model of the family, and a layout."""


def hf_config(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((RECIPES / "models" / name / "config.json").read_text())
    return config


def recipe(name: str, *overrides: str) -> Config:
    return load_config(["--config", str(RECIPES / f"{name}.yaml"), *overrides])


def flat(config: Config) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, keys in resolved(config).items() for key, value in keys.items()}


def test_there_is_a_recipe_for_every_published_set_up_and_for_larger_models() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == {*NAMES, *LARGER}


@pytest.mark.parametrize("name", LARGER)
def test_a_larger_model_trains_with_the_settings_of_its_family(name: str) -> None:
    like = "llama-3.1-8b-instruct" if name.startswith("llama") else "qwen2.5-7b"
    own, theirs = flat(recipe(name)), flat(recipe(like))
    different = {key for key in own if own[key] != theirs[key]}
    layout = {key for key in different if "parallel" in key}
    assert different - layout == {
        "model.path",
        "rollout.gpu_memory_utilization",
        "trainer.name",
        "trainer.keep_last",
    } | ({"algorithm.importance_cap"} if hf_config(name).get("num_experts") else set())


@pytest.mark.parametrize("name", [*NAMES, *LARGER])
def test_the_plans_behind_a_recipe_fit_and_are_what_the_tool_makes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPES.parents[1])
    _, tables = read_comments(Path("examples/recipes") / f"{name}.yaml")
    precisions = set()
    for arguments, table in tables.items():
        plan = planned(arguments.split())
        assert text(plan) == table, f"write it again: python -m tools.plan {arguments} --write"
        assert not plan.faults
        config = plan.job.config
        precisions.add(config.actor.fp8)
        rounds_differently = bool(config.actor.fp8 or plan.job.shape.experts)
        assert (config.algorithm.importance_cap > 0) == rounds_differently
    assert precisions == {"", "hybrid"}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_has_the_values_that_all_set_ups_share(name: str) -> None:
    values = flat(recipe(name))
    assert {key: values[key] for key in COMMON} == COMMON


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_has_the_values_of_its_column(name: str) -> None:
    values = flat(recipe(name))
    column = NAMES.index(name)
    assert {key: values[key] for key in OWN} == {key: row[column] for key, row in OWN.items()}
    assert values["data.train_batch_size"] == 4 * values["actor.ppo_mini_batch_size"], "4 updates a step"


@pytest.mark.parametrize("name", [*NAMES, *LARGER])
def test_a_recipe_lends_memory_between_the_phases_and_runs_engines_with_graphs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = recipe(name)
    settings = engine_settings(config)
    assert (settings.sleep, settings.enforce_eager, settings.load_format) == (True, False, "dummy")
    assert (settings.gpu_memory_utilization, settings.max_num_seqs) == (0.75 if name in NAMES else 0.65, 512)
    assert config.actor.offload == "optimizer"
    assert config.actor.use_distributed_optimizer


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_validates_on_the_seven_sets_with_their_samples(name: str) -> None:
    config = recipe(name)
    assert config.evaluation.n == 0, "the number of samples comes from the file names"
    assert {Path(file).stem: samples_per_prompt(file) for file in config.data.val_files} == {
        "MMLUPro-1000_Avg2": 2,
        "gpqa_diamond_Avg4": 4,
        "TheoremQA_Avg2": 2,
        "WebInstruct-verified-val_Avg2": 2,
        "Math-500_Avg2": 2,
        "Minerva_Avg4": 4,
        "AIME2024_Avg16": 16,
    }


@pytest.fixture
def present(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A GPU with Transformer Engine, and a folder with a file for every path the test's recipe names, as the current
    one: a model of zeros and empty files."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("megatron_rlpr.actor.model.layer_kind.transformer_engine_is_here", lambda: True)
    name: str = request.node.callspec.params["name"]
    config = recipe(name)
    model = tmp_path / config.model.path
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(hf_config(name)))
    (model / "tokenizer.json").write_text("{}")
    write_zeros(model)
    for file in (tmp_path / f for f in config.data.val_files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    (tmp_path / "datasets/train").mkdir()
    (tmp_path / "datasets/train/rlpr_train.parquet").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("world_size", [8, 32])
@pytest.mark.parametrize("name", NAMES)  # a file of zeros of the larger ones is more than can be mapped
def test_a_recipe_of_a_published_set_up_passes_all_checks(present: Path, name: str, world_size: int) -> None:
    checks.check(recipe(name), world_size)


@pytest.mark.parametrize("typed", ["+trainer.val_only=True", "trainer.val_only=true", "++trainer.val_only=True"])
def test_the_reference_s_way_to_ask_for_validation_alone_is_understood(typed: str) -> None:
    assert recipe("qwen2.5-7b", typed).trainer.val_only
