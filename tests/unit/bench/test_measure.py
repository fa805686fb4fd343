"""Memory, turns and the figures made from them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import pytest
import torch

from tools.bench import head_case, packing_case
from tools.bench.measure import Comparison, Side, compare, matmul_rate, with_peak_memory

MEGABYTE = 2**20


def touched_twice(megabytes: int) -> float:
    """Fill some megabytes, let them go, and fill as many again."""
    first = torch.ones(megabytes * MEGABYTE // 4)
    total = float(first.sum())
    del first
    second = torch.ones(megabytes * MEGABYTE // 4)
    return total + float(second.sum())


def peaks(*megabytes: int) -> list[int]:
    """The peaks of filling these, one after the other, in a new process: a hole that earlier tests left in this one's
    heap may fit the first tensor and not the second, so that both stay resident."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return [process.submit(with_peak_memory, partial(touched_twice, size)).result()[1] for size in megabytes]


def test_peak_memory_is_what_was_touched_at_once() -> None:
    sizes = [64, 200]
    for size, peak in zip(sizes, peaks(*sizes), strict=True):
        assert size * MEGABYTE * 0.9 <= peak <= size * MEGABYTE * 1.5


def test_memory_freed_before_is_not_reused_unseen() -> None:
    assert min(peaks(100, 100)) >= 90 * MEGABYTE


def test_sides_take_turns_and_the_first_repetition_is_not_timed() -> None:
    calls: list[tuple[str, int]] = []

    def side(name: str, seconds: float) -> Callable[[int], str]:
        def run(repetition: int) -> str:
            calls.append((name, repetition))
            time.sleep(seconds if repetition else 10 * seconds)
            return f"{name}{repetition}"

        return run

    found = compare(side("plain", 0.02), side("ours", 0.01), 2, torch.float32)
    assert [c for c in calls if c[1] == 1] == [("plain", 1), ("ours", 1)]
    assert [c for c in calls if c[1] == 2] == [("ours", 2), ("plain", 2)]
    assert found.ours.results == ["ours0", "ours1", "ours2"]
    assert len(found.baseline.seconds) == len(found.ours.seconds) == len(found.rates) == 2
    assert min(found.baseline.seconds) >= 0.02
    assert min(found.ours.seconds) >= 0.01
    ratios = [plain / ours for plain, ours in zip(found.baseline.seconds, found.ours.seconds, strict=True)]
    assert found.speedup == pytest.approx(sum(ratios) / 2)


def test_the_floor_is_the_time_the_matrix_products_alone_would_take() -> None:
    ours = Side(lambda _: None, seconds=[2.0, 4.0, 100.0])
    found = Comparison(Side(lambda _: None, seconds=[4.0, 4.0, 100.0]), ours, rates=(10.0, 5.0, 10.0))
    assert found.floor_fraction([10.0, 10.0, 10.0]) == pytest.approx(0.5)
    assert found.speedup == 1.0


def test_a_matrix_product_rate_is_plausible() -> None:
    assert 1e8 < matmul_rate(torch.float32, seconds=0.01) < 1e15


def test_the_head_needs_little_more_than_its_gradients() -> None:
    report = head_case.run(rows=4000, vocab=8192, hidden=8, dtype=torch.bfloat16, chunk_rows=128)
    assert report["full_logits_memory"] == 4000 * 8192 * 2
    assert report["extra_memory"] < report["gradient_memory"] + 40 * MEGABYTE
    assert report["max_abs_diff"] < 0.05


def test_packing_reports_every_number_of_ranks() -> None:
    report = packing_case.run(sequences=320, max_tokens=16384)
    assert report["sequences"] == 320
    assert report["tokens_ours"] < report["tokens_baseline"]
    assert all(report[f"imbalance_dp{ranks}"] <= 0.15 for ranks in packing_case.RANKS)
    assert report["imbalance_dp8"] <= 0.03
