"""The limit on the chaos tests: what it leaves out is told, what it does not concern runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS = """
import time
import pytest

@pytest.mark.chaos
def test_first():
    time.sleep(0.6)

@pytest.mark.chaos
def test_second():
    pass

def test_third():
    pass
"""


@pytest.mark.parametrize("minutes, passed", [("0.01", 2), ("5", 3), ("", 3)])
def test_past_the_limit_chaos_tests_are_skipped_with_the_reason(
    tmp_path: Path, minutes: str, passed: int
) -> None:
    (tmp_path / "test_made.py").write_text(TESTS)
    options = ["-p", "tests.chaos_budget", "-ra", "-q", "-W", "ignore", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path / "test_made.py")],
        env={**os.environ, "CHAOS_MINUTES": minutes, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and f"{passed} passed" in done.stdout, done.stdout + done.stderr
    told = "not run: the 0.01 minutes of CHAOS_MINUTES are used up" in done.stdout
    assert told == ("1 skipped" in done.stdout) == (passed == 2)
