"""The kernels of this machine's vLLM are found without importing it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

PROGRAM = """
import sys
from megatron_rlpr.actor.cpu.kernels import cpu_kernels
kernels = cpu_kernels()
assert not any(name == "vllm" or name.startswith("vllm.") for name in sys.modules), "vllm was imported"
print(kernels is not None)
from vllm.platforms import current_platform
current_platform.import_kernels()
"""


def test_the_installed_cpu_build_brings_them_and_vllm_can_be_imported_afterwards() -> None:
    if torch.cuda.is_available():
        pytest.skip("with CUDA the policy does not use them")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=1200)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
