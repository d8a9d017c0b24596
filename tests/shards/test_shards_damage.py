"""Damaged sets: every flipped bit and every cut is refused, naming shard, member and byte."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from medray.errors import DataError
from medray.records import ShardIndex
from medray.shards import open_shard, read_index, verify, write_index
from medray.shards.reader import ShardReader
from medray.store import Store
from tests.shard_sets import drain, make_set, stream

IMAGES = 12


@pytest.fixture(params=["png", "raw", "zstd"])
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A set of three shards, in each encoding."""
    make_set(tmp_path, IMAGES, encoding=request.param, per_shard=5, masks=True)
    return tmp_path


def flips(folder: Path, count: int, seed: int) -> Iterator[tuple[Path, int]]:
    """Flips one random bit of a tar or idx at a time, and flips it back."""
    generator = random.Random(seed)
    paths = sorted(path for path in folder.iterdir() if path.name != "index.json")
    for _ in range(count):
        path = generator.choice(paths)
        data = bytearray(path.read_bytes())
        bit = generator.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        yield path, bit // 8
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)


def delivered(folder: Path, wanted: list[tuple[str, bytes]]) -> bool:
    """Whether a damaged set gave a whole epoch; what left before the error must be right."""
    left: list[tuple[str, bytes]] = []
    try:
        with stream(folder, prefetch=0) as batches:
            while len(left) < IMAGES:
                left += drain(batches, 4)
    except DataError as error:
        assert left == wanted[: len(left)], "a wrong image left before the error"
        assert error.where and error.code.startswith("MR-D")
        return False
    return True


def clean_epoch(folder: Path) -> list[tuple[str, bytes]]:
    with stream(folder) as batches:
        return drain(batches, IMAGES)


def test_a_flipped_bit_is_refused_before_a_sample_leaves(whole: Path) -> None:
    wanted = clean_epoch(whole)
    for path, byte in flips(whole, 334, seed=1):
        assert not delivered(whole, wanted), f"byte {byte} of {path.name}"
    assert delivered(whole, wanted)


def test_verify_finds_every_flipped_bit_and_names_shard_and_place(whole: Path) -> None:
    for path, byte in flips(whole, 334, seed=2):
        found = verify(Store(whole))
        assert len(found) == 1 and path.name in found[0].where, f"byte {byte} of {path.name}"
        if path.suffix == ".tar":
            first, last = _span(found[0])
            assert first <= byte < last, (byte, found[0].where)
    assert verify(Store(whole)) == []


INDEX_CHANGES = {
    '"licence": ""': '"licence": "CC BY 4.0"',
    '"audited": false': '"audited": true',
    '"opacity": ': '"rare": ',
    '"bytes": 1': '"bytes": 2',
    '"name": "small"': '"name": "smale"',
}


@pytest.mark.parametrize("old", INDEX_CHANGES)
def test_an_index_that_was_changed_is_refused(tmp_path: Path, old: str) -> None:
    index = make_set(tmp_path, IMAGES, encoding="raw")
    path = tmp_path / "index.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, INDEX_CHANGES[old], 1))
    with pytest.raises(DataError, match="not what was written") as caught:
        read_index(Store(tmp_path))
    assert caught.value.where.endswith("index.json") and "fix:" in str(caught.value)
    assert [error.where for error in verify(Store(tmp_path))] == [caught.value.where]
    path.write_text(text)
    assert read_index(Store(tmp_path)) == index and verify(Store(tmp_path)) == []


def test_no_flipped_bit_of_an_index_changes_what_is_read(tmp_path: Path) -> None:
    index = make_set(tmp_path, IMAGES)
    path = tmp_path / "index.json"
    whole, generator = path.read_bytes(), random.Random(4)
    refused = 0
    for _ in range(500):
        bit = generator.randrange(8 * len(whole))
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            assert read_index(Store(tmp_path)) == index, f"bit {bit}"
        except DataError:
            refused += 1
    assert refused > 400, "only a flip from one white space to another is harmless"


def test_control_an_index_without_its_digest_lets_changes_through(tmp_path: Path) -> None:
    """And so is an index of before there was one still read."""
    index = make_set(tmp_path, IMAGES)
    path = tmp_path / "index.json"
    path.write_text(index.to_json())
    assert read_index(Store(tmp_path)) == index
    path.write_text(index.to_json().replace('"audited": false', '"audited": true'))
    assert read_index(Store(tmp_path)).audited


def _span(error: DataError) -> tuple[int, int]:
    words = error.where.replace(",", "").split()
    return int(words[words.index("bytes") + 1]), int(words[-1])


def test_a_flip_in_a_member_is_reported_by_that_members_name(whole: Path) -> None:
    row = json.loads((whole / "train-000001.idx").read_text().splitlines()[2])
    path = whole / "train-000001.tar"
    data = path.read_bytes()
    for extension, offset, size, _ in row["members"]:
        for byte in (offset, offset + size - 1):
            path.write_bytes(data[:byte] + bytes([data[byte] ^ 1]) + data[byte + 1 :])
            with pytest.raises(DataError, match="damaged") as caught:
                open_shard(Store(whole), read_index(Store(whole)).shards[1]).sample(2)
            member = f"{row['key']}.{extension}"
            span = f"bytes {offset} to {offset + size}"
            assert caught.value.where == f"train-000001.tar member {member}, {span}"
    path.write_bytes(data)


def test_without_the_check_flipped_pixels_do_leave(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: the digest, and nothing else, is what stops a flip in the pixels."""

    def unchecked(self: ShardReader, number: int) -> bytes:
        row = self.rows[number]
        return self._data.read(row["offset"], row["size"])

    monkeypatch.setattr(ShardReader, "fetch", unchecked)
    wanted = clean_epoch(whole)
    wrong = 0
    for _ in flips(whole, 60, seed=3):
        try:
            wrong += delivered(whole, wanted)
        except AssertionError:
            wrong += 1
    assert wrong > 10


def cut_lengths(folder: Path, count: int) -> Iterator[tuple[Path, int]]:
    generator = random.Random(4)
    paths = sorted(folder.glob("*.tar"))
    for number in range(count):
        path = generator.choice(paths)
        size = path.stat().st_size
        yield (
            path,
            generator.randrange(size // 512) * 512 if number % 2 else generator.randrange(size),
        )


def test_a_cut_shard_is_refused_at_block_boundaries_too(whole: Path) -> None:
    wanted = clean_epoch(whole)
    for path, length in cut_lengths(whole, 200):
        data = path.read_bytes()
        path.write_bytes(data[:length])
        assert not delivered(whole, wanted)
        (error,) = verify(Store(whole))
        assert path.name in error.where and error.where.endswith(f"byte {length}")
        assert "cut" in error.message or "bytes" in error.message
        path.write_bytes(data)
    assert delivered(whole, wanted)


def test_a_cut_names_the_first_member_that_is_not_whole(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "train-000000.idx").read_text().splitlines()]
    extension, offset, size, _ = rows[3]["members"][1]
    path = whole / "train-000000.tar"
    data = path.read_bytes()
    path.write_bytes(data[: offset + size - 1])
    with pytest.raises(DataError, match=f"cut in or before member {rows[3]['key']}.{extension}"):
        open_shard(Store(whole), read_index(Store(whole)).shards[0])
    path.write_bytes(data)


Damage = Callable[[Path], None]


def swap(suffixes: tuple[str, ...]) -> Damage:
    def damage(folder: Path) -> None:
        for suffix in suffixes:
            one, two = folder / f"train-000000{suffix}", folder / f"train-000001{suffix}"
            first, second = one.read_bytes(), two.read_bytes()
            one.write_bytes(second)
            two.write_bytes(first)

    return damage


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def longer(folder: Path) -> None:
    with (folder / "train-000000.tar").open("ab") as file:
        file.write(bytes(512))


def extra_line(folder: Path) -> None:
    path = folder / "train-000000.idx"
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines()[0] + b"\n")


CASES = {
    "swapped tars": swap((".tar",)),
    "swapped idx files": swap((".idx",)),
    "swapped shards": swap((".tar", ".idx")),
    "a missing tar": remove("train-000001.tar"),
    "a missing idx": remove("train-000002.idx"),
    "bytes appended": longer,
    "a line appended to an idx": extra_line,
}


@pytest.mark.parametrize("case", CASES)
def test_a_set_that_is_not_as_it_was_written_is_refused(whole: Path, case: str) -> None:
    wanted = clean_epoch(whole)
    CASES[case](whole)
    assert not delivered(whole, wanted)
    found = verify(Store(whole))
    assert found and all("train-00000" in error.where for error in found)


def test_a_shard_that_the_index_does_not_name_is_reported(whole: Path) -> None:
    shutil.copy(whole / "train-000000.tar", whole / "train-000009.tar")
    (error,) = verify(Store(whole))
    assert "does not name" in error.message and error.where.endswith("train-000009.tar")


def rewritten(folder: Path, change: Callable[[list[dict]], None]) -> ShardIndex:
    """A set whose first idx was changed and whose digests were made to agree with it again."""
    path = folder / "train-000000.idx"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)
    index = read_index(Store(folder))
    digest = hashlib.sha256(text.encode()).hexdigest()
    shards = (replace(index.shards[0], idx_sha256=digest), *index.shards[1:])
    index = replace(index, shards=shards)
    write_index(Store(folder), index)
    return index


def drop_row(rows: list[dict]) -> None:
    del rows[-1]


def overlap(rows: list[dict]) -> None:
    rows[1]["offset"] -= 512


def outside(rows: list[dict]) -> None:
    rows[1]["members"][0][2] = 10**9


def repeat(rows: list[dict]) -> None:
    rows[1]["key"] = rows[0]["key"]


def no_offset(rows: list[dict]) -> None:
    del rows[1]["offset"]


@pytest.mark.parametrize("change", [drop_row, overlap, outside, repeat, no_offset])
def test_an_idx_that_disagrees_with_its_shard_is_refused_even_with_a_right_digest(
    whole: Path, change: Callable[[list[dict]], None]
) -> None:
    index = rewritten(whole, change)
    with pytest.raises(DataError, match="idx (disagrees|cannot be read)"):
        open_shard(Store(whole), index.shards[0])


def test_an_idx_that_gives_a_sample_anothers_key_is_found_by_verify(whole: Path) -> None:

    def exchange(rows: list[dict]) -> None:
        rows[0]["key"], rows[1]["key"] = rows[1]["key"], rows[0]["key"]

    rewritten(whole, exchange)
    found = verify(Store(whole))
    assert len(found) == 2
    assert all("disagrees with the tar header" in error.message for error in found)
