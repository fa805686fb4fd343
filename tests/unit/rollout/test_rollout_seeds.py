"""Sampling seeds depend on what is sampled alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megatron_rlpr.rollout.requests import request_seed

NUMBERS = st.integers(0, 2**40)


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_a_seed_fits_in_31_bits(run_seed: int, step: int, prompt_index: int, sample: int) -> None:
    assert 0 <= request_seed(run_seed, step, prompt_index, sample) < 2**31


def test_a_seed_is_the_same_in_every_process_and_version() -> None:
    assert request_seed(1, 2, 3, 4) == 1432553659


def test_every_part_of_the_name_changes_the_seed() -> None:
    names = [(1, 2, 3, 4), (2, 2, 3, 4), (1, 3, 3, 4), (1, 2, 4, 4), (1, 2, 3, 5), (12, 3, 3, 4), (1, 23, 3, 4)]
    assert len({request_seed(*name) for name in names}) == len(names)


def test_the_samples_of_a_prompt_get_different_seeds() -> None:
    for prompt_index in range(500):
        assert len({request_seed(1, 7, prompt_index, sample) for sample in range(32)}) == 32
