"""What the emulated kernels compute on a CPU is what Transformer Engine computes here.

`tests/gpu/pack.sh` leaves the emulated numbers in build/gpu/emulated.safetensors.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gpu_policies import needs_transformer_engine
from gpu_records import Within
from safetensors.torch import load_file

EMULATED = Path("build/gpu/emulated.safetensors")
pytestmark = [
    needs_transformer_engine,
    pytest.mark.skipif(not EMULATED.is_file(), reason=f"needs {EMULATED}: bash tests/gpu/pack.sh makes it"),
]
SHARE_OF_BYTES, BF16_ROUNDING = 1e-3, 4e-3


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By name: computed here, emulated."""
    from kernel_samples import samples

    here, emulated = samples("cuda"), load_file(EMULATED)
    assert here.keys() == emulated.keys()
    return {name: (here[name], emulated[name]) for name in here}


def test_bytes_and_scales_are_equal(pairs: dict[str, tuple[torch.Tensor, torch.Tensor]], within: Within) -> None:
    faults = []
    for name, (here, emulated) in pairs.items():
        if "step" in name:
            continue
        if here.shape != emulated.shape:
            faults.append(f"{name}: shape {tuple(here.shape)}, emulated {tuple(emulated.shape)}")
            continue
        try:
            within(float((here != emulated).float().mean()), SHARE_OF_BYTES, f"{name}: share that differs")
        except AssertionError as error:
            faults.append(str(error))
    assert not faults, "; ".join(faults)


@pytest.mark.parametrize("recipe", ["bf16", "delayed", "tensorwise", "blockwise"])
def test_layers_are_equal(recipe: str, pairs: dict[str, tuple[torch.Tensor, torch.Tensor]], within: Within) -> None:
    """To the rounding of bf16; FP8's own error is ten times that."""
    faults = []
    for name, (here, emulated) in pairs.items():
        if "step" in name and name.startswith(recipe):
            error = (here.float() - emulated.float()).norm() / emulated.float().norm()
            try:
                within(float(error), BF16_ROUNDING, f"{name}: relative difference")
            except AssertionError as error:
                faults.append(str(error))
    assert not faults, "; ".join(faults)
