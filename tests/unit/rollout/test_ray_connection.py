"""A Ray address at which nobody answers is refused soon, and waiting for one that never does ends on SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_rlpr.rollout.ray import cluster
from megatron_rlpr.types import UserError

ROOT = Path(__file__).parents[3]
CONNECT = """
import sys
from megatron_rlpr.system import stop_signals
from megatron_rlpr.rollout.ray import cluster
stop_signals.listen()
cluster.connect(sys.argv[1], cpus=1)
"""


@pytest.mark.parametrize(
    "address", ["127.0.0.1:9", "ray://127.0.0.1:9", "no.such.host.invalid:6379", "127.0.0.1:99999"]
)
def test_an_address_without_a_cluster_is_refused_soon(address: str) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=rf"no Ray cluster answers at {address} .*rollout\.ray_address or RAY_ADDRESS"):
        cluster.connect(address, cpus=1)
    assert time.monotonic() - started < 3 * cluster._ANSWERS_WITHIN_S


@pytest.mark.parametrize(
    ("visible", "count", "ranks", "free"),
    [
        (None, 8, 4, ["4", "5", "6", "7"]),
        ("2,3,5", 3, 1, ["3", "5"]),
        ("GPU-a,GPU-b", 2, 1, ["GPU-b"]),
        (None, 2, 2, []),
        (None, 0, 2, []),
        ("", 0, 1, []),
    ],
)
def test_a_local_cluster_leaves_the_trainers_gpus_alone(
    visible: str | None, count: int, ranks: int, free: list[str]
) -> None:
    assert cluster.free_gpus(visible, count, ranks) == free


def test_waiting_for_a_server_that_is_no_ray_ends_on_sigterm(tmp_path: Path) -> None:
    """It listens and never answers, for which Ray tries for minutes inside one C++ call."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
    with socket.create_server(("", 0)) as silent, (tmp_path / "output").open("wb") as output:
        silent.settimeout(60)
        process = subprocess.Popen(
            [sys.executable, "-c", CONNECT, f"127.0.0.1:{silent.getsockname()[1]}"],
            env={**environment, "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=output,
        )
        try:
            for _ in range(2):
                silent.accept()  # the knock, then Ray itself, at this machine's own address
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 143
        finally:
            process.kill()
            process.wait()
    assert "stopped by SIGTERM: nothing was left to save" in (tmp_path / "output").read_text()
