"""A limit on the time of the chaos tests: past it those that are left are skipped, and say so.

CHAOS_MINUTES in the environment is the limit; without it there is none. A test that has begun is
not cut short.
"""

from __future__ import annotations

import os
import time

import pytest

_began: list[float] = []


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a chaos test that would begin after the limit, counted from the first of them."""
    if item.get_closest_marker("chaos") is None:
        return
    if not _began:
        _began.append(time.monotonic())
    minutes = float(os.environ.get("CHAOS_MINUTES") or "inf")
    if time.monotonic() - _began[0] > 60 * minutes:
        pytest.skip(f"not run: the {minutes:g} minutes of CHAOS_MINUTES are used up")
