"""How much of the chaos tests is run: what is left out is told, what it does not concern runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos_budget import trials

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
    done = _pytest(tmp_path, TESTS, CHAOS_MINUTES=minutes)
    assert done.returncode == 0 and f"{passed} passed" in done.stdout, done.stdout + done.stderr
    told = "not run: the 0.01 minutes of CHAOS_MINUTES are used up" in done.stdout
    assert told == ("1 skipped" in done.stdout) == (passed == 2)


def _pytest(folder: Path, text: str, **variables: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_made.py").write_text(text)
    options = ["-p", "tests.chaos_budget", "-ra", "-q", "-W", "ignore", "--rootdir", str(folder)]
    # As if nothing were known of what runs this test.
    ours = ("CHAOS_", "PYTEST_XDIST")
    usual = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(folder / "test_made.py")],
        # Plugins of other packages take seconds to load.
        env={**usual, **variables, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("scale, wanted", [("short", 3), ("full", 50), ("", 3)])
def test_one_variable_says_how_many_trials_there_are(
    monkeypatch: pytest.MonkeyPatch, scale: str, wanted: int
) -> None:
    monkeypatch.setenv("CHAOS_TRIALS", scale)
    assert trials(3, 50) == wanted


def test_another_number_of_trials_than_short_and_full_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHAOS_TRIALS", "long")
    with pytest.raises(ValueError, match="CHAOS_TRIALS must be short or full, got 'long'"):
        trials(3, 50)


FAILS_ONCE = """
import pathlib
import pytest

@pytest.mark.chaos
def test_first():
    assert pathlib.Path("mended").exists()

@pytest.mark.chaos
def test_second():
    pass

def test_third():
    pass
"""


def test_what_has_passed_is_not_run_again_but_with_other_trials_or_after_a_failure(
    tmp_path: Path,
) -> None:
    results = {"CHAOS_RESULTS": str(tmp_path / "kept")}
    assert "1 failed, 2 passed" in _pytest(tmp_path, FAILS_ONCE, **results).stdout
    (tmp_path / "mended").touch()
    again = _pytest(tmp_path, FAILS_ONCE, **results).stdout
    assert "2 passed, 1 skipped" in again
    assert "passed with this code, short trials, on 20" in again
    whole = _pytest(tmp_path, FAILS_ONCE, CHAOS_TRIALS="full", **results).stdout
    assert "3 passed" in whole
    lines = [
        json.loads(line) for line in (tmp_path / "kept/results.jsonl").read_text().split("\n")[:-1]
    ]
    assert [(line["outcome"], line["trials"]) for line in lines] == [
        ("failed", "short"),
        ("passed", "short"),
        ("passed", "short"),
        ("passed", "full"),
        ("passed", "full"),
    ]


def test_control_what_passed_with_other_code_is_run_again(tmp_path: Path) -> None:
    results = {"CHAOS_RESULTS": str(tmp_path / "kept")}
    (tmp_path / "mended").touch()
    _pytest(tmp_path, FAILS_ONCE, **results)
    kept = tmp_path / "kept/results.jsonl"
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    kept.write_text("".join(json.dumps({**line, "code": "0" * 12}) + "\n" for line in lines))
    assert "3 passed" in _pytest(tmp_path, FAILS_ONCE, **results).stdout
