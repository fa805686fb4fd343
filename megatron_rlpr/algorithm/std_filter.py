"""Leave out groups whose rewards barely differ, by a threshold that follows a moving average of the group std.

One training step t (numbers from 1) with mode "EMA":
    t <  ema_start_step                everything is kept, nothing is collected
    ema_start_step <= t < start_step   everything is kept, the stds of all judged groups are collected
    t == start_step                    average = mean of the collected steps' mean stds
    t >  start_step                    average = ema_ratio * average + (1 - ema_ratio) * mean std of the step before
    t >= start_step                    keep a group iff std_filter_beta * average <= target <= accuracy_upper_bound
A step's mean covers the groups of all its rounds, before filtering. A step in which nothing was judged leaves the
average as it is. Mode "fixed" keeps a group iff accuracy_lower_bound <= target <= accuracy_upper_bound, from the first
step on.

Rewards are finite: the trainer stops where one is not. What is not finite all the same (a target of the groups' scores,
say) never reaches the average, and its group is dropped as soon as the filter acts, whatever the bounds; a step with
nothing finite leaves the average as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron_rlpr.algorithm.group_statistics import group_mean_and_std
from megatron_rlpr.config.schema import FilterConfig
from megatron_rlpr.types import ScoredGroup, UserError

STATE_KEYS = {"step", "average", "step_means", "collected"}


class StdFilter:
    """The filter and its whole state; state_dict() makes a resumed run go on exactly where it stopped.

    begin_step(t), then judge(groups) once per round, then end_step(). average: of the group std, None until the first
    filtered step.
    """

    def __init__(self, config: FilterConfig) -> None:
        self._config = config
        self._multipliers = source_multipliers(config.std_filter_beta_per_data_source)
        self._step = 0
        self.average: float | None = None
        self._step_means: list[float] = []
        self._collected: list[float] = []
        self._last_round = (0.0, 0.0, 0.0)

    @property
    def active(self) -> bool:
        """This step's bounds are applied."""
        return self._config.enabled and self._filters_now

    @property
    def threshold(self) -> float:
        """Lower bound of the target in this step; 0 while the filter does not act."""
        if not self.active:
            return 0.0
        if self._config.mode == "fixed":
            return self._config.accuracy_lower_bound
        return self._config.std_filter_beta * (self.average or 0.0)

    @property
    def round_metrics(self) -> dict[str, float]:
        """Of the last judged round: share of dropped groups, of those below the lower and above the upper bound."""
        return dict(zip(("filter/rate", "filter/lower_rate", "filter/upper_rate"), self._last_round, strict=True))

    @property
    def _filters_now(self) -> bool:
        return self._config.mode == "fixed" or self._step >= self._config.start_step

    @property
    def _collects_now(self) -> bool:
        return self._config.mode == "EMA" and self._step >= self._config.ema_start_step

    def begin_step(self, step: int) -> None:
        """Enter training step `step` (from 1): bring the average, and with it the threshold, up to date."""
        self._step = step
        self._last_round = (0.0, 0.0, 0.0)
        self.end_step()
        if self._collects_now and self._filters_now and self._step_means:
            if self.average is None:
                self.average = float(np.mean(self._step_means))
            else:
                ratio = self._config.ema_ratio
                self.average = ratio * self.average + (1.0 - ratio) * self._step_means[-1]
            self._step_means = []

    def judge(self, groups: Sequence[ScoredGroup], stds: Sequence[float] | None = None) -> list[bool]:
        """Which groups of one round are kept, in order; their stds are collected for the average.

        stds: the spread of each group where it is not that of the final rewards (mixed-reward estimators).
        """
        if stds is None:
            stds = [group_mean_and_std(group.final_rewards)[1] for group in groups]
        if self._collects_now:
            self._collected.extend(std for std in stds if math.isfinite(std))
        values = [self._target(group, std) for group, std in zip(groups, stds, strict=True)]
        below = [self.active and value < self.threshold for value in values]
        above = [self.active and value > self._config.accuracy_upper_bound for value in values]
        undefined = [self.active and not math.isfinite(value) for value in values]
        cut = [self._config.truncated and self._filters_now and _is_truncated(group) for group in groups]
        keep = [not any(reasons) for reasons in zip(below, above, undefined, cut, strict=True)]
        count = max(len(groups), 1)
        self._last_round = (keep.count(False) / count, sum(below) / count, sum(above) / count)
        return keep

    def end_step(self) -> None:
        """The step's batch is complete: its collected stds become one mean."""
        if self._collected:
            self._step_means.append(float(np.mean(self._collected)))
            self._collected = []

    def state_dict(self) -> dict[str, Any]:
        """The whole state, JSON-serialisable."""
        return {
            "step": self._step,
            "average": self.average,
            "step_means": list(self._step_means),
            "collected": list(self._collected),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from state_dict()."""
        if set(state) != STATE_KEYS:
            raise UserError(
                f"the checkpoint's std-filter state has keys {sorted(state)}, expected {sorted(STATE_KEYS)}: written "
                "by another version"
            )
        self._step = int(state["step"])
        self.average = None if state["average"] is None else float(state["average"])
        self._step_means = [float(mean) for mean in state["step_means"]]
        self._collected = [float(std) for std in state["collected"]]

    def _target(self, group: ScoredGroup, std: float) -> float:
        """The number a group is judged by, its data source's multiplier included."""
        match self._config.target:
            case "final_reward_std":
                value = std
            case "scoreB-scoreA":
                value = float(np.mean([r.reference_probability - r.base_probability for r in group.rewards]))
            case "scoreB":
                value = float(np.mean([r.reference_probability for r in group.rewards]))
            case "vr_acc":
                value = float(np.mean([r.accuracy for r in group.rewards]))
        return value * self._multipliers.get(group.group.prompt.data_source, 1.0)


def _is_truncated(group: ScoredGroup) -> bool:
    """At least one response was cut at the length limit."""
    return any(response.finish_reason == "length" for response in group.group.responses)


def source_multipliers(text: str) -> dict[str, float]:
    """Read multipliers: "maths_is_1.5+physics_is_0.8" -> {"maths": 1.5, "physics": 0.8}; empty text: no multipliers.

    Raises UserError for another form, a negative number, one of more than six digits, or a source that comes twice.
    """
    multipliers: dict[str, float] = {}
    for part in text.split("+") if text else []:
        matched = re.fullmatch(r"(.+)_is_([0-9]{1,6}(?:\.[0-9]*)?|\.[0-9]+)", part)
        if matched is None or matched.group(1) in multipliers:
            raise UserError(
                f"filter.std_filter_beta_per_data_source: {part!r} {'comes twice' if matched else 'is not'}, expected "
                "source_is_number once for a source, as in 'maths_is_1.5+physics_is_0.8'"
            )
        multipliers[matched.group(1)] = float(matched.group(2))
    return multipliers
