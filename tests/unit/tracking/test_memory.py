"""Peak memory is that of this process, in units of 1e9 bytes."""

from __future__ import annotations

import subprocess
import sys


def test_the_peak_grows_with_what_was_allocated_and_stays() -> None:
    program = (
        "from megatron_rlpr.tracking.memory import peak_resident_gb as peak\n"
        "before = peak(); block = b'x' * 300_000_000; during = peak(); del block\n"
        "print(during - before, peak() - before)"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    during, after = map(float, output.split())
    assert 0.29 < during < 0.32
    assert 0.29 < after < 0.32
