"""How much of the chaos tests is run: how many trials each, for how long, and what was done before.

CHAOS_TRIALS is `short` (an hour's worth, the default) or `full` (the numbers of reliability.yaml):
a test takes `trials(short, full)`. CHAOS_MINUTES is a limit, without it there is none: past it the
tests that are left are skipped and say so; one that has begun is not cut short. CHAOS_RESULTS is a
folder: each test's outcome is added to `results.jsonl` in it with date, seconds and a digest of the
code, and what has passed there with this code and as many trials is not run again.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
TRIALS = ("short", "full")
# What a test's outcome depends on; documents may change meanwhile.
CODE = ("medray", "jobs", "serve", "tests", "cluster", "constraints.txt", "pyproject.toml")

_began: list[float] = []


def scale() -> str:
    """`short` or `full`, as CHAOS_TRIALS says."""
    found = os.environ.get("CHAOS_TRIALS") or TRIALS[0]
    if found not in TRIALS:
        raise ValueError(f"CHAOS_TRIALS must be {' or '.join(TRIALS)}, got {found!r}")
    return found


def trials(short: int, full: int) -> int:
    """How many trials a chaos test makes: `short` in an hour's worth, `full` in the whole table."""
    return (short, full)[TRIALS.index(scale())]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a chaos test that has passed before, or that would begin after the limit."""
    if item.get_closest_marker("chaos") is None:
        return
    if date := passed_on(item.nodeid):
        pytest.skip(f"passed with this code, {scale()} trials, on {date}")
    if not _began:
        _began.append(time.monotonic())
    minutes = float(os.environ.get("CHAOS_MINUTES") or "inf")
    if time.monotonic() - _began[0] > 60 * minutes:
        pytest.skip(f"not run: the {minutes:g} minutes of CHAOS_MINUTES are used up")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keeps what came of a chaos test; a failure before or after it counts as one, too."""
    # Of tests side by side the process that gathers the reports writes them.
    if "chaos" not in report.keywords or "PYTEST_XDIST_WORKER" in os.environ:
        return
    if report.when == "call" or report.failed:
        _keep(report)


# --- what was done before -----------------------------------------------------------------------


def _results() -> Path | None:
    folder = os.environ.get("CHAOS_RESULTS")
    return Path(folder, "results.jsonl") if folder else None


def passed_on(test: str) -> str:
    """The day on which the test passed with this code and as many trials; empty where it did not.

    The newest outcome counts.
    """
    found = _kept().get((test, scale(), code_sha256()), {}) if _results() else {}
    return str(found["date"]) if found.get("outcome") == "passed" else ""


@functools.cache
def _kept() -> dict[tuple[str, str, str], dict[str, Any]]:
    path = _results()
    if path is None or not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {(line["test"], line["trials"], line["code"]): line for line in lines}


def _keep(report: pytest.TestReport) -> None:
    path = _results()
    if path is None:
        return
    line = {
        "test": report.nodeid,
        "trials": scale(),
        "outcome": report.outcome,
        "seconds": round(report.duration, 1),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "code": code_sha256(),
        "commit": _commit(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


@functools.cache
def code_sha256() -> str:
    """Twelve digits of what the code is, whatever is committed of it."""
    digest = hashlib.sha256()
    for path in _files():
        digest.update(path.relative_to(ROOT).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _files() -> list[Path]:
    found = []
    for path in (ROOT / name for name in CODE):
        found += [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return sorted(p for p in found if "__pycache__" not in p.parts)


@functools.cache
def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
        )
    except OSError:
        return ""
    return done.stdout.strip()
