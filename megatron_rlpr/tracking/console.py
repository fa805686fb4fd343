"""What a person sees: one line a step, and how far each phase is.

On a terminal a phase is a rich progress bar that goes away when it ends. Elsewhere (a log file, CI) a phase prints a
plain line every ten seconds or so, also when it reports nothing itself, and nothing at all when it is shorter.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from megatron_rlpr.types import TokensDone

PLAIN_INTERVAL_S = 10.0
PLAIN_WIDTH = 120

# What the step line shows: metric -> (label, format). Absent metrics are left out.
STEP_LINE: dict[str, tuple[str, str]] = {
    "reward/mean": ("reward", "{:6.3f}"),
    "reward/reference_probability": ("p(ref)", "{:5.3f}"),
    "reward/format": ("format", "{:4.2f}"),
    "filter/kept_fraction": ("kept", "{:4.2f}"),
    "response_length/mean": ("length", "{:6.1f}"),
    "actor/loss": ("loss", "{:+9.2e}"),
    "actor/grad_norm": ("grad", "{:8.2e}"),
    "actor/entropy": ("entropy", "{:5.3f}"),
    "rollout/log_prob_gap": ("gap", "{:7.1e}"),
    "tokens/s": ("tok/s", "{:6.0f}"),
    "time/step": ("s", "{:6.1f}"),
}


class PhaseProgress:
    """How far a phase is. done and tokens only grow; both count since the phase began.

    total: what will be done in the end, as far as it is known; those who report may know better than who began.
    """

    def __init__(
        self, name: str, total: float | None, changed: Callable[[PhaseProgress], None], clock: Callable[[], float]
    ) -> None:
        self.name = name
        self.total = total
        self.done = 0.0
        self.tokens = 0
        self._changed = changed
        self._clock = clock
        self._started = clock()

    def update(self, done: float, tokens: int | None = None) -> None:
        """Set what is done so far (in the unit of total) and the tokens processed so far."""
        self.done = done
        self.tokens = self.tokens if tokens is None else tokens
        self._changed(self)

    def advance(self, tokens: int, pieces: int) -> None:
        """One of so many pieces is finished (types.TokensDone)."""
        self.total = pieces
        self.update(self.done + 1, self.tokens + tokens)

    def part(self, parts_left: int) -> TokensDone:
        """`advance` for one of several calls in a row; this one and those after it are taken to have equal pieces."""
        before = self.done
        return lambda tokens, pieces: self.advance(tokens, round(before) + pieces * parts_left)

    def generated(self, tokens: int, done: int, total: int) -> None:
        """All of it so far, as engines report it (rollout.engine.ProgressCallback)."""
        self.total = total
        self.update(done, tokens)

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._started

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def remaining_s(self) -> float | None:
        """Expected seconds to the end at the speed so far; None while that is unknown."""
        if not self.total or not self.done:
            return None
        return self.elapsed_s * max(self.total - self.done, 0.0) / self.done

    def describe(self) -> str:
        """'12/64  412 tok/s  ETA 0:00:37' without what is unknown; the time so far where none is left to tell."""
        parts = [f"{self.done:g}/{self.total:g}"] if self.total else [f"{self.done:g} done"] if self.done else []
        if self.tokens:
            parts.append(f"{self.tokens_per_s:.0f} tok/s")
        remaining = self.remaining_s
        parts.append(f"since {duration(self.elapsed_s)}" if remaining is None else f"ETA {duration(remaining)}")
        return "  ".join(parts)


class Console:
    """Prints on the first rank only. enabled=False leaves the phases out, never the step lines.

    The time left of the run is the mean wall-clock time between step lines, which includes checkpoints and validations,
    times the steps that remain; after the first step of a process it is made from that step's time/step.
    """

    def __init__(
        self,
        enabled: bool = True,
        rank: int = 0,
        file: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        plain_interval_s: float = PLAIN_INTERVAL_S,
    ) -> None:
        self._writes = rank == 0
        self._enabled = enabled and self._writes
        self._file = file if file is not None else sys.stdout
        self._clock = clock
        self._plain_interval_s = plain_interval_s
        self._rich = RichConsole(file=self._file, highlight=False)
        if not self._rich.is_terminal:
            self._rich.width = PLAIN_WIDTH
        self._step_ends: list[float] = []

    def message(self, text: str) -> None:
        """Print one line, unwrapped and without markup."""
        if self._writes:
            self._rich.print(Text(text), soft_wrap=True)

    def table(self, table: Table) -> None:
        """Print a rich table; without a terminal it may be 120 columns wide."""
        if self._writes:
            self._rich.print(table)

    def step(self, step: int, total_steps: int, metrics: Mapping[str, Any]) -> None:
        """Print the line of a finished step."""
        self._step_ends.append(self._clock())
        width = len(str(total_steps))
        parts = [f"step {step:{width}d}/{total_steps}"]
        for name, (label, form) in STEP_LINE.items():
            value = metrics.get(name)
            if value is not None:
                number = form.format(float(value))
                parts.append(f"{number} {label}" if label in ("tok/s", "s") else f"{label} {number}")
        seconds = self._seconds_a_step(metrics)
        if seconds is not None and total_steps > step:
            parts.append(f"ETA {duration(seconds * (total_steps - step))}")
        self.message("  ".join(parts))

    def evaluation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Print the line of a validation: its metrics val/..., without that beginning and without intervals."""
        numbers = [
            f"{name.removeprefix('val/')} {value:.3f}"
            for name, value in metrics.items()
            if name.startswith("val/") and isinstance(value, int | float) and not name.endswith(("_low", "_high"))
        ]
        self.message("  ".join([f"validation at step {step}", *numbers]))

    @contextmanager
    def phase(self, name: str, total: float | None = None) -> Iterator[PhaseProgress]:
        """Show a phase while the body runs; the body calls update or advance on what it gets."""
        if not self._enabled:
            yield PhaseProgress(name, total, lambda _: None, self._clock)
        elif self._rich.is_terminal:
            yield from self._drawn(name, total)
        else:
            yield from self._plain(name, total)

    def _drawn(self, name: str, total: float | None) -> Iterator[PhaseProgress]:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), _Description())
        with Progress(*columns, console=self._rich, transient=True, refresh_per_second=4) as bar:
            task = bar.add_task(name, total=total)

            def draw(phase: PhaseProgress) -> None:
                bar.update(task, completed=phase.done, total=phase.total, phase=phase)

            yield PhaseProgress(name, total, draw, self._clock)

    def _plain(self, name: str, total: float | None) -> Iterator[PhaseProgress]:
        printed_at = self._clock()
        one_at_a_time = threading.Lock()

        def report(phase: PhaseProgress) -> None:
            nonlocal printed_at
            with one_at_a_time:
                if self._clock() - printed_at >= self._plain_interval_s:
                    printed_at = self._clock()
                    self.message(f"  {phase.name}  {phase.describe()}")

        phase = PhaseProgress(name, total, report, self._clock)
        ended = threading.Event()

        def keep_reporting() -> None:
            while not ended.wait(self._plain_interval_s):
                report(phase)

        # A thread speaks for phases that are one long call and report nothing while they run.
        reporter = threading.Thread(target=keep_reporting, name=f"progress of {name}", daemon=True)
        reporter.start()
        try:
            yield phase
        finally:
            ended.set()
            reporter.join()

    def _seconds_a_step(self, metrics: Mapping[str, Any]) -> float | None:
        if len(self._step_ends) > 1:
            return (self._step_ends[-1] - self._step_ends[0]) / (len(self._step_ends) - 1)
        return metrics.get("time/step")


class _Description(ProgressColumn):
    """The words of a phase, beside its bar."""

    def render(self, task: Task) -> Text:
        phase = task.fields.get("phase")
        return Text(phase.describe() if phase else "")


def duration(seconds: float) -> str:
    """h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
