"""Transformer Engine on a CPU, for the tests of this folder alone.

It must be importable before anything imports Megatron-Core, which then takes its layers, and must be invisible to all
other tests. So these tests run only where a run names them and nothing else: `make test-te`, or
`pytest tests/transformer_engine/...`. Any other run passes them over.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def alone(config: pytest.Config) -> bool:
    """Whether everything this run was asked for lies in this folder."""
    asked = [config.invocation_params.dir / argument.partition("::")[0] for argument in config.args]
    return all(path.resolve().is_relative_to(HERE) for path in asked)


def pytest_configure(config: pytest.Config) -> None:
    if alone(config):
        sys.path[:0] = [str(HERE / "kernels"), str(HERE.parent / "gpu")]
        import te_on_cpu

        te_on_cpu.install()


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return None if alone(config) else True


@pytest.fixture(autouse=True)
def a_gpu_and_groups_of_its_own() -> Iterator[None]:
    """Every test starts on the GPU of most recipes (see `pretend_gpu`) and leaves no process groups."""
    import te_on_cpu

    te_on_cpu.pretend_gpu()
    yield
    from megatron.core import parallel_state
    from torch import distributed

    if distributed.is_initialized():
        parallel_state.destroy_model_parallel()
        distributed.destroy_process_group()
