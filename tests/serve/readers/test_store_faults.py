"""A database whose power is cut, or whose migration is ended at any operation of the disk."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from serve.readers import schema
from serve.readers.store import Store
from tests.faults import preload
from tests.faults.powercut import Disk
from tests.serve.readers import faulty

COUNT = 12


@pytest.fixture(scope="module")
def writes() -> Iterator[preload.Forks]:
    with preload.Forks(faulty.write) as found:
        yield found


def cut(writes: preload.Forks, place: Path, seed: int, synchronous: str) -> tuple[int, int]:
    """Cuts the power at a random operation: (answers acknowledged, of those lost)."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    before = place / "before"
    before.mkdir()
    faulty.opened(faulty.url(before), COUNT)[0].close()
    work, log, said = place / "work", place / "log", place / "said"
    shutil.copytree(before, work)
    at = int(np.random.default_rng(seed).integers(10, 60))
    more = {"count": COUNT, "said": str(said), "synchronous": synchronous}
    writes.run(work, action="exit", at=at, log=log, **more)
    left = Disk(work, before).replay(log).write(place / "left", seed)
    # What is shared in memory does not outlive a cut.
    (left / "readers.sqlite-shm").unlink(missing_ok=True)
    store = Store(faulty.url(left))
    with store.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    kept = {a.position for a in store.answers(store.readers("s")[0].id)}
    store.close()
    acknowledged = {int(line) for line in said.read_text().split()} if said.exists() else set()
    return len(acknowledged), len(acknowledged - kept)


def cuts(writes: preload.Forks, place: Path, count: int, synchronous: str) -> tuple[int, int]:
    found = [cut(writes, place / "one", seed, synchronous) for seed in range(count)]
    return sum(a for a, _ in found), sum(lost for _, lost in found)


def test_no_acknowledged_answer_is_lost_when_the_power_is_cut(writes, tmp_path) -> None:
    acknowledged, lost = cuts(writes, tmp_path, 8, "FULL")
    assert acknowledged > 10 and lost == 0
    # The control: without the wait for the disk, answers that were acknowledged are lost.
    assert cuts(writes, tmp_path, 8, "NORMAL")[1] > 0


@pytest.mark.chaos
def test_no_acknowledged_answer_is_lost_over_a_hundred_cuts(writes, tmp_path) -> None:
    acknowledged, lost = cuts(writes, tmp_path, 100, "FULL")
    assert acknowledged > 200 and lost == 0


def state(folder: Path) -> tuple[int, bool, bool, int]:
    """(version, has the new column, has the new table, answers) of a database as it lies there."""
    raw = sqlite3.connect(folder / "readers.sqlite")
    tables = {row[0] for row in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    columns = {row[1] for row in raw.execute("PRAGMA table_info(answers)")}
    version = raw.execute("SELECT max(version) FROM schema_version").fetchone()[0]
    count = raw.execute("SELECT count(*) FROM answers").fetchone()[0]
    raw.close()
    return version, "note" in columns, "notes" in tables, count


def test_a_migration_that_is_ended_at_any_operation_is_done_whole_or_not_at_all(tmp_path) -> None:
    before, work = tmp_path / "before", tmp_path / "work"
    before.mkdir()
    faulty.write(before, 3, str(tmp_path / "said"))
    old, new = (len(schema.STEPS), False, False, 3), (len(faulty.NEXT), True, True, 3)
    seen = []
    with preload.Forks(faulty.migrate) as forks:
        for at in range(1, 200):
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(before, work)
            outcome = forks.run(work, action="exit", at=at)
            seen.append(state(work))
            if not outcome.ended_by_fault:
                break
            faulty.migrate(work)
            assert state(work) == new
    assert len(seen) > 5 and set(seen) == {old, new} and seen[-1] == new
