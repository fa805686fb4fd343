"""The console tells a person where the run is, on the first rank, in a terminal and in a log file."""

from __future__ import annotations

import io
import re
import threading
import time

import pytest

from megatron_rlpr.tracking.console import Console, duration


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


METRICS = {
    "reward/mean": 0.3125,
    "actor/loss": -0.0123,
    "response_length/mean": 42.0,
    "tokens/s": 412.4,
    "time/step": 20.0,
}


def lines(file: io.StringIO) -> list[str]:
    return file.getvalue().splitlines()


def test_a_step_is_one_line_of_the_numbers_that_are_there() -> None:
    file = io.StringIO()
    Console(file=file, clock=Clock()).step(3, 60, {**METRICS, "actor/grad_norm": None, "unknown": 1})
    assert lines(file) == [
        "step  3/60  reward  0.312  length   42.0  loss -1.23e-02     412 tok/s    20.0 s  ETA 0:19:00"
    ]


def test_lines_of_one_run_are_aligned() -> None:
    file = io.StringIO()
    console = Console(file=file, clock=Clock())
    for step, reward in ((9, -0.5), (10, 0.25)):
        console.step(step, 60, {**METRICS, "reward/mean": reward})
    first, second = lines(file)
    assert [m.start() for m in re.finditer("reward|loss|tok/s", first)] == [
        m.start() for m in re.finditer("reward|loss|tok/s", second)
    ]


def test_the_time_left_includes_what_lies_between_steps() -> None:
    file, clock = io.StringIO(), Clock()
    console = Console(file=file, clock=clock)
    clock.now += 500.0  # start-up is not a step
    for step in (1, 2, 3):
        console.step(step, 10, METRICS)
        clock.now += 30.0
    assert [line.split("ETA ")[1] for line in lines(file)] == ["0:03:00", "0:04:00", "0:03:30"]


def test_the_last_step_has_no_time_left() -> None:
    file = io.StringIO()
    Console(file=file, clock=Clock()).step(60, 60, METRICS)
    assert "ETA" not in file.getvalue()


def test_other_ranks_print_nothing() -> None:
    file, clock = io.StringIO(), Clock()
    console = Console(rank=1, file=file, clock=clock)
    console.step(1, 2, METRICS)
    console.message("hello")
    with console.phase("score", 10) as phase:
        clock.now += 60.0
        phase.update(5)
    assert file.getvalue() == ""


def test_a_log_file_gets_a_plain_line_every_ten_seconds() -> None:
    file, clock = io.StringIO(), Clock()
    with Console(file=file, clock=clock).phase("rollout", 64) as phase:
        for done in range(1, 26):
            clock.now += 1.0
            phase.update(done, tokens=100 * done)
    assert lines(file) == ["  rollout  10/64  100 tok/s  ETA 0:00:54", "  rollout  20/64  100 tok/s  ETA 0:00:44"]


def test_a_short_phase_leaves_no_trace_in_a_log_file() -> None:
    file, clock = io.StringIO(), Clock()
    with Console(file=file, clock=clock).phase("score") as phase:
        clock.now += 9.0
        phase.update(1)
    assert file.getvalue() == ""


def test_phases_can_be_switched_off_without_losing_step_lines() -> None:
    file, clock = io.StringIO(), Clock()
    console = Console(enabled=False, file=file, clock=clock)
    with console.phase("rollout", 64) as phase:
        clock.now += 60.0
        phase.update(1)
    console.step(1, 2, METRICS)
    assert len(lines(file)) == 1


def test_pieces_add_up() -> None:
    clock = Clock()
    with Console(enabled=False, clock=clock).phase("score") as phase:
        for tokens in (300, 80, 20):
            clock.now += 1.0
            phase.advance(tokens, 4)
        assert (phase.done, phase.tokens, phase.tokens_per_s) == (3, 400, pytest.approx(400 / 3))
        assert phase.describe() == "3/4  133 tok/s  ETA 0:00:01"


def test_calls_in_a_row_count_on_and_expect_those_to_come_to_be_alike() -> None:
    file, clock = io.StringIO(), Clock()
    with Console(file=file, clock=clock).phase("update") as phase:
        for call, pieces in enumerate((4, 5)):
            report = phase.part(2 - call)
            for _ in range(pieces):
                clock.now += 5.0
                report(100, pieces)
    shown = [line.split()[1] for line in lines(file)]
    assert shown == ["2/8", "4/8", "6/9", "8/9"]


def test_engines_tell_their_own_share_of_what_was_asked() -> None:
    file, clock = io.StringIO(), Clock()
    with Console(file=file, clock=clock).phase("rollout", 64) as phase:
        clock.now += 10.0
        phase.generated(1000, 8, 32)
    assert lines(file) == ["  rollout  8/32  100 tok/s  ETA 0:00:30"]


def test_a_phase_of_unknown_length_shows_no_time_left() -> None:
    clock = Clock()
    with Console(enabled=False, clock=clock).phase("load") as phase:
        clock.now += 61.0
        assert phase.describe() == "since 0:01:01"
        phase.update(3)
        assert phase.describe() == "3 done  since 0:01:01"


def test_a_phase_that_reports_nothing_still_shows_that_it_is_alive() -> None:
    file = io.StringIO()
    before = threading.active_count()
    with Console(file=file, plain_interval_s=0.02).phase("start the engines"):
        deadline = time.monotonic() + 600
        while len(lines(file)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert lines(file)[:2] == ["  start the engines  since 0:00:00"] * 2
    assert threading.active_count() == before


def test_a_terminal_draws_the_phase_and_removes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    file = Terminal()
    console = Console(file=file)
    with console.phase("rollout", 64) as phase:
        phase.update(32, tokens=1000)
    drawn = file.getvalue()
    assert "rollout" in drawn
    assert "32/64" in drawn
    assert drawn.rstrip().endswith("\x1b[2K"), "the bar is erased"


@pytest.mark.parametrize("file", [io.StringIO(), Terminal()])
def test_an_error_inside_a_phase_reaches_the_caller(file: io.StringIO) -> None:
    with pytest.raises(ZeroDivisionError), Console(file=file).phase("update", 2):
        raise ZeroDivisionError


def test_text_is_printed_as_it_is() -> None:
    file = io.StringIO()
    Console(file=file).message("[bold]x[/bold] " + "y" * 300 + " :smile:")
    assert file.getvalue() == "[bold]x[/bold] " + "y" * 300 + " :smile:\n"


def test_a_validation_is_one_line() -> None:
    file = io.StringIO()
    Console(file=file).evaluation(0, {"val/held_out/greedy/reward": 0.25, "val/held_out/greedy/accuracy": None})
    assert lines(file) == ["validation at step 0  held_out/greedy/reward 0.250"]


def test_duration() -> None:
    assert [duration(s) for s in (0, 59.6, 3600, 363599)] == ["0:00:00", "0:01:00", "1:00:00", "100:59:59"]
