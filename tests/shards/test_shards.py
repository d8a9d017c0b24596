"""Shards written and read: bytes that depend on the samples alone, and random access to them."""

from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medray import shards
from medray._parts import part_path
from medray.errors import DataError, ResourceError, UsageError
from medray.records import Sample
from medray.shards import INDEX, ShardWriter, open_shard, read_index, verify, write_index, write_set
from medray.store import Store
from tests.shard_sets import CLASSES, image, make_set, samples

PLACES = ("folder", "memory")


@pytest.fixture(params=PLACES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a set: a folder as file://, and an object store."""
    if request.param == "memory":
        return f"memory://{request.node.name}"
    return f"file://{tmp_path}/set"


@pytest.mark.parametrize("encoding", ["png", "raw", "zstd"])
@pytest.mark.parametrize(("bits", "channels"), [(8, 1), (16, 1), (8, 3), (16, 3)])
def test_what_was_written_is_read_back(url: str, encoding: str, bits: int, channels: int) -> None:
    form = {"px": 17, "bits": bits, "channels": channels}
    index = make_set(f"{url}/{encoding}{bits}{channels}", encoding=encoding, masks=True, **form)
    store = Store(f"{url}/{encoding}{bits}{channels}")
    assert read_index(store) == index and verify(store) == []
    assert (index.channels, index.bits, index.size_px) == (channels, bits, 17)
    assert [shard.samples for shard in index.shards] == [8, 8, 4]
    given = list(samples(20, masks=True, **form))
    readers = [open_shard(store, shard) for shard in index.shards]
    for number in (19, 0, 7, 8):
        found = readers[number // 8].sample(number % 8)
        assert found.key == f"train-{number:08d}"
        assert np.array_equal(found.image, given[number].image)
        assert found.mask is not None and np.array_equal(found.mask, given[number].mask)
        assert (found.label, found.patient) == (given[number].label, given[number].patient)


def test_the_same_samples_give_the_same_bytes_wherever_and_whenever_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_set(tmp_path / "a", masks=True)
    monkeypatch.setattr("time.time", lambda: 12345.0)
    make_set(tmp_path / "b", masks=True)
    make_set("memory://same-bytes", masks=True)
    names = Store(tmp_path / "a").names()
    assert "index.json" in names and len(names) == 7
    for other in (Store(tmp_path / "b"), Store("memory://same-bytes")):
        assert other.names() == names
        for name in names:
            assert other.read_bytes(name) == Store(tmp_path / "a").read_bytes(name), name


def test_a_line_of_the_idx_covers_the_samples_bytes_and_those_of_each_member(
    tmp_path: Path,
) -> None:
    index = make_set(tmp_path, encoding="raw", masks=True)
    data = (tmp_path / "train-000001.tar").read_bytes()
    lines = (tmp_path / "train-000001.idx").read_bytes().splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows[0]["offset"] == 0 and rows[-1]["offset"] + rows[-1]["size"] == len(data) - 1024
    with tarfile.open(tmp_path / "train-000001.tar") as tar:
        members = {member.name: member for member in tar}
    for row in rows:
        body = data[row["offset"] : row["offset"] + row["size"]]
        assert hashlib.sha256(body).hexdigest() == row["sha256"]
        assert [member[0] for member in row["members"]] == ["json", "mask.png", "npy"]
        for extension, offset, size, _ in row["members"]:
            found = members[f"{row['key']}.{extension}"]
            assert (found.offset_data, found.size, found.mtime) == (offset, size, 0)
    assert hashlib.sha256(data).hexdigest() == index.shards[1].sha256


def test_classes_are_counted_by_shard_and_by_every_positive_finding(tmp_path: Path) -> None:
    sample = next(iter(samples(1)))
    both = replace(sample, labels={"rare": 1, "opacity": 0, "clear": None})
    index = write_set(tmp_path, [both, sample], name="n", classes=CLASSES, size_px=16)
    assert index.shards[0].class_counts == {"clear": 2, "rare": 1}


def test_splits_never_share_a_shard(tmp_path: Path) -> None:
    mixed = [s for pair in zip(samples(9), samples(9, "val"), strict=True) for s in pair]
    index = write_set(tmp_path, mixed, name="n", classes=CLASSES, size_px=16, samples_per_shard=5)
    assert [shard.name for shard in index.of_split("train")] == ["train-000000", "train-000001"]
    assert [shard.samples for shard in index.of_split("val")] == [5, 4]
    with pytest.raises(DataError, match="cannot be in a shard of 'val'"):
        with ShardWriter(Store(tmp_path / "x"), "val-000000", "val") as writer:
            writer.add(next(iter(samples(1))))


def test_features_of_any_shape_are_kept_as_npy(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4)
    store = Store(tmp_path)
    with ShardWriter(store, "train-000000", "train", "zstd") as writer:
        writer.add(Sample(key="f", image=values))
        shard = writer.close()
    assert np.array_equal(open_shard(store, shard).sample(0).image, values)
    with pytest.raises(DataError, match="take raw or zstd"):
        with ShardWriter(store, "train-000001", "train", "png") as writer:
            writer.add(Sample(key="f", image=values))


@pytest.mark.parametrize("key", ["../up", "/root", "a.b", "a/b", "", "k" * 81, "a b", "ä"])
def test_a_key_that_could_leave_its_folder_or_break_grouping_is_refused(
    tmp_path: Path, key: str
) -> None:
    with ShardWriter(Store(tmp_path), "train-000000", "train") as writer:
        with pytest.raises(DataError, match="a key is"):
            writer.add(replace(next(iter(samples(1))), key=key))


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    with ShardWriter(Store(tmp_path), "train-000000", "train") as writer:
        writer.add(next(iter(samples(1))))
        with pytest.raises(DataError, match="in this shard already"):
            writer.add(next(iter(samples(1))))


def test_nothing_has_a_final_name_until_the_writer_is_closed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with ShardWriter(store, "train-000000", "train") as writer:
        writer.add(next(iter(samples(1))))
        assert store.names() == [] and len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
    with ShardWriter(store, "train-000000", "train") as writer:
        writer.add(next(iter(samples(1))))
        writer.close()
    assert store.names() == ["train-000000.idx", "train-000000.tar"]


def test_what_dead_writers_left_is_gone_before_a_set_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed next finds the set complete, and has nothing left to do."""
    folder = tmp_path / "set"
    folder.mkdir()
    left = part_path(folder / "rejected.csv")
    left.write_bytes(b"half")
    seen = []
    whole = Store.write_bytes

    def watched(self: Store, name: str, data: bytes) -> None:
        if name == INDEX:
            seen.append(left.exists())
        whole(self, name, data)

    monkeypatch.setattr(Store, "write_bytes", watched)
    make_set(folder)
    assert seen == [False]


def test_two_writers_of_one_shard_do_not_disturb_each_other(tmp_path: Path) -> None:
    store = Store(tmp_path)
    writers = [ShardWriter(store, "train-000000", "train") for _ in range(2)]
    for sample in samples(3):
        for writer in writers:
            writer.add(sample)
    first, second = (writer.close() for writer in writers)
    assert first == second and len(open_shard(store, first)) == 3


def test_a_full_disk_is_a_named_error_and_leaves_nothing(tmp_path: Path) -> None:
    for big in (True, False):
        writer = ShardWriter(Store(tmp_path), "train-000000", "train", "raw")
        writer._file.close()
        writer._file = open("/dev/full", "wb")
        pixels = image(0, px=2000 if big else 16)
        with pytest.raises(ResourceError, match="No space left on device"):
            writer.add(Sample(key="k", image=pixels))
            writer.close()
        assert list(tmp_path.iterdir()) == []


def test_an_image_unlike_the_first_is_refused_by_name(tmp_path: Path) -> None:
    good = list(samples(2))
    cases = {
        "15x15 px": replace(good[1], image=image(1, px=15)),
        "3 channels": replace(good[1], image=image(1, channels=3)),
        "of 16 bits": replace(good[1], image=image(1, bits=16)),
        "not among the classes": replace(good[1], label="unheard"),
    }
    for number, (text, bad) in enumerate(cases.items()):
        with pytest.raises(DataError, match=text) as caught:
            write_set(tmp_path / str(number), [good[0], bad], name="n", classes=CLASSES, size_px=16)
        assert "source1" in caught.value.where
        assert not list((tmp_path / str(number)).glob("*.part"))


def test_a_finished_set_is_not_written_over(tmp_path: Path) -> None:
    make_set(tmp_path)
    with pytest.raises(UsageError, match="finished set already"):
        make_set(tmp_path)


@pytest.mark.parametrize("argument", [("train-0", "train", "jpeg"), ("train-0", "dev", "png")])
def test_an_unknown_encoding_or_split_names_those_allowed(
    tmp_path: Path, argument: tuple[str, str, str]
) -> None:
    with pytest.raises(UsageError, match="allowed: (png, raw, zstd|train, val, test)"):
        ShardWriter(Store(tmp_path), *argument)


def test_a_folder_without_an_index_is_not_a_finished_set(url: str) -> None:
    with pytest.raises(DataError, match="no index.json"):
        read_index(Store(url))


def test_an_index_of_the_next_schema_is_refused_and_of_the_last_is_read(tmp_path: Path) -> None:
    index = make_set(tmp_path)
    text = index.to_json()
    (tmp_path / "index.json").write_text(text.replace("medray.shards/1", "medray.shards/0"))
    assert read_index(Store(tmp_path)) == index
    (tmp_path / "index.json").write_text(text.replace("medray.shards/1", "medray.shards/2"))
    with pytest.raises(DataError, match=r"shards/2.*is not one that this version reads"):
        read_index(Store(tmp_path))


def test_an_index_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    index = make_set(tmp_path)
    first = index.shards[0]
    wrong = {
        "are the same one": {"shards": (*index.shards, first)},
        "train-000000 and train-000009 are": {
            "shards": (first, replace(first, name="train-000009"))
        },
        "'../x'": {"shards": (replace(first, name="../x"),)},
        "of split 'dev'": {"shards": (replace(first, split="dev"),)},
        "with 0 samples": {"shards": (replace(first, samples=0),)},
        "encoding 'tiff'": {"encoding": "tiff"},
        "named twice": {"classes": (*CLASSES, "rare")},
        "does not have": {"classes": ("clear",)},
        "12 bits": {"bits": 12},
    }
    for text, fields in wrong.items():
        with pytest.raises(DataError, match=text):
            write_index(Store(tmp_path), replace(index, **fields))
    assert read_index(Store(tmp_path)) == index


def test_the_public_names_are_those_documented() -> None:
    assert set(shards.__all__) <= set(dir(shards))
