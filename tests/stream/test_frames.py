"""Frames in memory: blank ones left out, clips of any length, too much memory refused."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from medray import rng, shards
from medray.errors import DataError, UsageError
from medray.records import Sample
from medray.stream import Roster, Source, frames
from medray.stream.clips import ClipSet

GIB = 2.0**30


def clip(count: int, patient: str, *, blank: Iterable[int] = (), px: int = 24) -> Sample:
    drawn = rng.integers(0, f"test.{patient}", 0, count * px * px, 0, 256)
    image = drawn.reshape(count, px, px).astype(np.uint8)
    for number in blank:
        image[number] = 7
    return Sample(key="", image=image, patient=patient, frames=count, labels={"a": 1})


def clip_set(folder: Path, clips: list[Sample]) -> ClipSet:
    shards.write_set(folder, clips, name="set", classes=("a",), size_px=24, encoding="raw")
    return ClipSet.open(folder)


def test_blank_frames_are_left_out_and_counted_and_a_clip_of_one_frame_is_a_clip(
    tmp_path: Path,
) -> None:
    opened = clip_set(tmp_path / "set", [clip(5, "p", blank=(0, 3)), clip(1, "q"), clip(4, "r")])
    facts = opened.facts("train")
    found = frames.of_clips(opened, facts, most_bytes=GIB)
    assert found.frames_FCHW.shape == (8, 1, 24, 24) and found.blank == 2
    assert found.starts.tolist() == [0, 3, 4, 8]
    assert found.clip_F.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    wanted = opened.read(facts[0].key).frames_THW[[1, 2, 4]]
    np.testing.assert_array_equal(found.frames_FCHW[:3, 0], wanted)


def test_a_clip_that_is_all_blank_is_left_out_and_nothing_but_blank_is_refused(
    tmp_path: Path,
) -> None:
    opened = clip_set(tmp_path / "set", [clip(2, "p", blank=(0, 1)), clip(2, "q")])
    facts = opened.facts("train")
    found = frames.of_clips(opened, facts, most_bytes=GIB)
    assert [fact.patient for fact in found.facts] == ["q"] and found.blank == 2
    with pytest.raises(DataError, match="none of 2 frames shows anything"):
        frames.of_clips(opened, facts[:1], most_bytes=GIB)


def test_a_clip_gives_at_most_so_many_frames_evenly(tmp_path: Path) -> None:
    opened = clip_set(tmp_path / "set", [clip(9, "p"), clip(2, "q")])
    facts = opened.facts("train")
    found = frames.of_clips(opened, facts, per_clip=3, most_bytes=GIB)
    assert np.diff(found.starts).tolist() == [3, 2]
    wanted = opened.read(facts[0].key).frames_THW[[1, 4, 7]]
    np.testing.assert_array_equal(found.frames_FCHW[:3, 0], wanted)


def test_more_memory_than_allowed_is_refused_before_it_is_read(tmp_path: Path) -> None:
    opened = clip_set(tmp_path / "set", [clip(9, "p")])
    facts = opened.facts("train")
    with pytest.raises(UsageError, match="9 frames need .* GiB"):
        frames.of_clips(opened, facts, most_bytes=9 * 24 * 24 - 1)
    frames.of_clips(opened, facts, most_bytes=9 * 24 * 24)


def test_images_are_clips_of_one_frame_and_sets_are_joined(tmp_path: Path) -> None:
    images = [
        Sample(key="", image=clip(1, f"p{n}").image[0], patient=f"p{n}", label="a")
        for n in range(4)
    ]
    shards.write_set(tmp_path / "images", images, name="i", classes=("a",), size_px=24)
    roster = Roster([Source(tmp_path / "images")], "train")
    found = frames.of_images(roster, roster.facts, most_bytes=GIB)
    assert found.starts.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(found.frames_FCHW[2, 0], images[2].image)
    opened = clip_set(tmp_path / "clips", [clip(3, "q")])
    both = frames.joined([found, frames.of_clips(opened, opened.facts("train"), most_bytes=GIB)])
    assert both.starts.tolist() == [0, 1, 2, 3, 4, 7] and len(both.facts) == 5
    assert both.digest() != found.digest() == frames.joined([found]).digest()


def test_sets_of_other_sizes_are_not_joined(tmp_path: Path) -> None:
    parts = []
    for px in (24, 32):
        folder = tmp_path / str(px)
        given = [clip(2, "p", px=px)]
        shards.write_set(folder, given, name="s", classes=("a",), size_px=px, encoding="raw")
        opened = ClipSet.open(folder)
        parts.append(frames.of_clips(opened, opened.facts("train"), most_bytes=GIB))
    with pytest.raises(DataError, match="differ in"):
        frames.joined(parts)
