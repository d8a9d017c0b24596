"""Sets of clips: what was written comes back; another kind, damage and unknown keys are named."""

from __future__ import annotations

import gc
import io
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
import zstandard

from medray import lineage, shards
from medray.errors import DataError
from medray.store import Store
from medray.stream import Roster, Source, Stream
from medray.stream.clips import ClipSet, spread
from tests import clip_sets
from tests.clip_sets import FINDINGS, make_clips
from tests.faults import damage
from tests.shard_sets import make_set


@pytest.mark.parametrize("encoding", ["raw", "zstd"])
@pytest.mark.parametrize("bits", [8, 16])
def test_clips_of_any_length_come_back_as_written(tmp_path: Path, encoding, bits) -> None:
    make_clips(tmp_path, encoding=encoding, bits=bits)
    found = ClipSet.open(str(tmp_path))
    assert (found.classes, found.size_px, found.bits) == (FINDINGS, 16, bits)
    assert found.splits == ("train", "val", "test")
    facts = found.facts("train")
    assert [fact.frames for fact in facts] == [1, 3, 5, 2, 7, 4]
    for number, fact in enumerate(facts):
        clip = found.read(fact.key)
        wanted = clip_sets.clip(number, fact.frames, bits=bits)
        assert clip.fact == fact
        assert np.array_equal(clip.frames_THW, wanted.image)
        assert np.array_equal(clip.mask_THW, wanted.mask) and clip.mask_THW.dtype == np.uint8
        assert (clip.spacing_mm, clip.slice_mm) == ((0.5, 0.5), 3.0)
        assert fact.labels == wanted.labels and fact.label == wanted.label


def test_a_missing_label_is_none_and_not_zero(tmp_path: Path) -> None:
    make_clips(tmp_path)
    labels = [fact.labels["meniscus"] for fact in ClipSet.open(tmp_path).facts("train")]
    assert labels == [None, 0, 0, None, 0, 0]


def test_the_lineage_of_clips_is_that_of_their_patients(tmp_path: Path) -> None:
    make_clips(tmp_path)
    found = ClipSet.open(tmp_path)
    saw = found.lineage("val", labels=True)
    assert saw.patients == {"val-p3"} and len(saw) == 2
    assert {entry.label for entry in saw.entries} == {"abnormal", ""}
    assert {entry.label for entry in found.lineage("val", labels=False).entries} == {None}
    assert saw == lineage.of_facts("clips", found.facts("val"), labels=True, split="val")


def test_a_clip_without_patient_is_a_patient_of_its_own(tmp_path: Path) -> None:
    sample = replace(clip_sets.clip(0, 2), patient=None, source_sha256=None)
    shards.write_set(tmp_path, [sample], name="s", classes=FINDINGS, size_px=16, encoding="raw")
    (fact,) = ClipSet.open(tmp_path).facts("train")
    assert fact.patient == fact.sample == "s/train-00000000"


def test_readers_of_images_refuse_clips_and_the_other_way_round(tmp_path: Path) -> None:
    make_clips(tmp_path / "clips")
    make_set(tmp_path / "images")
    for reads in (Stream, lambda sources: Roster(sources, "train")):
        with pytest.raises(DataError, match="MR-D034.*a set of clips, where one of images"):
            reads([Source(tmp_path / "clips")])
    with pytest.raises(DataError, match="MR-D034"):
        shards.read_index(Store(tmp_path / "clips"))
    with pytest.raises(DataError, match="MR-D034.*a set of images, where one of clips"):
        ClipSet.open(tmp_path / "images")


def test_the_index_of_images_says_nothing_of_a_kind(tmp_path: Path) -> None:
    """Sets of images keep the bytes that they had before there were clips."""
    make_set(tmp_path / "images")
    make_clips(tmp_path / "clips")
    assert "kind" not in json.loads((tmp_path / "images/index.json").read_bytes())
    assert json.loads((tmp_path / "clips/index.json").read_bytes())["kind"] == "clips"


def test_images_and_clips_do_not_mix_and_a_png_holds_no_clip(tmp_path: Path) -> None:
    image = replace(clip_sets.clip(1, 3), image=np.zeros((16, 16), np.uint8), frames=None)
    image = replace(image, mask=None)
    options = {"name": "s", "classes": FINDINGS, "size_px": 16}
    for pair in ([clip_sets.clip(0, 2), image], [image, clip_sets.clip(0, 2)]):
        with pytest.raises(DataError, match="another kind"):
            shards.write_set(tmp_path / "mixed", pair, encoding="raw", **options)
    with pytest.raises(DataError, match="a PNG holds no clip"):
        shards.write_set(tmp_path / "png", [clip_sets.clip(0, 2)], encoding="png", **options)


def test_an_unknown_key_and_a_split_that_is_not_there_are_named(tmp_path: Path) -> None:
    make_clips(tmp_path, (2, 2))
    found = ClipSet.open(tmp_path)
    with pytest.raises(DataError, match="MR-D035.*no clip 'train-00000009'"):
        found.read("train-00000009")
    with pytest.raises(DataError, match="MR-D033"):
        found.facts("test")


def test_a_flipped_bit_is_found_by_verify_and_by_the_reader(tmp_path: Path) -> None:
    make_clips(tmp_path)
    assert shards.verify(Store(tmp_path)) == []
    damage.flip_bit(tmp_path / "train-000000.tar", at_byte=1400)
    assert [error.code for error in shards.verify(Store(tmp_path))] == ["MR-D024"]
    with pytest.raises(DataError, match="MR-D024"):
        ClipSet.open(tmp_path).read("train-00000000")


def test_frames_that_are_not_what_the_record_says_are_refused(tmp_path: Path) -> None:
    make_clips(tmp_path, (2, 2))
    found = ClipSet.open(tmp_path)
    with pytest.raises(DataError, match=r"MR-D030.*frames of a clip are uint8 \(2, 16, 16\)"):
        found._check(replace(clip_sets.clip(0, 2), frames=3))
    found._check(clip_sets.clip(0, 2))


def test_plain_webdataset_reads_clips_and_their_masks(tmp_path: Path) -> None:
    make_clips(tmp_path, (2, 3), encoding="zstd")
    unpack = wds.handle_extension(
        "npy.zst", lambda data: np.load(io.BytesIO(zstandard.decompress(data)))
    )
    tars = [str(path) for path in sorted(tmp_path.glob("train-*.tar"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files open
        first, second = list(wds.WebDataset(tars, shardshuffle=False).decode(unpack))
        gc.collect()
    assert np.array_equal(second["npy.zst"], clip_sets.frames(1, 3))
    assert first["mask.npy.zst"].shape == (2, 16, 16) and first["json"]["frames"] == 2


@pytest.mark.parametrize(
    ("frames", "count", "wanted"),
    [
        (1, 3, [0, 0, 0]),
        (3, 3, [0, 1, 2]),
        (6, 3, [1, 3, 5]),
        (2, 4, [0, 0, 1, 1]),
        (500, 2, [125, 375]),
    ],
)
def test_frames_are_spread_evenly(frames: int, count: int, wanted: list[int]) -> None:
    assert spread(frames, count).tolist() == wanted


@pytest.mark.parametrize(("frames", "count"), [(0, 1), (1, 0)])
def test_no_frames_cannot_be_spread(frames: int, count: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        spread(frames, count)
