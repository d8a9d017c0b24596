"""The faulty disk itself: it counts, ends, fails and logs what it should, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import preload
from tests.faults.powercut import Disk

NAMES = ("made", "first")


def write_two(folder: Path, sync: bool = True) -> str:
    """Ten operations: a folder, two files written, synced and renamed, one removed."""
    (folder / "made").mkdir()
    for name in ("first", "second"):
        part = folder / "made" / f"{name}.part"
        with part.open("wb") as file:
            file.write(name.encode())
            file.flush()
            if sync:
                os.fsync(file.fileno())
        part.replace(folder / "made" / name)
    (folder / "made" / "second").unlink()
    return "done"


OPERATIONS = 1 + 2 * 4 + 1


@pytest.fixture(scope="module")
def forks() -> Iterator[preload.Forks]:
    with preload.Forks(write_two) as found:
        yield found


def test_operations_under_the_prefix_are_counted_and_no_others(
    forks: preload.Forks, tmp_path: Path
) -> None:
    found = forks.run(tmp_path)
    assert (found.code, found.operations, found.result) == (0, OPERATIONS, "done")
    other = tmp_path / "other"
    other.mkdir()
    script = f"open({str(tmp_path / 'x')!r}, 'w').write('x'); open({str(other / 'y')!r}, 'w')"
    state = tmp_path / "state"
    armed = preload.environment(other, state=state)
    subprocess.run([sys.executable, "-c", script], env={**os.environ, **armed}, check=True)
    assert preload.operations(state) == 1


def test_the_process_ends_before_each_operation_in_turn(
    forks: preload.Forks, tmp_path: Path
) -> None:
    seen = []
    for at in range(1, OPERATIONS + 2):
        folder = tmp_path / f"{at}"
        folder.mkdir()
        found = forks.run(folder, action="exit", at=at)
        assert found.ended_by_fault == (at <= OPERATIONS)
        seen.append(tuple(sorted(p.name for p in folder.rglob("*"))))
    assert seen[0] == () and seen[1] == ("made",) and seen[-1] == ("first", "made")
    assert seen[4] == ("first.part", "made"), "ended before the rename"
    assert len(set(seen)) == 6


def test_a_torn_write_leaves_half_of_the_bytes(forks: preload.Forks, tmp_path: Path) -> None:
    assert forks.run(tmp_path, action="torn", at=3).ended_by_fault
    assert (tmp_path / "made" / "first.part").read_bytes() == b"fi"


def test_a_full_disk_stays_full_and_an_error_comes_once(
    forks: preload.Forks, tmp_path: Path
) -> None:
    found = forks.run(tmp_path, action="enospc", at=3)
    assert found.error == "OSError" and "No space left" in found.text
    (tmp_path / "b").mkdir()
    found = forks.run(tmp_path / "b", room_bytes=7)
    assert "No space left" in found.text
    assert sorted(p.name for p in (tmp_path / "b").rglob("*")) == ["first", "made", "second.part"]
    (tmp_path / "c").mkdir()
    assert "Input/output error" in forks.run(tmp_path / "c", action="eio", at=4).text


def test_the_log_replayed_is_the_tree_and_a_cut_loses_what_was_not_synced(
    forks: preload.Forks, tmp_path: Path
) -> None:
    folder, before, log = tmp_path / "work", tmp_path / "before", tmp_path / "log"
    folder.mkdir()
    before.mkdir()
    forks.run(folder, log=log)
    disk = Disk(folder, before).replay(log)
    whole = disk.write(tmp_path / "all", everything=True)
    assert (whole / "made" / "first").read_bytes() == b"first"
    assert sorted(p.name for p in whole.rglob("*")) == sorted(NAMES)
    # No folder was synced: not one name is safe, though each file's bytes are.
    assert list(disk.write(tmp_path / "cut").iterdir()) == []
    kept = {
        tuple(sorted(p.name for p in disk.write(tmp_path / "some", seed).rglob("*")))
        for seed in range(40)
    }
    assert () in kept and ("made",) in kept and ("first", "made") in kept
    files = [p for seed in range(9) for p in disk.write(tmp_path / f"{seed}", seed).rglob("first")]
    assert files and all(p.read_bytes() == b"first" for p in files)


def test_without_a_sync_a_name_can_survive_with_no_bytes_in_it(
    forks: preload.Forks, tmp_path: Path
) -> None:
    folder, before, log = tmp_path / "work", tmp_path / "before", tmp_path / "log"
    folder.mkdir()
    before.mkdir()
    forks.run(folder, log=log, sync=False)
    disk = Disk(folder, before).replay(log)
    sizes = set()
    for seed in range(40):
        sizes |= {p.stat().st_size for p in disk.write(tmp_path / "some", seed).rglob("first")}
    assert sizes == {0, 5}
