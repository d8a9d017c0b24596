"""The same work again and again, with the fault at its first operation of the disk, its second, ...

`forks` runs the work (tests/faults/preload.py); `before` is what lies there when it begins.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.faults.powercut import Disk
from tests.faults.preload import Forks, Outcome


def fresh(folder: Path, before: Path | None = None) -> Path:
    """The folder, empty or a copy of `before`."""
    shutil.rmtree(folder, ignore_errors=True)
    if before is None:
        folder.mkdir(parents=True)
    else:
        shutil.copytree(before, folder)
    return folder


def each_operation(
    forks: Forks,
    base: Path,
    trial: Callable[[Path, Outcome], None],
    *,
    step: int = 1,
    before: Path | None = None,
    **fault: Any,
) -> int:
    """The fault at operation 1, 1 + step, ... until it is past the last; how many trials."""
    count, at = 0, 1
    while True:
        folder = fresh(base / "work", before)
        outcome = forks.run(folder, at=at, **fault)
        trial(folder, outcome)
        if outcome.operations and outcome.operations < at:
            return count
        count, at = count + 1, at + step


def each_cut(
    forks: Forks,
    base: Path,
    *,
    cuts: int = 3,
    step: int = 1,
    before: Path | None = None,
    **arguments: Any,
) -> Iterator[tuple[Path, bool]]:
    """What power cuts leave, `cuts` of them at each operation; and whether the work had ended.

    The first of each loses everything that was not made durable, the others some of it.
    """
    at, log, safe = 1, base / "log", fresh(base / "before", before)
    while True:
        folder = fresh(base / "work", before)
        log.unlink(missing_ok=True)
        outcome = forks.run(folder, at=at, action="exit", log=log, **arguments)
        disk = Disk(folder, safe).replay(log)
        for seed in (None, *range(cuts - 1)):
            yield disk.write(folder, seed), not outcome.ended_by_fault
        if not outcome.ended_by_fault:
            return
        at += step
