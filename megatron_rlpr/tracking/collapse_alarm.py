"""A warning when reasoning collapses: probability rewards are known to shorten it until it vanishes.

Two measures are watched: how long reasoning is, and the reasoning gain, the reference probability with the reasoning
minus that with it left out (`reward.reasoning`). One batch says little, so means over tracking.collapse_window values
are compared: of the first ones (the start) and of the last ones, which never overlap. A measure is low while

    mean(last window values) < share * start        and  start > 0

and a warning is given for the step in which it becomes low; it can come again only after a step in which it was not. A
start at or below 0 has nothing to fall from. A step that has no value (nothing was trained on) is as if it were not
there. Everything is part of the run's state, so a resumed run warns in the steps in which an undisturbed one does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from megatron_rlpr.config.schema import TrackingConfig


@dataclass
class Watched:
    """first: the values of the start; recent: the last ones after it; low: as of the last value."""

    first: list[float] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    low: bool = False

    def falls(self, value: float, share: float, window: int) -> bool:
        """Take one more value; True when the measure becomes low with it."""
        if len(self.first) < window:
            self.first.append(value)
            return False
        self.recent = [*self.recent, value][-window:]
        was_low = self.low
        self.low = len(self.recent) >= window and self.start > 0 and self.now < share * self.start
        return self.low and not was_low

    @property
    def start(self) -> float:
        """Mean of the first values."""
        return math.fsum(self.first) / len(self.first)

    @property
    def now(self) -> float:
        """Mean of the last values."""
        return math.fsum(self.recent) / len(self.recent)


class CollapseAlarm:
    """Watches the metrics of every step. raised: all warnings of the run so far, as entries of summary.json."""

    def __init__(self, tracking: TrackingConfig) -> None:
        self._window = tracking.collapse_window
        self._shares = {
            "reasoning/length": ("collapse_length_share", tracking.collapse_length_share),
            "reasoning/gain": ("collapse_gain_share", tracking.collapse_gain_share),
        }
        self._watched = {name: Watched() for name in self._shares}
        self.raised: list[dict[str, Any]] = []

    def watch(self, step: int, metrics: Mapping[str, Any]) -> list[str]:
        """Take a step's metrics; one line for each measure that becomes low in it."""
        warnings = []
        for name, (key, share) in self._shares.items():
            value = metrics.get(name)
            watched = self._watched[name]
            if value is None or not math.isfinite(value) or not watched.falls(value, share, self._window):
                continue
            self.raised.append({"measure": name, "step": step, "start": watched.start, "now": watched.now})
            warnings.append(
                f"warning: step {step}: {name} has fallen to {watched.now:.3g} (mean of {self._window} steps) from "
                f"{watched.start:.3g} at the start, less than tracking.{key}={share:g} of it: the reasoning may be "
                "collapsing"
            )
        return warnings

    def state_dict(self) -> dict[str, Any]:
        """The whole state, JSON-serialisable."""
        return {"watched": {name: asdict(one) for name, one in self._watched.items()}, "raised": list(self.raised)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from state_dict(). Raises KeyError, TypeError or ValueError for anything else."""
        watched = {name: Watched(**state["watched"][name]) for name in self._shares}
        for one in watched.values():
            one.first, one.recent = list(map(float, one.first)), list(map(float, one.recent))
        self._watched, self.raised = watched, list(state["raised"])
