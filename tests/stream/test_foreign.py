"""Plain webdataset and medray read each other's shards."""

from __future__ import annotations

import gc
import io
import json
import os
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import webdataset as wds
import zstandard

from medray.errors import DataError
from medray.images import encode_png
from medray.store import Store
from medray.stream import Source, Stream, sets
from tests.faults.damage import cut, flip_bit
from tests.shard_sets import CLASSES, drain, image, make_set, samples, stream

COUNT = 20


def foreign(
    folder: Path, count: int = COUNT, per_shard: int = 8, **members: Callable[[int], bytes]
) -> list[Path]:
    """Tars as webdataset writes them, their members given by functions of the sample's number."""
    folder.mkdir(parents=True, exist_ok=True)
    members = members or {"png": lambda n: encode_png(image(n)), "cls": lambda n: b"%d" % (n % 12)}
    paths = []
    for first in range(0, count, per_shard):
        paths.append(folder / f"part-{first // per_shard:04d}.tar")
        with wds.TarWriter(str(paths[-1]), encoder=False) as writer:
            for number in range(first, min(count, first + per_shard)):
                made = {name.replace("_", "."): make(number) for name, make in members.items()}
                writer.write({"__key__": f"s{number:03d}", **made})
    return paths


def numbers(batches: Stream, count: int = COUNT) -> dict[int, tuple[bytes, str | None]]:
    """Pixels and label of one epoch, by sample number."""
    batch = batches.next(count)
    labels = [batches.classes[n] if n >= 0 else None for n in batch.labels_N]
    return {
        int(key[-3:]): (batch.images_NCHW[slot].tobytes(), labels[slot])
        for slot, key in enumerate(batch.keys)
    }


def test_shards_that_webdataset_wrote_open_here(tmp_path: Path) -> None:
    paths = foreign(tmp_path)
    wanted = {n: (image(n).tobytes(), str(n % 12)) for n in range(COUNT)}
    for url in (tmp_path, [str(path) for path in paths], paths):
        with stream(url) as batches:
            assert batches.classes == tuple(str(n) for n in range(12)), "in numerical order"
            assert (batches.channels, batches.size_px, batches.bits) == (1, 16, 8)
            assert numbers(batches) == wanted
    with stream(paths[0]) as batches:
        assert batches.samples_per_epoch == 8


def test_they_open_from_an_object_store_too(tmp_path: Path) -> None:
    store = Store("memory://foreign")
    for path in foreign(tmp_path):
        store.write_bytes(path.name, path.read_bytes())
    with stream(tmp_path) as local, stream("memory://foreign") as remote:
        assert drain(remote, 2 * COUNT) == drain(local, 2 * COUNT)


LABELS: dict[str, dict[str, Callable[[int], bytes]]] = {
    "json": {"json": lambda n: json.dumps({"label": f"c{n % 3}", "age": n}).encode()},
    "txt": {"txt": lambda n: b"c%d\n" % (n % 3)},
    "cls": {"cls": lambda n: b"c%d" % (n % 3)},
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_come_from_json_text_or_cls(tmp_path: Path, kind: str) -> None:
    foreign(tmp_path, png=lambda n: encode_png(image(n)), **LABELS[kind])
    with stream(tmp_path) as batches:
        assert batches.classes == ("c0", "c1", "c2")
        assert {n: label for n, (_, label) in numbers(batches).items()} == {
            n: f"c{n % 3}" for n in range(COUNT)
        }
        assert ("age" in batches.next(1).records[0]) == (kind == "json")


def test_images_alone_have_no_labels(tmp_path: Path) -> None:
    foreign(tmp_path, png=lambda n: encode_png(image(n)))
    with stream(tmp_path) as batches:
        assert batches.classes == () and set(batches.next(8).labels_N) == {-1}


def npy(number: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asfortranarray(image(number, bits=16)))
    return file.getvalue()


IMAGES: dict[str, tuple[Callable[[int], bytes], Callable[[int], Any]]] = {
    "png": (lambda n: cv2.imencode(".png", image(n))[1].tobytes(), image),
    "npy": (npy, lambda n: image(n, bits=16)),
    "npy_zst": (lambda n: zstandard.compress(npy(n)), lambda n: image(n, bits=16)),
    "jpg": (
        lambda n: cv2.imencode(".jpg", image(n))[1].tobytes(),
        lambda n: cv2.imdecode(cv2.imencode(".jpg", image(n))[1], cv2.IMREAD_UNCHANGED),
    ),
    "jpeg": (
        lambda n: cv2.imencode(".jpg", image(n, channels=3)[..., ::-1])[1].tobytes(),
        lambda n: cv2.imdecode(
            cv2.imencode(".jpg", image(n, channels=3)[..., ::-1])[1], cv2.IMREAD_COLOR
        )[..., ::-1].transpose(2, 0, 1),
    ),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_of_each_kind_are_decoded(tmp_path: Path, kind: str) -> None:
    make, wanted = IMAGES[kind]
    foreign(tmp_path, **{kind: make})
    with stream(tmp_path) as batches:
        found = numbers(batches)
    assert {n: data for n, (data, _) in found.items()} == {
        n: np.ascontiguousarray(wanted(n)).tobytes() for n in range(COUNT)
    }


def test_names_of_splits_are_kept_apart(tmp_path: Path) -> None:
    for number, path in enumerate(foreign(tmp_path)):
        path.rename(tmp_path / f"{('train', 'val', 'test')[number]}-0000.tar")
    for split, count in (("train", 8), ("val", 8), ("test", 4)):
        with stream(tmp_path, split=split) as batches:
            assert batches.samples_per_epoch == count


def test_a_scan_is_kept_in_the_cache_folder_until_the_tar_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, scanned = foreign(tmp_path / "tars"), []
    scan = sets.foreign.scan

    def counted(path: Path, name: str) -> Any:
        scanned.append(name)
        return scan(path, name)

    def epoch() -> None:
        with stream(tmp_path / "tars", cache_dir=tmp_path / "cache") as batches:
            assert len(numbers(batches)) == COUNT

    monkeypatch.setattr(sets.foreign, "scan", counted)
    epoch()
    assert len(scanned) == 3
    epoch()
    assert len(scanned) == 3
    os.utime(paths[1], (1, 1))
    epoch()
    assert scanned[3:] == ["part-0001.tar"]
    for kept in (tmp_path / "cache").glob("*.json"):
        cut(kept, to_bytes=50)
    epoch()
    assert len(scanned) == 7


def test_two_tars_of_one_name_are_refused_not_taken_for_one(tmp_path: Path) -> None:
    paths = [foreign(tmp_path / folder)[0] for folder in ("a", "b")]
    with pytest.raises(DataError, match="two tars are called part-0000.tar"):
        stream(paths)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda path: cut(path, to_bytes=path.stat().st_size - 15_000),
            "cut|ends after|tar header",
        ),
        (lambda path: path.write_bytes(b""), "cut"),
        (lambda path: path.write_bytes(b"\x1f\x8b" + bytes(2000)), "header"),
    ],
)
def test_a_foreign_tar_that_is_not_whole_is_refused(
    tmp_path: Path, change: Callable[[Path], object], text: str
) -> None:
    change(foreign(tmp_path, per_shard=COUNT)[0])
    with pytest.raises(DataError, match=text) as caught:
        stream(tmp_path)
    assert "part-0000.tar" in caught.value.where


@pytest.mark.parametrize("name", ["../up.png", "/abs.png"])
def test_foreign_names_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        data = encode_png(image(0))
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    with pytest.raises(DataError, match="refused"):
        stream(tmp_path)


def test_damage_after_the_scan_is_found(tmp_path: Path) -> None:
    path = foreign(tmp_path, per_shard=COUNT)[0]
    with stream(tmp_path, prefetch=0) as batches:
        drain(batches, COUNT)
        flip_bit(path, at_byte=700)
        with pytest.raises(DataError, match="damaged"):
            drain(batches, COUNT)


def test_one_image_of_another_size_is_refused_by_its_key_before_it_is_decoded(
    tmp_path: Path,
) -> None:
    huge = bytearray(encode_png(image(0)))
    huge[16:24] = (100_000).to_bytes(4, "big") * 2
    for bad, size in ((encode_png(image(0, px=15)), "15x15"), (bytes(huge), "100000x100000")):
        folder = tmp_path / size
        foreign(folder, png=lambda n, bad=bad: bad if n == 11 else encode_png(image(n)))
        with stream(folder) as batches:
            with pytest.raises(DataError, match=size) as caught:
                drain(batches, COUNT)
        assert "s011.png" in caught.value.where
        with stream(folder, on_error="skip") as batches:
            drain(batches, COUNT)
            assert batches.skipped == 1


def test_members_of_other_kinds_are_never_decoded(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    payload = f"cposix\nsystem\n(S'touch {canary}'\ntR.".encode()
    foreign(
        tmp_path / "tars", png=lambda n: encode_png(image(n)), pyd=lambda _: payload,
        pkl=lambda _: payload, pth=lambda _: payload,
    )  # fmt: skip
    with stream(tmp_path / "tars") as batches:
        drain(batches, COUNT)
    assert not canary.exists()
    objects = io.BytesIO()
    np.save(objects, np.array([{}], object), allow_pickle=True)
    foreign(tmp_path / "npy", npy=lambda _: objects.getvalue())
    with pytest.raises(DataError, match="npy cannot be read"):
        stream(tmp_path / "npy")


def test_a_sample_without_an_image_or_with_a_key_twice_is_refused(tmp_path: Path) -> None:
    foreign(tmp_path / "none", cls=lambda n: b"1")
    with pytest.raises(DataError, match="no image among the members"):
        stream(tmp_path / "none")
    (path,) = foreign(tmp_path / "twice", count=2, per_shard=2)
    with tarfile.open(path, "a") as tar:
        tar.add(__file__, "s000.png")
    with pytest.raises(DataError, match="in two places"):
        stream(tmp_path / "twice")


def test_foreign_and_packed_sets_are_mixed(tmp_path: Path) -> None:
    foreign(tmp_path / "foreign", png=lambda n: encode_png(image(n)), cls=lambda n: b"rare")
    make_set(tmp_path / "packed")
    with Stream([Source(tmp_path / "foreign", 1), Source(tmp_path / "packed", 3)]) as batches:
        assert batches.classes == ("rare", "clear", "opacity")
        keys = [key for key, _ in drain(batches, 32)]
    assert sum(key.startswith("s") for key in keys) == 8


def decode_zst(data: bytes) -> Any:
    return np.load(io.BytesIO(zstandard.decompress(data)))


@pytest.mark.parametrize(
    ("encoding", "member", "decoder"),
    [
        ("png", "png", "l8"),
        ("raw", "npy", None),
        ("zstd", "npy.zst", wds.handle_extension("npy.zst", decode_zst)),
    ],
)
def test_plain_webdataset_opens_what_is_packed_here(
    tmp_path: Path, encoding: str, member: str, decoder: Any
) -> None:
    make_set(tmp_path, encoding=encoding, per_shard=8, masks=True)
    given = list(samples(20, masks=True))
    found = webdataset_epoch(tmp_path, decoder)
    assert [sample["__key__"] for sample in found] == [f"train-{n:08d}" for n in range(20)]
    for number, sample in enumerate(found):
        assert np.array_equal(sample[member], given[number].image)
        assert sample["json"]["label"] == given[number].label
        assert "mask.png" in sample
    assert {s.label for s in given if s.label} == set(CLASSES)


def webdataset_epoch(folder: Path, decoder: Any) -> list[dict[str, Any]]:
    """All that plain webdataset finds, decoded as it does by itself or by one handler."""
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    with warnings.catch_warnings():
        # It leaves files open for the collector to close.
        warnings.simplefilter("ignore", ResourceWarning)
        plain = wds.WebDataset(urls, shardshuffle=False)
        found = list(plain.decode(decoder) if decoder else plain.decode())
        del plain
        gc.collect()
    return found
