"""What an accepted configuration promises: the run that it describes can be made, and its step be computed."""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path

import numpy as np
from contradictions import contradictions
from documented_ranges import RANGES
from tiny_run import POSITIONS, ROWS, Place
from training_records import scored

from megatron_rlpr.actor.model.tree_policy import transformer_config
from megatron_rlpr.algorithm.learning_rate import learning_rate
from megatron_rlpr.algorithm.std_filter import StdFilter
from megatron_rlpr.algorithm.training_batch import filter_stds, loss_weights, mini_batches, with_advantages
from megatron_rlpr.config.checks import check
from megatron_rlpr.config.checks.engine import engine_settings
from megatron_rlpr.config.keys import all_keys
from megatron_rlpr.config.loading import load_config, save_resolved
from megatron_rlpr.config.schema import Config
from megatron_rlpr.packing import plan, share_of
from megatron_rlpr.reward.manager import RewardManager
from megatron_rlpr.reward.shaping import discrete_function, shaping_function
from megatron_rlpr.rollout.requests import group_requests
from megatron_rlpr.run.build import kl_controller
from megatron_rlpr.run.engines import training_request
from megatron_rlpr.run.folder import RunFolder
from megatron_rlpr.run.prompts import prompt_source
from megatron_rlpr.types import ScoreRequest, UserError

SECONDS_A_CASE = 20  # none takes one; a busy machine may be slow
LONGEST_LINE = 1000


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
        drawn = prompt_source(config, place.prompts, str).next_batch()
        assert len({prompt.index for prompt in drawn}) == config.data.train_batch_size
        if config.rollout.n <= 100:
            asked = group_requests(training_request(config, drawn, 1))
            assert {len(requests) for requests in asked} == {config.rollout.n}
    actor = config.actor
    longest = config.data.max_prompt_length + config.data.max_response_length
    multiple, context = actor.tensor_model_parallel_size if actor.sequence_parallel else 1, actor.context_parallel_size
    ranks = world // (actor.tensor_model_parallel_size * actor.pipeline_model_parallel_size * context)
    packed = plan(
        [ScoreRequest(tuple(range(longest)), 1, longest)],
        max_tokens=actor.max_tokens_per_micro_batch,
        data_parallel_size=ranks,
        share_prefixes=actor.share_prefixes,
        sequence_multiple=multiple * context,
    )
    shares = [share_of(packed.for_rank(0)[0], rank, context) for rank in range(context)]
    assert {share.num_tokens * context % multiple for share in shares} == {0}
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
