"""What a process has before it loads torch, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_rlpr.system.process_environment import default_threads

ROOT = Path(__file__).parents[3]
START = "from megatron_rlpr.system import process_environment; process_environment.ensure()\n"


def environment(**changes: str) -> dict[str, str]:
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MEGATRON_RLPR", "MALLOC_", "OMP_", "TORCHELASTIC"))
    }
    return {**clean, "PYTHONPATH": str(ROOT), **changes}


def python(code: str, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", START + code, *arguments]
    return subprocess.run(
        command, env=environment(**changes), capture_output=True, text=True, timeout=1200, check=False
    )


def test_the_process_is_replaced_once_and_keeps_its_arguments_and_the_users_values() -> None:
    code = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ), 'torch' in sys.modules]))"
    done = python(code, "a=b c", "--config", OMP_WAIT_POLICY="ACTIVE")
    arguments, found, torch_loaded = json.loads(done.stdout)
    assert arguments == ["a=b c", "--config"]
    assert found["TOKENIZERS_PARALLELISM"] == "false"
    assert found["OMP_WAIT_POLICY"] == "ACTIVE"
    assert not torch_loaded


def test_leaving_ends_helper_processes_and_tells_the_status() -> None:
    code = """
import subprocess, sys
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
print(helper.pid, flush=True)
process_environment.leave(7)
"""
    done = python(code)  # whose time limit a helper that held the output open would outlast
    assert done.returncode == 7
    assert not psutil.pid_exists(int(done.stdout)) or psutil.Process(int(done.stdout)).status() == psutil.STATUS_ZOMBIE


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
@pytest.mark.parametrize("forked", [False, True], ids=["a rank and its torchrun", "what a rank forks and the rank"])
def test_a_process_does_not_outlive_the_one_that_started_it(tmp_path: Path, forked: bool) -> None:
    pid_file = tmp_path / "pid"
    rank = f"import os, pathlib, time; pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid())); time.sleep(3600)"
    launch = (
        f"{START}import os, time\nif os.fork() == 0: exec({rank!r})\ntime.sleep(600)"
        if forked
        else "import subprocess, sys; "
        f"subprocess.Popen([sys.executable, '-c', {START + rank!r}], start_new_session=True).wait()"
    )
    launcher = subprocess.Popen([sys.executable, "-c", launch], env=environment(TORCHELASTIC_RUN_ID="1"))
    deadline = time.monotonic() + 600
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    pid = int(pid_file.read_text())
    assert psutil.pid_exists(pid)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize(("ranks", "share"), [("1", 1), ("1000", 0)])
def test_ranks_share_the_cores(ranks: str, share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    cores = len(os.sched_getaffinity(0))
    assert default_threads() == (cores if share else 1)


def test_leaving_removes_semaphores_from_shared_memory() -> None:
    """They have names where worker processes come from a fork server; the graders' do."""
    code = """
import multiprocessing
lock = multiprocessing.get_context("forkserver").Lock()
print(lock._semlock.name, flush=True)
process_environment.leave(0)
"""
    done = python(code)
    semaphore = Path("/dev/shm") / f"sem.{done.stdout.strip().removeprefix('/')}"
    assert len(semaphore.name) > len("sem.")
    deadline = time.monotonic() + 20
    while semaphore.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not semaphore.exists()


def test_a_tracker_is_known_before_it_has_begun_its_program() -> None:
    """It is forked first, and looks like its parent until then; a worker does so for ever."""
    code = """
import os, psutil, time
tracker = os.fork()
if tracker == 0:
    time.sleep(0.3)
    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)", ".".join(sys.argv[1:])])
worker = os.fork()
if worker == 0:
    time.sleep(60)
print([process_environment._tracks_resources(psutil.Process(pid)) for pid in (tracker, worker)])
process_environment.leave(0)
"""
    assert python("import sys" + code, "multiprocessing", "resource_tracker").stdout == "[True, False]\n"


def test_megatron_finds_no_wandb_and_its_import_leaves_nothing_behind(tmp_path: Path) -> None:
    done = python("import megatron.core.timers; process_environment.leave(0)", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("*wandb*")) == []
