"""The difference of two tensors turns one into the other, bit for bit, and one that is damaged is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rlpr.weights.delta_code import apply_difference, difference
from megatron_rlpr.weights.receiver import WeightHandoverError

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.float64]
SEEDS = st.integers(0, 2**31)


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.reshape(-1).view(torch.uint8).tolist()


def versions(numel: int, dtype: torch.dtype, density: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Two of random bits, NaNs among them, and how many of their values differ."""
    generator = torch.Generator().manual_seed(seed)
    before = torch.randint(0, 256, (numel, dtype.itemsize), dtype=torch.uint8, generator=generator)
    differs = torch.rand(numel, generator=generator) < density
    after = before.clone()
    after[differs, int(seed % dtype.itemsize)] ^= 1 + seed % 255
    return before.view(dtype).view(-1), after.view(dtype).view(-1), int(differs.sum())


@given(
    numel=st.integers(0, 1200),
    dtype=st.sampled_from(DTYPES),
    density=st.sampled_from([0.0, 0.0005, 0.01, 0.1, 0.3, 1.0]),
    block=st.integers(100, 1300),
    seed=SEEDS,
)
@settings(max_examples=120, deadline=None)
def test_a_difference_makes_the_newer_of_the_older_version(
    numel: int, dtype: torch.dtype, density: float, block: int, seed: int
) -> None:
    before, after, differing = versions(numel, dtype, density, seed)
    found = difference(before, after, block)
    assert found.changed == differing
    if found.code is None:  # it would hardly be shorter than the tensor
        most = differing * (1 + dtype.itemsize) + numel / 255 + 8
        assert most > after.nbytes / 2
        return
    assert len(found.code) <= after.nbytes / 2
    made = before.clone()
    apply_difference(made, found.code, block)
    assert bits(made) == bits(after)


def test_blocks_of_any_size_give_the_same_code() -> None:
    before, after, _ = versions(600, torch.bfloat16, 0.01, 3)
    codes = [difference(before, after, block).code for block in (1, 255, 256, 599, 600, 2**24)]
    assert all(code is not None and torch.equal(code, codes[0]) for code in codes)


def test_a_changed_value_of_a_bf16_tensor_takes_three_bytes() -> None:
    before, after, differing = versions(20_000, torch.bfloat16, 0.02, 5)
    code = difference(before, after).code
    assert code is not None
    assert 3 * differing <= len(code) - 8 <= 3 * differing + 20_000 // 255


def test_nothing_changed_takes_eight_bytes_and_everything_goes_whole() -> None:
    before, after, _ = versions(1000, torch.float32, 1.0, 9)
    nothing = difference(before, before.clone())
    assert (nothing.changed, nothing.code is not None and len(nothing.code)) == (0, 8)
    assert difference(before, after) == (None, 1000)


def test_zero_and_minus_zero_differ() -> None:
    before = torch.zeros(64, dtype=torch.bfloat16)
    after = before.clone()
    after[7] = -0.0
    code = difference(before, after).code
    assert code is not None
    apply_difference(before, code)
    assert bits(before) == bits(after)


@given(seed=SEEDS, cut=st.integers(1, 400))
@settings(max_examples=30, deadline=None)
def test_a_cut_difference_is_refused(seed: int, cut: int) -> None:
    before, after, differing = versions(3000, torch.bfloat16, 0.05, seed)
    code = difference(before, after).code
    assert code is not None
    if differing:
        with pytest.raises(WeightHandoverError, match="damaged"):
            apply_difference(before, code[: max(len(code) - cut, 0)])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda code: torch.cat([code, code.new_full((40,), 3)]), "beyond"),
        (lambda code: torch.cat([code, code.new_full((20,), 255)]), "beyond"),
        (lambda code: torch.cat([code.new_full((8,), 255), code[8:]]), "no difference"),
        (lambda code: torch.cat([code.new_full((8,), 127), code[8:]]), "no difference"),
        (lambda code: torch.cat([code.new_tensor([4]), code[1:]]), "places for"),
        (lambda code: code[:0], "no difference"),
    ],
)
def test_what_is_damaged_is_said(damage: object, said: str) -> None:
    before = torch.zeros(2000, dtype=torch.bfloat16)
    after = before.clone()
    after[[3, 500, 1999]] = 1.0
    code = difference(before, after).code
    assert code is not None
    with pytest.raises(WeightHandoverError, match=said):
        apply_difference(before, damage(code))  # type: ignore[operator]


def test_a_difference_of_a_longer_tensor_is_refused() -> None:
    before, after, _ = versions(4000, torch.float16, 0.05, 1)
    code = difference(before, after).code
    assert code is not None
    with pytest.raises(WeightHandoverError, match="beyond the 2000 values"):
        apply_difference(before[:2000].clone(), code)
