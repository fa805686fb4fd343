"""Whatever stands in a recipe or on a command line is refused in one line, or the run that it describes can be made.

RLPR_SEED and RLPR_CASES choose other configurations; a failure names its case. What is allowed is taken from --help,
and which keys cannot be combined is written down here once more, so that the checks are not their own judge.
"""

from __future__ import annotations

import math
import os
import random
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from odd_values import ODD_SCALARS, ODD_TEXTS, TYPED_TEXTS, WRONG, WRONG_ARGUMENTS, WRONG_RECIPES, valid_number
from training_records import scored
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_rlpr.actor.model.tree_policy import transformer_config
from megatron_rlpr.algorithm.learning_rate import learning_rate
from megatron_rlpr.algorithm.std_filter import StdFilter
from megatron_rlpr.algorithm.training_batch import filter_stds, loss_weights, mini_batches, with_advantages
from megatron_rlpr.config.checks import check
from megatron_rlpr.config.checks.engine import engine_settings
from megatron_rlpr.config.help import help_text
from megatron_rlpr.config.keys import Key, all_keys
from megatron_rlpr.config.loading import load_config, save_resolved
from megatron_rlpr.config.schema import Config
from megatron_rlpr.data.tokenizer import SpecialTokens, load_tokenizer
from megatron_rlpr.grading.tasks import GradeTasks
from megatron_rlpr.packing import plan
from megatron_rlpr.reward.manager import RewardManager
from megatron_rlpr.reward.shaping import discrete_function, shaping_function
from megatron_rlpr.rollout.requests import group_requests
from megatron_rlpr.run.build import kl_controller
from megatron_rlpr.run.engines import training_request
from megatron_rlpr.run.folder import RunFolder
from megatron_rlpr.run.prompts import prompt_source, training_prompts
from megatron_rlpr.types import ScoreRequest, UserError
from megatron_rlpr.weights.architectures import model_shape
from megatron_rlpr.weights.hf_folder import HfFolder

SEED = int(os.environ.get("RLPR_SEED", "0"))
CASES = int(os.environ.get("RLPR_CASES", "500"))
SECONDS_A_CASE = 20  # none takes one; a busy machine may be slow
LONGEST_LINE = 1000
TOKENIZER = Path(__file__).parents[2] / "goldens" / "tokenizers" / "bpe_chat"
DEFAULTS = Config()
MEMORY_GIB = psutil.virtual_memory().total / 2**30
HEADS, KEY_VALUE_HEADS, LAYERS, FEED_FORWARD, POSITIONS, ROWS = 4, 2, 4, 256, 256, 24


@dataclass(frozen=True)
class Place:
    """Where all cases run: its folder is the working directory and holds `model` and two parquet files."""

    tokenizer: Any
    prompts: Any
    shape: Any


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    here = tmp_path_factory.mktemp("generated")
    sizes = {"num_attention_heads": HEADS, "num_key_value_heads": KEY_VALUE_HEADS, "num_hidden_layers": LAYERS}
    lengths = {"intermediate_size": FEED_FORWARD, "max_position_embeddings": POSITIONS, "hidden_size": 128}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **lengths, vocab_size=1603, head_dim=32, eos_token_id=1602))
    model.save_pretrained(here / "model")
    for file in TOKENIZER.iterdir():
        shutil.copy(file, here / "model")
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{number}+1=?"}],
            "data_source": "unit",
            "ability": "maths",
            "reward_model": {"ground_truth": str(number + 1), "style": "rule"},
            "extra_info": {"index": number},
        }
        for number in range(ROWS)
    ]
    for name in ("train", "val"):
        pd.DataFrame(rows).to_parquet(here / f"{name}.parquet")
    (here / "stored").mkdir()
    (here / "stored" / "step_000001.parquet").touch()
    before = os.getcwd()
    os.chdir(here)
    tokenizer = load_tokenizer("model")
    tasks = GradeTasks(SpecialTokens.of(tokenizer), "R1")
    yield Place(
        tokenizer,
        training_prompts(load_config(as_arguments({})), tokenizer, tasks),
        model_shape(HfFolder("model").config()),
    )
    os.chdir(before)


FITTING: dict[str, Any] = {
    "model.path": "model",
    "data.train_files": ["train.parquet"],
    "data.max_prompt_length": 64,
    "data.val_max_prompt_length": 64,
    "data.max_response_length": 64,
    "rollout.kv_cache_gb": 0.25,
    "actor.dtype": "float32",
}
"""What the tiny model needs; everything else is as --help says."""


def as_arguments(values: dict[str, Any]) -> list[str]:
    """The command line that sets these keys over FITTING."""

    def text(value: Any) -> str:
        return f"[{','.join(value)}]" if isinstance(value, list) else str(value)

    return [f"{name}={text(value)}" for name, value in {**FITTING, **values}.items()]


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """TimeoutError where the body takes longer."""

    def too_long(*_: Any) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- what --help documents


@dataclass(frozen=True)
class Documented:
    """The range of a number or the length of a text, as --help words it."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    also: tuple[float, ...] = ()
    longest: int = 0
    longest_part: int = 0

    def allows(self, value: Any) -> bool:
        if isinstance(value, list):
            return all(map(self.allows, value))
        if isinstance(value, str):
            plain = all(c.isprintable() or c in "\u3000\xa0" or ord(c) > 0x2030 for c in value)
            sizes = [len(part.encode("utf-8", "surrogateescape")) for part in value.split("/")]
            fits = len(value.encode("utf-8", "surrogateescape")) <= self.longest
            return plain and fits and (not self.longest_part or max(sizes) <= self.longest_part)
        low = value > self.low if self.low_open else value >= self.low
        high = value < self.high if self.high_open else value <= self.high
        return math.isfinite(value) and (value in self.also or (low and high))


def documented() -> dict[str, Documented]:
    """Of every key whose type has a range."""
    number, found = r"(-?[\d.e+-]*\d)", {}
    for name, words in re.findall(
        r"(\w+\.\w+)=\S* +\(((?:int|float|str|list of str)[^)]*)\)", " ".join(help_text().split())
    ):
        low = re.search(f"(at least|greater than) {number}", words)
        high = re.search(f"(at most|less than) {number}(?! bytes)\\b", words)
        size, part = re.search(r"at most (\d+) bytes", words), re.search(r"(\d+) between slashes", words)
        also = re.search(f", or {number}", words)
        found[name] = Documented(
            low=float(low[2]) if low else -math.inf,
            high=float(high[2]) if high and not size else math.inf,
            low_open=bool(low and low[1] == "greater than"),
            high_open=bool(high and high[1] == "less than"),
            also=(float(also[1]),) if also else (),
            longest=int(size[1]) if size else 0,
            longest_part=int(part[1]) if part else 0,
        )
    return found


RANGES = documented()


def test_help_documents_both_ends_of_every_number_and_the_length_of_every_text() -> None:
    for key in all_keys().values():
        if key.annotation in (int, float):
            found = RANGES[key.full_name]
            assert -math.inf < found.low < found.high < math.inf, key.full_name
        elif key.annotation in (str, list[str]):
            assert RANGES[key.full_name].longest > 0, key.full_name


# --- keys that cannot be combined, once more


def contradictions(config: Config, world: int) -> list[str]:
    """Why this cannot run on `world` processes of a machine without a GPU; empty when nothing speaks against it."""
    data, rollout, reward, rules = config.data, config.rollout, config.reward, config.filter
    algorithm, actor, trainer = config.algorithm, config.actor, config.trainer
    tensor, pipeline = actor.tensor_model_parallel_size, actor.pipeline_model_parallel_size
    estimator, manager, ray = algorithm.adv_estimator, reward.reward_manager, rollout.placement == "ray"
    mixed = estimator in ("prnostd_vrstd", "prstd_vrstd")
    longest = max(data.max_prompt_length, data.val_max_prompt_length if data.val_files else 0)
    scored_prompt = longest if config.evaluation.score_reward else data.max_prompt_length
    caches = rollout.engines * rollout.tensor_parallel_size if ray else 1
    engines = bool(data.val_files) or not rollout.replay
    stage = LAYERS // pipeline if LAYERS % pipeline == 0 else 1
    unit = actor.recompute_num_layers
    reasons = {
        "ranks": world % (tensor * pipeline) != 0,
        "heads": KEY_VALUE_HEADS % tensor != 0 or KEY_VALUE_HEADS % rollout.tensor_parallel_size != 0,
        "layers": LAYERS % pipeline != 0,
        "sequence": actor.sequence_parallel and tensor == 1,
        "context": actor.context_parallel_size != 1,
        "experts": actor.expert_model_parallel_size != 1,
        "engine ranks": not ray and world % rollout.tensor_parallel_size != 0,
        "idle": not ray
        and (
            any(getattr(rollout, k) != getattr(DEFAULTS.rollout, k) for k in ("engines", "pipeline", "cpus_per_engine"))
            or rollout.engine_timeout_s != DEFAULTS.rollout.engine_timeout_s
            or rollout.ray_address != ""
            or config.weights.transport != "auto"
        ),
        "idle frequency": trainer.test_freq != DEFAULTS.trainer.test_freq and not data.val_files,
        "idle cap": reward.gt_tokens_one_more_adjusted and not reward.gt_tokens_one_more,
        "idle bound": rules.mode == "EMA" and rules.accuracy_lower_bound != 0,
        "idle rate": actor.lr_decay_style == "constant" and actor.min_lr != 0,
        "store and engines": ray and bool(rollout.replay),
        "stale": rollout.pipeline == 1 and not algorithm.importance_cap,
        "carried": rollout.pipeline == 1 and not rules.cache_regenerate,
        "nothing to answer": bool(rollout.replay) and (trainer.val_only or estimator == "remax"),
        "nothing to validate": trainer.val_only and not data.val_files,
        "nothing to train on": not (data.train_files or trainer.val_only or rollout.replay),
        "export": trainer.export_hf and trainer.save_freq < 0,
        "strategies": not config.evaluation.strategies
        or any(name not in ("greedy", "sampling") for name in config.evaluation.strategies),
        "name": not re.fullmatch(r"[^/\\:\s]([^/\\:]*[^/\\:\s])?", trainer.name) or trainer.name in (".", ".."),
        "mini-batch": actor.ppo_mini_batch_size > 0 and data.train_batch_size % actor.ppo_mini_batch_size != 0,
        "budget": scored_prompt + data.max_response_length > actor.max_tokens_per_micro_batch,
        "positions": longest + data.max_response_length > POSITIONS,
        "rewrite": data.prompt_rewrite == "llama_gemma" and reward.format_mode != "R1_nothink",
        "bounds": rules.accuracy_lower_bound > rules.accuracy_upper_bound,
        "collected": rules.enabled and rules.mode == "EMA" and rules.ema_start_step >= rules.start_step,
        "ungraded": rules.enabled and rules.target == "vr_acc" and manager == "prob" and reward.reward_type == "pr",
        "unscored": rules.enabled and rules.target.startswith("scoreB") and manager == "naive",
        "group of one": rollout.n < 2 and estimator in ("grpo", "grpo_nostd", "rloo", "prnostd_vrstd", "prstd_vrstd"),
        "mixed": mixed and (manager != "mix" or reward.format_only),
        "adaptive": algorithm.kl_ctrl_type == "adaptive" and (algorithm.use_kl_loss or algorithm.kl_loss_coef == 0),
        "rates": actor.min_lr > actor.lr,
        "GPU": bool(actor.fp8) or actor.use_distributed_optimizer,
        "memory": engines and not rollout.ray_address and caches * rollout.kv_cache_gb > MEMORY_GIB,
        "cache": engines and rollout.kv_cache_gb * 2**30 < 64 * 4 * LAYERS * (longest + data.max_response_length),
        "recompute": actor.recompute_granularity == "full"
        and (stage % unit != 0 if actor.recompute_method == "uniform" else unit > stage),
    }
    return [reason for reason, holds in reasons.items() if holds]


# --- what an accepted configuration promises


def build(config: Config, world: int, place: Place) -> None:
    """Make of the run what can be made in one process, and try it."""
    settings = engine_settings(config)
    assert settings.threads >= 1
    assert settings.max_model_len <= POSITIONS
    assert settings.max_num_seqs <= max(settings.max_model_len, 4096), "vLLM wants every sequence in one batch"
    assert timedelta(seconds=config.trainer.collective_timeout_s) > timedelta()
    folder = RunFolder(Path(config.trainer.runs_dir) / config.trainer.name)
    folder.hold().close()
    save_resolved(config, folder.config)
    assert load_config([f"--config={folder.config}"]) == config
    transformer_config(place.shape, config.actor)

    rates = (
        [learning_rate(config.actor, step, 100) for step in (1, 2, 100)] if config.actor.lr_warmup_steps < 100 else []
    )
    assert all(0 <= rate <= config.actor.lr * (1 + 1e-12) for rate in rates)
    for x in (-1.0, -0.1, 0.0, 0.5, 1.0):
        shaped = shaping_function(config.reward.shaping_function_name)(x, 0)
        assert math.isfinite(discrete_function(config.reward.discrete_function_name)(shaped))
    rewards = RewardManager(
        config.reward, place.tokenizer, config.data.longest_prompt, config.data.max_response_length, lambda _: []
    )
    if config.data.max_response_length >= 32:  # room for the answer and its tags
        assert len(rewards.base_requests(place.prompts.prompts[:2])) == 2

    if config.data.train_batch_size <= ROWS and not config.rollout.replay:
        drawn = prompt_source(config, place.prompts).next_batch()
        assert len({prompt.index for prompt in drawn}) == config.data.train_batch_size
        if config.rollout.n <= 100:
            asked = group_requests(training_request(config, drawn, 1))
            assert {len(requests) for requests in asked} == {config.rollout.n}
    actor = config.actor
    longest = config.data.max_prompt_length + config.data.max_response_length
    multiple = actor.tensor_model_parallel_size if actor.sequence_parallel else 1
    ranks = world // (actor.tensor_model_parallel_size * actor.pipeline_model_parallel_size)
    plan(
        [ScoreRequest(tuple(range(longest)), 1, longest)],
        max_tokens=actor.max_tokens_per_micro_batch,
        data_parallel_size=ranks,
        share_prefixes=actor.share_prefixes,
        sequence_multiple=multiple,
    )
    train(config)


def train(config: Config) -> None:
    """Filter, advantages and loss weights of three steps, on groups whose rewards are made up."""
    n, size = min(config.rollout.n, 8), min(config.data.train_batch_size, 6)
    rng = np.random.default_rng(0)
    std_filter, controller = StdFilter(config.filter), kl_controller(config.algorithm)
    for step in range(1, 4):
        groups = [scored(i, rng.uniform(0, 1, n).tolist(), rng.integers(1, 9, n).tolist()) for i in range(size)]
        std_filter.begin_step(step)
        assert len(std_filter.judge(groups, filter_stds(groups, config))) == size
        std_filter.end_step()
        reference = [[s.log_probs - 0.1 for s in g.scores] for g in groups] if config.algorithm.kl_loss_coef else None
        baselines = [0.5] * size if config.algorithm.adv_estimator == "remax" else None
        batch = with_advantages(groups, config, reference, controller.value, baselines)
        controller.update(batch.response_kls)
        assert math.isfinite(controller.value)
        assert controller.value >= 0
        for sequences in mini_batches(batch, config.actor.ppo_mini_batch_size):
            assert all(np.isfinite(sequence.advantages).all() for sequence in sequences)
            assert all(0 <= weight < math.inf for weight in loss_weights(sequences, config))


def outcome(arguments: list[str], world: int, place: Place) -> Config | str:
    """The accepted configuration, after it was built, or the line that refuses it."""
    try:
        config = load_config(arguments)
        check(config, world)
    except UserError as error:
        line = str(error)
        assert len(line.splitlines()) == 1, f"not one line: {line!r}"
        assert line.isprintable(), f"not printable: {line!r}"
        assert len(line) <= LONGEST_LINE, f"{len(line)} characters: {line[:300]}"
        return line
    assert (why := contradictions(config, world)) == [], f"accepted in spite of {why}"
    for key in all_keys().values():
        if key.full_name in RANGES:
            assert RANGES[key.full_name].allows(key.value(config)), f"{key.full_name}={key.value(config)!r} accepted"
    build(config, world, place)
    return config


# --- random keys with random values


@dataclass(frozen=True)
class Setting:
    """One key as it is written, and what that means (WRONG: nothing)."""

    key: Key
    text: str
    meaning: Any


WRONG_SHARE = 0.3


def setting(key: Key, typed: bool, rng: random.Random) -> Setting:
    """A value for a key, most often a right one. typed: on the command line, else as YAML."""
    if key.choices:
        wrong = ["", "nothing like it", key.choices[0].upper() + "x", "1", "true"]
        choice = rng.choice(wrong if rng.random() < WRONG_SHARE else key.choices)
        meaning = choice if choice in key.choices else WRONG
        return Setting(key, choice if typed else yaml.safe_dump(choice, default_style='"').strip(), meaning)
    if key.annotation == list[str]:
        if rng.random() < WRONG_SHARE:
            return Setting(key, rng.choice(["[a, {b: c}]", "[a, [b]]", "[a, *b]", "[a"]), WRONG)
        files = (
            [["greedy", "sampling"], ["sampling"]] if key.name == "strategies" else [["train.parquet"], ["val.parquet"]]
        )
        files = rng.choice([*files, ["train.parquet", "val.parquet"], ["none.parquet"], [], ["model"]])
        return Setting(key, f"[{', '.join(files)}]", files)
    if key.annotation is str:
        wrong_text = rng.random() < WRONG_SHARE
        texts = [one for one in (TYPED_TEXTS if typed else ODD_TEXTS) if (one[1] is WRONG) == wrong_text]
        text, meaning = rng.choice(texts)
        return Setting(key, text, meaning)
    if rng.random() >= WRONG_SHARE:
        if key.annotation is bool:
            value: Any = rng.random() < 0.5
        else:
            found = RANGES[key.full_name]
            value = valid_number(key.annotation, found.low, found.high, rng)
        return Setting(key, str(value).lower(), value)
    text, meaning = rng.choice(ODD_SCALARS)
    if key.annotation is float and type(meaning) is int:
        meaning = float(meaning)
    if type(meaning) is not key.annotation:
        meaning = WRONG
    return Setting(key, text, meaning)


def case_of(number: int, folder: Path) -> tuple[list[str], int, list[Setting], bool]:
    """Command line, processes, what it sets, and whether its form alone is wrong."""
    rng = random.Random(f"{SEED}/{number}")
    world, arguments = rng.choice([1, 1, 2, 4, 8]), as_arguments({})
    kind = rng.random()
    if kind < 0.1:
        (recipe := folder / f"{number}.yaml").write_bytes(rng.choice(WRONG_RECIPES))
        return [*arguments, "--config", str(recipe)], world, [], True
    if kind < 0.2:
        return [*arguments, rng.choice(WRONG_ARGUMENTS)], world, [], True
    keys = rng.sample(list(all_keys().values()), rng.choice([1, 1, 2, 3, 5]))
    written = [setting(key, False, rng) for key in keys if rng.random() < 0.5]
    in_recipe = {one.key.full_name for one in written}
    typed = [setting(key, True, rng) for key in keys if key.full_name not in in_recipe]
    lines = [f"{one.key.section}:\n  {one.key.name}: {one.text}\n" for one in written]
    sections = [one.key.section for one in written]
    recipe = folder / f"{number}.yaml"
    text = "".join(lines).replace("\n", rng.choice(["\n", "\r\n"]))
    recipe.write_bytes((rng.choice(["", "\ufeff", "# a comment\n"]) + text).encode())
    fitting = [a for a in arguments if a.partition("=")[0] not in in_recipe]
    arguments = [*fitting, *(f"{one.key.full_name}={one.text}" for one in typed)]
    return (
        [*arguments, f"--config={recipe}"] if written else arguments,
        world,
        [*written, *typed],
        len(set(sections)) < len(sections),
    )


def judge(number: int, place: Place, folder: Path) -> str | None:
    """What is wrong with the outcome of a case; None when nothing is."""
    arguments, world, settings, malformed = case_of(number, folder)
    try:
        with limited(SECONDS_A_CASE):
            result = outcome(arguments, world, place)
    except Exception as error:
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


@pytest.mark.parametrize("content", WRONG_RECIPES, ids=lambda content: repr(content[:24]))
def test_a_recipe_that_is_no_plain_tree_of_keys_is_refused(content: bytes, place: Place, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(content)
    with limited(SECONDS_A_CASE):
        assert str(recipe) in str(outcome([*as_arguments({}), f"--config={recipe}"], 1, place))


@pytest.mark.parametrize("argument", WRONG_ARGUMENTS, ids=lambda argument: repr(argument[:24]))
def test_an_argument_that_sets_no_key_is_refused(argument: str, place: Place) -> None:
    with limited(SECONDS_A_CASE):
        assert isinstance(outcome([*as_arguments({}), argument], 1, place), str)


@pytest.mark.parametrize("name", sorted(RANGES))
def test_a_value_just_outside_its_range_is_refused_by_the_name_of_its_key(name: str, place: Place) -> None:
    key, found = all_keys()[name], RANGES[name]
    if found.longest:
        beyond: list[Any] = [
            "x" * (found.longest + 1),
            *(["y" * (found.longest_part + 1)] if found.longest_part else []),
        ]
        beyond = [[text] for text in beyond] if key.annotation == list[str] else beyond
    elif key.annotation is int:
        beyond = [int(found.low) - (not found.low_open), int(found.high) + 1, 2**63, 10**23]
    else:
        beyond = [found.low if found.low_open else math.nextafter(found.low, -math.inf)]
        beyond += [found.high if found.high_open else math.nextafter(found.high, math.inf), 1e17]
    for value in beyond:
        if found.allows(value):
            continue
        config = load_config(as_arguments({}))
        key.set(config, value)
        with pytest.raises(UserError) as refused:
            check(config, 1)
        assert str(refused.value).startswith(f"{name}="), value


def test_a_recipe_must_be_a_file_that_ends(place: Place, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), str(tmp_path), "a\0b", "x" * 5000):
        with limited(SECONDS_A_CASE):
            assert "--config" in str(outcome([f"--config={path}"], 1, place))


# --- combinations of right values

AXES: dict[str, list[Any]] = {
    "world": [1, 2, 4],
    "actor.tensor_model_parallel_size": [1, 2],
    "actor.pipeline_model_parallel_size": [1, 2, 4],
    "actor.sequence_parallel": [False, True],
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
