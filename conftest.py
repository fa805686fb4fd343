"""Settings of all tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# The machine is shared with trainings: how long an example takes says nothing about the code.
settings.register_profile("no time limits", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no time limits")

_ENDS = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")
_MANY = 100
"""Tests of which most are never skipped; those on a GPU are fewer."""


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A large run in which most tests were skipped has shown nothing, and is no success."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or os.environ.get("PYTEST_XDIST_WORKER"):  # a worker's share says nothing about the whole
        return
    skipped, run = (sum(len(reporter.stats.get(end, ())) for end in ends) for ends in (["skipped"], _ENDS))
    if run > _MANY and skipped > run / 2:
        reporter.write_line(f"\n{skipped} of {run} tests were skipped: that shows nothing", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
