"""The compiled loops equal the tensor operations they stand for."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.actor.attention.rotary import Rotary, rotated
from megatron_rlpr.actor.cpu import loops as cpu_loops

DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2**-8}
ROOT = Path(__file__).parents[3]


@settings(max_examples=40, deadline=None)
@given(
    heads=st.integers(1, 3),
    rows=st.integers(1, 5),
    keys=st.integers(1, 40),
    tail=st.integers(0, 5),
    front=st.integers(0, 5),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_attention_gradient_is_that_of_a_biased_softmax(
    heads: int, rows: int, keys: int, tail: int, front: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tail, front = min(tail, keys - 1), min(front, keys - 1)
    scores, grads = (3 * torch.randn(2, heads, rows, keys, generator=generator)).to(dtype)
    hidden = [torch.rand(rows, width, generator=generator) < 0.5 for width in (tail, front)]
    tail_bias, front_bias = (torch.zeros(h.shape, dtype=dtype).masked_fill(h, -math.inf) for h in hidden)
    # Some key is left for every row.
    tail_bias[:, -1:], front_bias[:, :1] = 0, 0

    exact = scores.double()
    exact[..., keys - tail :] += tail_bias
    exact[..., :front] += front_bias
    if exact.isinf().all(-1).any():
        return
    exact.requires_grad_()
    weights = exact.softmax(-1)
    (expected,) = torch.autograd.grad(weights, exact, grads.double())

    cpu_loops.attention_gradient(heads * rows, scores, grads, tail_bias, front_bias, rows, keys, tail, front)
    torch.testing.assert_close(scores.double(), weights.detach(), atol=1e-6, rtol=TOLERANCE[dtype])
    torch.testing.assert_close(grads.double(), expected, atol=1e-5 + TOLERANCE[dtype] / 100, rtol=TOLERANCE[dtype])


def test_what_is_hidden_weighs_exactly_nothing() -> None:
    """Not the smallest normal number: products with that are subnormal, and several times slower."""
    scores = torch.tensor([[0.0, -math.inf, 1.0, -200.0]])
    grads = torch.ones(1, 4)
    nothing = torch.zeros(1, 0)
    cpu_loops.attention_gradient(1, scores, grads, nothing, nothing, 1, 4, 0, 0)
    assert scores[0, 1] == scores[0, 3] == grads[0, 1] == grads[0, 3] == 0
    assert float(scores.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [math.nan, -math.nan, math.inf])
def test_a_logit_that_is_no_number_is_not_hidden(dtype: torch.dtype, poison: float) -> None:
    logits = torch.randn(3, 40).to(dtype)
    logits[1, 7] = poison
    sums = torch.zeros(3, 3)
    cpu_loops.head_sums(3, logits, sums, 40, 1 / math.log(2))
    assert not sums[1:, 1].isfinite().any()
    assert sums[:, [0, 2]].isfinite().all()


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 9),
    width=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    spread=st.sampled_from([1.0, 30.0, 1000.0]),
)
def test_head_sums_over_tiles_are_logsumexp_and_entropy(
    rows: int, width: int, dtype: torch.dtype, spread: float
) -> None:
    tiles = [
        (spread * torch.randn(rows, width, generator=torch.Generator().manual_seed(i))).to(dtype) for i in range(3)
    ]
    sums = torch.zeros(3, rows)
    sums[0] = torch.finfo(torch.float32).min / 4
    for tile in tiles:
        cpu_loops.head_sums(rows, tile, sums, width, 1 / math.log(2))
    log_probs = torch.cat(tiles, dim=1).double().log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    top, total, expected = sums.double() * torch.tensor([math.log(2), 1, math.log(2)])[:, None]
    torch.testing.assert_close(top + total.log(), torch.cat(tiles, dim=1).double().logsumexp(-1), atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(total.log() - expected / total, entropy, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_of_strided_heads(dtype: torch.dtype) -> None:
    qkv = torch.randn(7, 3, 4, 16).to(dtype)
    angles = torch.randn(7, 8)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    keys = qkv[:, :, 2]
    rotary = torch.cat((cos, sin), dim=-1)
    found = rotated(keys, rotary)
    first, second = keys.float().chunk(2, dim=-1)
    whole = [torch.cat((t, t), dim=-1)[:, None, :] for t in (cos, sin)]
    expected = keys.float() * whole[0].float() + torch.cat((-second, first), dim=-1) * whole[1].float()
    torch.testing.assert_close(found.float(), expected, atol=1e-6, rtol=TOLERANCE[dtype])
    if dtype == torch.float32:
        torch.testing.assert_close(rotated(found, rotary, back=True), keys)
    values, grad = keys.clone().requires_grad_(), torch.randn(keys.shape).to(dtype)
    turned = Rotary(*whole).rotate(values)
    assert torch.equal(turned, found)
    assert torch.equal(torch.autograd.grad(turned, values, grad)[0], rotated(grad, rotary, back=True))


def test_numbers_are_rounded_to_nearest_even_as_torch_does() -> None:
    """Rotation by no angle copies: what comes out is what was rounded."""
    values = (
        torch.from_numpy(np.random.default_rng(0).integers(0, 2**15 - 2**8, 4096).astype(np.int16))
        .view(torch.bfloat16)
        .view(128, 2, 16)
    )
    same = torch.cat((torch.ones(128, 8), torch.zeros(128, 8)), dim=-1).bfloat16()
    assert torch.equal(rotated(values, same), values)
    third = torch.full((128, 16), 1 / 3).bfloat16()
    x, y = values[..., :8].float(), values[..., 8:].float()
    c = float(third[0, 0])
    assert torch.equal(rotated(values, third), torch.cat(((x * c - y * c), (y * c + x * c)), dim=-1).bfloat16())


def test_threads_do_not_change_the_numbers() -> None:
    x, before = torch.randn(300, 2 * 256), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(torch.empty(300, 256))
            cpu_loops.gated_silu(300, x, found[-1], 256)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_numbers_are_those_of_any_earlier_process(tmp_path: Path) -> None:
    """Compiled here, read from disk, or some of each and in another order."""

    def numbers(*order: str) -> dict[str, str]:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
        program = [sys.executable, str(Path(__file__).with_name("loop_numbers.py")), *order]
        done = subprocess.run(program, capture_output=True, text=True, timeout=900, env=environment)
        assert done.returncode == 0, done.stderr
        return dict(line.split() for line in done.stdout.splitlines())

    first = numbers()
    assert len(first) == len(set(first.values())) == 7, "a number for each loop"
    kept = sorted(tmp_path.rglob("*.nbi"))
    assert len(kept) == len(first)
    for index in kept[::2]:
        index.unlink()
    assert numbers("reversed") == first


def test_without_a_place_for_compiled_code_it_is_compiled_again() -> None:
    code = (
        "import torch; from megatron_rlpr.actor.cpu import loops as cpu_loops; x, out = torch.ones(2, 8), "
        "torch.empty(2, 4); cpu_loops.gated_silu(2, x, out, 4); print(float(out[0, 0]))"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": "/dev/null/nowhere"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=1200, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(1 / (1 + math.exp(-1)))


def test_an_engine_can_start_in_a_process_that_has_compiled_loops() -> None:
    """vLLM goes through everything that modules hold, also through llvmlite's library object."""
    code = (
        "import megatron_rlpr.actor.cpu.loops; from vllm.triton_utils import dispatcher; "
        "dispatcher._rebind_kernels([]); print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1200, cwd=ROOT)
    assert done.stdout.strip().endswith("fine"), done.stderr[-2000:]
