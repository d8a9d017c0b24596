"""Damage does what its name says; the small disk is small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import damage

DATA = bytes(range(200))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(DATA)
    return tmp_path / "file"


def test_one_bit_is_flipped_where_it_says(path: Path) -> None:
    places = set()
    for seed in range(20):
        path.write_bytes(DATA)
        place = damage.flip_bit(path, seed)
        found = path.read_bytes()
        wrong = [n for n in range(200) if found[n] != DATA[n]]
        assert wrong == [place] and (found[place] ^ DATA[place]).bit_count() == 1
        places.add(place)
    assert len(places) > 10
    assert damage.flip_bit(path, 1, at_byte=7) == 7


def test_a_cut_leaves_a_true_beginning(path: Path) -> None:
    left = damage.cut(path, 3)
    assert left < 200 and path.read_bytes() == DATA[:left]
    damage.cut(path, to_bytes=1)
    assert path.read_bytes() == DATA[:1]


def test_files_are_swapped_dropped_and_doubled(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"other")
    damage.swap(path, other)
    assert path.read_bytes() == b"other" and other.read_bytes() == DATA
    damage.double(path, other)
    assert other.read_bytes() == b"other"
    damage.drop(path)
    assert not path.exists()


def test_a_small_disk_is_full_after_its_size(tmp_path: Path) -> None:
    if subprocess.run(damage.small_disk(["true"], tmp_path, 2**20), capture_output=True).returncode:
        pytest.skip("user namespaces (unshare -Urm) are not allowed here")
    script = f"open({str(tmp_path / 'x')!r}, 'wb').write(bytes(int(__import__('sys').argv[1])))"
    for size, code in ((2**19, 0), (2**21, 1)):
        command = damage.small_disk([sys.executable, "-c", script, str(size)], tmp_path, 2**20)
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
    assert "No space left" in done.stderr and list(tmp_path.iterdir()) == []
