"""A signal ends a process where nothing is lost, with one line that says how to go on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_rlpr.system import stop_signals
from megatron_rlpr.system.decisions import first_rank_decides, gather_or_raise

ROOT = Path(__file__).parents[3]
# A suite that a shell runs in the background, or under nohup, hands on that it ignores some signals.
START = """
import signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
from megatron_rlpr.system import process_environment, stop_signals
stop_signals.listen()
"""
WAITING = "print('ready', flush=True)\ntime.sleep(600)\n"
IN_A_LIBRARY = """
import ctypes
libc, every_signal = ctypes.CDLL(None), ctypes.create_string_buffer(b"\\xff" * 128)
libc.pthread_sigmask(0, every_signal, None)  # the main thread is not interrupted: another one gets the signal
print("ready", flush=True)
libc.sleep(600)
"""
HELD = """
try:
    with stop_signals.held():
        print("ready", flush=True)
        while True:
            time.sleep(0.02)
            LOOK
except stop_signals.Stopped as stopped:
    print(stopped, file=sys.stderr)
    process_environment.leave(stopped.exit_status)
"""


def told(folder: Path, code: str, *signals: tuple[signal.Signals, float]) -> tuple[int, list[str], float]:
    """Exit status, lines on standard error and seconds to the end of a program that gets signals, with pauses."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TORCHELASTIC", "RANK"))}
    (folder / "program.py").write_text(START + code)
    command = [sys.executable, str(folder / "program.py")]
    with subprocess.Popen(
        command, env={**clean, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        started = time.monotonic()
        for number, seconds in signals:
            process.send_signal(number)
            time.sleep(seconds)
        try:
            _, said = process.communicate(timeout=900)
        finally:
            process.kill()
    return process.returncode, said.splitlines(), time.monotonic() - started


@pytest.mark.parametrize("code", [WAITING, IN_A_LIBRARY], ids=["waiting", "in a library"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_run_without_anything_to_save_ends_at_once(
    code: str, number: signal.Signals, status: int, tmp_path: Path
) -> None:
    ended, said, seconds = told(tmp_path, code, (number, 0))
    assert (ended, len(said)) == (status, 1), said
    assert said[0].startswith(f"stopped by {number.name}: nothing was left to save; go on with: "), said
    assert shlex.split(said[0].split("go on with: ")[1]) == [sys.executable, str(tmp_path / "program.py")]
    assert seconds < 300


def test_a_held_run_stops_where_it_looks(tmp_path: Path) -> None:
    ended, said, _ = told(tmp_path, HELD.replace("LOOK", "stop_signals.check()"), (signal.SIGTERM, 0))
    assert ended == 143
    assert [line.split(":")[0] for line in said] == ["SIGTERM", "stopped by SIGTERM"]


def test_a_second_signal_ends_a_run_that_does_not_look_and_an_echo_of_the_first_does_not(tmp_path: Path) -> None:
    echo = stop_signals._ECHO_S
    signals = [(signal.SIGTERM, 0.2), (signal.SIGTERM, echo), (signal.SIGINT, 0.0)]
    ended, said, seconds = told(tmp_path, HELD.replace("LOOK", "pass"), *signals)
    assert ended == 130
    assert [line.split(";")[0] for line in said] == [
        "SIGTERM: stopping as soon as nothing is lost",
        "stopped by SIGINT: at the second signal, the last checkpoint stays",
    ]
    assert seconds > echo


def test_what_was_ignored_stays_ignored(tmp_path: Path) -> None:
    """nohup ignores SIGHUP for what it starts."""
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); stop_signals.listen_again()\n"
    ended, said, _ = told(tmp_path, ignored + WAITING, (signal.SIGHUP, 0.5), (signal.SIGTERM, 0))
    assert (ended, len(said)) == (143, 1), said


def test_a_stop_passes_through_decisions_as_what_it_is() -> None:
    def work() -> None:
        raise stop_signals.Stopped("SIGTERM")

    for decide in (lambda: first_rank_decides(work), lambda: gather_or_raise(work, None, "generation")):
        with pytest.raises(stop_signals.Stopped, match="stopped by SIGTERM: nothing was left to save") as stopped:
            decide()
        assert stopped.value.exit_status == 143
