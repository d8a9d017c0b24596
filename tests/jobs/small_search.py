"""A small search for latents between toy networks: its arguments, and one to kill."""

from __future__ import annotations

from pathlib import Path

import jobs._latents_run  # noqa: F401  (so that a forked child imports nothing)
from jobs import latents

SMALL = (
    *("--classes", "a,c", "--per-class", "24", "--restarts", "8", "--slots", "8"),
    *("--threshold", "0.6", "--steps", "40", "--check-images", "60", "--plain-images", "200"),
)


def arguments(runs: Path | str, out: Path | str, *more: str) -> list[str]:
    """The command's words; `runs` holds a generator g and a classifier c."""
    networks = ("--generator", f"{runs}/g", "--classifier", f"{runs}/c", "--out", f"{out}")
    return [*networks, *SMALL, *more]


def make(folder: Path, runs: str) -> int:
    """Searches at `folder`, with the judge j of `runs`; the exit code."""
    return latents.main(arguments(runs, folder, "--judge", f"{runs}/j", "--quiet"))
