"""What all tests on a GPU share: skipped elsewhere with that reason; values are recorded beside their bounds.

With RLPR_GPU_RECORDS=FILE every value and every outcome is appended there as a line of JSON (`table.py` prints them).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gpu_records import Within, record

HERE = Path(__file__).parent
_NO_GPU = pytest.mark.skip(reason="needs CUDA: this machine has no GPU")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # those of other folders come along
        if not item.path.is_relative_to(HERE):
            continue
        item.add_marker(pytest.mark.gpu)
        if not torch.cuda.is_available():
            item.add_marker(_NO_GPU)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A row for every test that has an outcome; one that did not pass brings its reason."""
    if report.when == "call" or report.outcome != "passed":
        reason, crash = "", getattr(report.longrepr, "reprcrash", None)
        if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
        elif crash is not None:
            reason = crash.message.splitlines()[0]
        name = report.nodeid.split("tests/gpu/")[-1]
        record(test=name, outcome=report.outcome, reason=reason, seconds=round(report.duration, 2))


@pytest.fixture
def within(request: pytest.FixtureRequest) -> Within:
    name = request.node.nodeid.split("tests/gpu/")[-1]

    def check(value: float, bound: float, what: str) -> None:
        record(test=name, what=what, value=float(value), bound=float(bound))
        assert value <= bound, f"{what} is {value:.3g}, expected at most {bound:.3g}"

    return check


@pytest.fixture(autouse=True)
def fresh_groups() -> Iterator[None]:
    """Process groups of a test end with it, and so does what was compiled."""
    yield
    torch.compiler.reset()
    from gpu_policies import end_groups

    end_groups()
