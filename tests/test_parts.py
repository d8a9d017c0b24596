"""Unfinished files: those of dead writers go, those of living ones stay."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medray import _parts
from medray._parts import STALE_S, open_part, part_path, remove_dead
from medray.shards import ShardWriter
from medray.store import Store
from tests.shard_sets import samples

LEAVES = """
import os, sys
from pathlib import Path
from medray._parts import open_part, part_path
path = part_path(Path(sys.argv[1]))
file = open_part(path)
file.write(b"half")
file.flush()
print(path, flush=True)
sys.stdin.readline()
os.kill(os.getpid(), 9)
"""


def _left_by_the_dead(target: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-c", LEAVES, str(target)], input="\n", capture_output=True, text=True
    )
    return Path(done.stdout.strip())


def test_a_living_writers_file_stays_and_goes_when_it_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LEAVES, str(tmp_path / "x.tar")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdout is not None
        path = Path(writer.stdout.readline().strip())
        remove_dead(tmp_path, ["x.tar."])
        assert path.read_bytes() == b"half"
        writer.communicate("\n")
    assert path.exists() and writer.returncode == -9
    remove_dead(tmp_path, ["y."])
    assert path.exists(), "another shard's"
    remove_dead(tmp_path, ["x.tar."])
    assert not path.exists()


def test_a_file_of_this_process_stays_while_it_is_open(tmp_path: Path) -> None:
    path = part_path(tmp_path / "x")
    with open_part(path):
        remove_dead(tmp_path)
        assert path.exists()
    remove_dead(tmp_path)
    assert not path.exists()


def test_a_file_of_another_machine_stays_for_a_day(tmp_path: Path) -> None:
    foreign, unnamed = tmp_path / "x.tar.elsewhere-17-0a.part", tmp_path / "x.tar.17.part"
    for path in (foreign, unnamed):
        path.write_bytes(b"half")
    remove_dead(tmp_path)
    assert foreign.exists() and unnamed.exists()
    for path in (foreign, unnamed):
        os.utime(path, (0, time.time() - STALE_S - 1))
    remove_dead(tmp_path)
    assert not foreign.exists() and not unnamed.exists()


def test_a_file_that_was_taken_for_a_leftover_before_its_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock, taken = part_path(tmp_path / "x"), _parts.fcntl.flock, []

    def late(file: object, kind: int) -> None:
        if not taken:
            taken.append(path.unlink())
        lock(file, kind)  # type: ignore[arg-type]

    monkeypatch.setattr(_parts.fcntl, "flock", late)
    with open_part(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"


def test_a_folder_that_is_not_there_has_no_leftovers(tmp_path: Path) -> None:
    remove_dead(tmp_path / "absent")


def test_a_writer_for_an_object_store_removes_what_its_dead_predecessor_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    left = _left_by_the_dead(tmp_path / "medray-train-000000.tar")
    other = _left_by_the_dead(tmp_path / "medray-train-000001.tar")
    with ShardWriter(Store(f"memory:/{tmp_path}"), "train-000000", "train") as writer:
        assert not left.exists() and other.exists()
        writer.add(next(iter(samples(1))))
        writer.close()
    assert list(tmp_path.iterdir()) == [other]
