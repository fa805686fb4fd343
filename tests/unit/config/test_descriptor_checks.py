"""A run that needs more open files and sockets than the system allows is refused; where it may, it raises its limit."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest
from checked_runs import Run, refusal

from megatron_rlpr.config.checks import check
from megatron_rlpr.config.checks.descriptors import needed
from megatron_rlpr.config.schema import Config
from megatron_rlpr.system.descriptors import allow

LIMIT = resource.RLIMIT_NOFILE


@pytest.fixture
def soft_only() -> Iterator[int]:
    """A soft limit of 256, and the hard one as it is, which is returned; afterwards it is all as before."""
    before = resource.getrlimit(LIMIT)
    resource.setrlimit(LIMIT, (256, before[1]))
    yield before[1]
    resource.setrlimit(LIMIT, before)


def layout(**keys: int) -> Config:
    config = Config()
    for name, value in keys.items():
        setattr(config.actor, name, value)
    return config


def test_hundreds_of_ranks_need_thousands_and_a_few_ranks_what_every_system_allows() -> None:
    assert needed(Config(), 1) < needed(Config(), 8) < 1024
    of_72b = layout(tensor_model_parallel_size=8, pipeline_model_parallel_size=8)
    assert 3 * 511 < needed(of_72b, 512) < needed(Config(), 512) < 10_000
    replayed = layout()
    replayed.rollout.replay = "stored"
    assert needed(Config(), 512) - needed(replayed, 512) > 2 * 511, "without engines there are fewer groups"


def test_a_hard_limit_that_is_too_low_is_refused_with_what_is_needed_and_found_and_the_fix(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))
    check(run(), 8)
    asked = needed(run(), 1024)
    message = refusal(run("data.train_batch_size=1024"), 1024)
    assert f"a rank of 1024 opens up to {asked} files and sockets" in message
    assert "allows a process 4096" in message
    assert f"ulimit -Hn {asked}, LimitNOFILE={asked}" in message


def test_a_soft_limit_is_raised_only_where_it_is_too_low(soft_only: int) -> None:
    allow(200)
    assert resource.getrlimit(LIMIT)[0] == 256
    allow(300)
    assert resource.getrlimit(LIMIT) == (min(soft_only, 65_536), soft_only)


def test_what_the_system_does_not_allow_is_no_silent_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (256, 256))
    with pytest.raises(ValueError, match="300 open files are needed, and the hard limit is 256"):
        allow(300)


def test_a_system_without_limits_allows_everything(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, resource.RLIM_INFINITY))
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr("resource.setrlimit", lambda _, limits: asked.append(limits))
    check(run("data.train_batch_size=1024"), 1024)
    allow(5000)
    assert asked == [(65_536, resource.RLIM_INFINITY)]
