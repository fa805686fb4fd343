"""Settings of all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# The machine is shared with trainings: how long an example takes says nothing about the code.
settings.register_profile("no time limits", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no time limits")
