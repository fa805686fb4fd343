"""Whole trainings of the reference with its std filter, replayed group by group.

The reference ends an epoch in the middle of a step: it throws the kept groups and the cached prompts away and the step
number is lost (Q8). Here a step goes on into the next epoch. The replay follows the recorded prompts, so it does both
of these things by hand; what remains of Q8 is that the reference uses the last mean twice when the lost step had judged
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from corrections import correction
from golden_files import load, to_float

from megatron_rlpr.algorithm.advantage import EstimatorOptions, GroupRewards, estimate_advantages, flat_share
from megatron_rlpr.algorithm.batch_fill import BatchFill
from megatron_rlpr.algorithm.group_statistics import group_mean_and_std
from megatron_rlpr.algorithm.std_filter import StdFilter
from megatron_rlpr.config.schema import FilterConfig
from megatron_rlpr.data.sampler import PromptSampler
from megatron_rlpr.types import Prompt, Response, ResponseReward, RolloutGroup, ScoredGroup

FILE = "ema_filter.json"
RUNS = {run["name"]: run for run in load(FILE)["runs"]}
runs = pytest.mark.parametrize("name", list(RUNS))


def filter_config(config: dict[str, Any]) -> FilterConfig:
    """The recorded settings under this project's names; settings a run does not record are the reference's."""
    return FilterConfig(
        enabled=config.get("filter_accuracy", True),
        mode=config.get("filter_mode", "EMA"),
        target=config.get("filter_target", "final_reward_std"),
        ema_ratio=config["filter_ema_ratio"],
        ema_start_step=config["filter_ema_start_step"],
        start_step=config["filter_start_step"],
        std_filter_beta=config["std_filter_beta"],
        std_filter_beta_per_data_source=config.get("std_filter_beta_per_data_source") or "",
        accuracy_upper_bound=to_float(config["accuracy_upper_bound"]),
        cache_regenerate=config["filter_cache_regenerate"],
    )


def scored_group(prompt: int, rewards: list[float]) -> ScoredGroup:
    """A group of one-token responses with the recorded rewards."""
    response = Response(token_ids=(0,), text="", engine_log_probs=(0.0,), finish_reason="stop", seed=0)
    parts = tuple(ResponseReward(r, r, 0.0, 0.0, 0.0, splice_valid=True, extracted_answer="") for r in rewards)
    prompt_record = Prompt(index=prompt, token_ids=(0,), messages=(), reference_answer="", data_source="")
    return ScoredGroup(RolloutGroup(prompt_record, (response,) * len(rewards)), scores=(), rewards=parts)


def indices(groups: list[ScoredGroup]) -> list[int]:
    return [group.group.prompt.index for group in groups]


class PromptSource:
    """The sampler, unshuffled, with the reference's end of an epoch: a None, then everything from the start and no
    cached prompt."""

    def __init__(self, prompts_per_epoch: int, batch_size: int) -> None:
        self.prompts_per_epoch = prompts_per_epoch
        self.batch_size = batch_size
        self.epochs_begun = 0
        self.new_epoch()

    def new_epoch(self) -> None:
        self.epochs_begun += 1
        self.drawn = 0
        self.sampler = PromptSampler(self.prompts_per_epoch, self.batch_size, shuffle=False, seed=0)

    def next_batch(self) -> tuple[str, list[int]] | None:
        """(where from, prompts), or None when the epoch is over."""
        if len(self.sampler.cached) >= self.batch_size:
            return "cache", self.sampler.next_batch()
        self.drawn += self.batch_size
        return None if self.drawn > self.prompts_per_epoch else ("loader", self.sampler.next_batch())


class Replay:
    """One recorded training driven through StdFilter and BatchFill; rounds and batches are kept for the assertions."""

    def __init__(self, name: str) -> None:
        self.run = RUNS[name]
        self.config = self.run["config"]
        self.filter = StdFilter(filter_config(self.config))
        self.source = PromptSource(self.config["prompts_per_epoch"], self.config["train_batch_size"])
        self.events = iter(self.run["generation_events"])
        self.calls = iter(self.run["filter_calls"])
        self.trained: dict[int, list[ScoredGroup]] = {}
        self.generated: list[tuple[int, str, list[int]]] = []
        self.averages: dict[int, float | None] = {}
        self.rounds: list[tuple[str, float, list[bool], dict[str, float], dict[str, Any]]] = []
        self.carried: list[ScoredGroup] = []
        self.empty_epoch_end = False

    def play(self) -> Replay:
        for step in self.steps():
            resumed = self.config["resume_ema_mean"]
            if resumed and step == max(self.steps().start, self.config["filter_start_step"]):
                self.filter.load_state_dict({"step": step - 1, "average": resumed, "step_means": [], "collected": []})
            self.filter.begin_step(step)
            self.averages[step] = self.filter.average
            if not self.step(step):
                return self
        return self

    def steps(self) -> range:
        """From the first recorded step up to the one before total_training_steps, which the reference does not train
        (Q4)."""
        events = self.run["generation_events"]
        first = events[0]["step"] if events else self.run["final_global_steps"]
        return range(first, self.config["total_training_steps"])

    def step(self, step: int) -> bool:
        """Fill and train one step; False at the end of the record."""
        fill = BatchFill(self.config["train_batch_size"], 10**9, self.carried)
        while fill.wants_more:
            batch = self.source.next_batch()
            if batch is None:
                self.empty_epoch_end |= fill.rounds == 0 and self.filter.active
                self.source.new_epoch()
                self.carried = []
                return step <= self.run["final_global_steps"]
            event = next(self.events, None)
            if event is None:
                return False
            self.generated.append((step, *batch))
            groups = [scored_group(prompt, rewards) for prompt, rewards in zip(batch[1], event["rewards"], strict=True)]
            fill.offer(groups, self.judge(step, groups))
        self.trained[step], surplus = fill.take()
        self.filter.end_step()
        if self.config["filter_cache_regenerate"]:
            self.source.sampler.add_to_cache(indices(surplus))
        else:
            self.carried = surplus
        return True

    def judge(self, step: int, groups: list[ScoredGroup]) -> list[bool]:
        """Our decision; where ours is a corrected one the recorded decision keeps the replay on the recorded
        prompts."""
        keep = self.filter.judge(groups)
        if not self.filter.active:
            return keep
        call = next(self.calls)
        case = f"{self.run['name']}-step{step}" + ("-after-an-empty-epoch-end" if self.empty_epoch_end else "")
        self.rounds.append((case, self.filter.threshold, keep, self.filter.round_metrics, call))
        return list(call["keep"]) if correction(FILE, case) else keep


@cache
def replay(name: str) -> Replay:
    return Replay(name).play()


def averages_by_hand(replayed: Replay, repeats_last_mean: bool) -> Iterator[tuple[int, float]]:
    """(step, average) from the recorded rewards, of every filtered step that has one.

    repeats_last_mean: Q8, a lost step in which nothing was judged counts the mean before it once more.
    """
    config, recorded = replayed.config, replayed.run["generation_events"]
    start, ratio = config["filter_start_step"], config["filter_ema_ratio"]
    means: dict[int, float] = {}
    for step in replayed.steps():
        stds = [
            group_mean_and_std(rewards)[1]
            for event in recorded
            if event["step"] == step
            for rewards in event["rewards"]
        ]
        if stds and step >= config["filter_ema_start_step"]:
            means[step] = float(np.mean(stds))
    average = config["resume_ema_mean"] or None
    for step in replayed.steps():
        if step < start:
            continue
        if average is None:
            warm_up = [mean for earlier, mean in means.items() if earlier < step]
            average = float(np.mean(warm_up)) if warm_up else None
        elif step > max(start, replayed.steps().start):
            lost = step - 1 not in means and step - 1 not in replayed.trained
            before = (
                max((earlier for earlier in means if earlier < step), default=None)
                if lost and repeats_last_mean
                else step - 1
            )
            if before in means:
                average = ratio * average + (1 - ratio) * means[before]
        if average is not None:
            yield step, average


@runs
def test_the_recorded_prompts_are_generated_from_the_recorded_source(name: str) -> None:
    recorded = [(event["step"], event["source"], event["prompts"]) for event in RUNS[name]["generation_events"]]
    assert replay(name).generated == recorded


@runs
def test_thresholds_and_kept_groups_are_the_reference_ones(name: str) -> None:
    replayed = replay(name)
    assert next(replayed.calls, None) is None, "every recorded filter call was replayed"
    beta = replayed.config["std_filter_beta"]
    expected = dict(averages_by_hand(replayed, repeats_last_mean=False))
    for case, threshold, keep, metrics, call in replayed.rounds:
        if correction(FILE, case):
            upper = to_float(replayed.config["accuracy_upper_bound"])
            assert threshold == pytest.approx(beta * expected[call["step"]], rel=1e-6), case
            assert keep == [threshold <= std <= upper for std in call["group_std"]], case
        else:
            assert threshold == pytest.approx(to_float(call["lower_bound"]), rel=1e-6), case
            assert keep == call["keep"], case
            assert metrics == pytest.approx(call["metrics"]), case


@runs
def test_the_recorded_thresholds_differ_from_ours_by_the_repeated_mean_only(name: str) -> None:
    replayed = replay(name)
    beta = replayed.config["std_filter_beta"]
    recorded = {call["step"]: to_float(call["lower_bound"]) for call in RUNS[name]["filter_calls"]}
    by_hand = dict(averages_by_hand(replayed, repeats_last_mean=True))
    assert recorded == pytest.approx({step: beta * by_hand[step] for step in recorded}, rel=1e-6)


@runs
def test_the_average_is_that_of_the_recorded_rewards(name: str) -> None:
    replayed = replay(name)
    expected = dict(averages_by_hand(replayed, repeats_last_mean=False))
    assert {step: average for step, average in replayed.averages.items() if average is not None} == pytest.approx(
        {step: expected[step] for step in replayed.averages if step in expected}, rel=1e-6
    )


@runs
def test_the_recorded_prompts_are_trained_in_the_recorded_steps(name: str) -> None:
    recorded = {step["step"]: (sorted(step["prompts"]), step["n_samples"]) for step in RUNS[name]["trained"]}
    ours = {
        step: (sorted(set(indices(batch))), sum(len(g.rewards) for g in batch))
        for step, batch in replay(name).trained.items()
    }
    assert ours == recorded


@runs
def test_logged_numbers_of_a_step_are_the_reference_ones(name: str) -> None:
    replayed = replay(name)
    thresholds = {call["step"]: (case, threshold) for case, threshold, _, _, call in replayed.rounds}
    for logged in RUNS[name]["logged"]:
        step = logged["step"]
        case, threshold = thresholds.get(step, ("", 0.0))
        if not correction(FILE, case):
            assert threshold == pytest.approx(logged["filter/accuracy_lower_bound"], rel=1e-6)
        estimator = replayed.config["adv_estimator"]
        groups = [
            GroupRewards.at_the_end(group.final_rewards, [1] * len(group.rewards)) for group in replayed.trained[step]
        ]
        advantages = estimate_advantages(estimator, groups, EstimatorOptions())
        assert flat_share(estimator, advantages) == pytest.approx(logged["critic/filter_rate"])
        assert np.mean([group.std for group in advantages]) == pytest.approx(logged["std_per_group_mean"], rel=1e-5)
        assert correction(FILE, "during_filter_mean")
        assert logged["during_filter_mean"] == {}


@runs
def test_steps_end_where_the_reference_ends_or_go_on_where_it_crashes(name: str) -> None:
    run, replayed = RUNS[name], replay(name)
    if run["error"] is not None:
        assert correction(FILE, "error")
        assert run["final_global_steps"] in replayed.averages, "the step the reference crashes in has begun here"
        return
    assert correction(FILE, "final_global_steps")
    last_epochs = replayed.config["total_epochs"] - replayed.source.epochs_begun
    if last_epochs >= 0:
        assert run["final_global_steps"] == replayed.config["total_training_steps"] + last_epochs
