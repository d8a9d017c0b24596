"""Knee clips are functions of their address, and show what their labels say."""

import functools
import hashlib
from dataclasses import replace

import numpy as np
import pytest

from medray import phantoms, shards
from medray.phantoms import _knee
from medray.phantoms._field import Canvas, Draws
from medray.store import Store
from medray.stream.clips import ClipSet


@functools.cache
def first(count=70):
    return tuple(phantoms.dataset("knee", 0, count, 8))


@pytest.mark.parametrize("size_px", [8, 32, 33])
def test_a_knee_is_a_clip_of_grey_squares_with_a_record(size_px):
    sample = phantoms.knee(1, 2, size_px)
    assert sample.image.shape == (sample.frames, size_px, size_px)
    assert sample.image.dtype == np.uint8 and np.ptp(sample.image) > 100
    assert tuple(sample.labels) == phantoms.CLASSES["knee"] == ("abnormal", "acl", "meniscus")
    assert sample.record()["frames"] == len(sample.image) and sample.slice_mm


def test_the_bytes_are_those_of_every_machine():
    digest = hashlib.sha256()
    for sample in phantoms.dataset("knee", 2024, 3, 32):
        digest.update(sample.image.tobytes())
    assert digest.hexdigest()[:16] == "15da1feecd9e9213"


def test_the_bytes_do_not_depend_on_what_else_is_drawn():
    before = phantoms.knee(5, 10**12, 16).image.tobytes()
    phantoms.knee(5, 3, 32)
    assert phantoms.knee(5, 10**12, 16).image.tobytes() == before
    assert phantoms.knee(6, 10**12, 16).image.tobytes() != before


def test_another_size_is_the_same_clip():
    small, large = (phantoms.knee(0, 1, px).image.astype(float) for px in (32, 96))
    coarse = large.reshape(len(large), 32, 3, 32, 3).mean((2, 4))
    assert np.corrcoef(small.ravel(), coarse.ravel())[0, 1] > 0.98


def test_lengths_vary_and_rare_findings_are_rare():
    exams = [_knee.Exam.of(Draws(0, _knee.STREAM, index)) for index in range(600)]
    lengths = {exam.frames for exam in exams}
    assert min(lengths) == _knee.LEAST_FRAMES and max(lengths) == _knee.MOST_FRAMES
    part = {name: np.mean([exam.labels[name] for exam in exams]) for name in _knee.FINDINGS}
    assert 0.08 < part["acl"] < 0.22 < part["meniscus"] < 0.40 < part["abnormal"] < 0.85


def test_a_torn_knee_is_abnormal_and_named_by_its_rarest_finding():
    for sample in first():
        torn = sample.labels["acl"] or sample.labels["meniscus"]
        assert sample.labels["abnormal"] or not torn
        present = [name for name in _knee.RAREST_FIRST if sample.labels[name]]
        assert sample.label == (present[0] if present else None)


def test_no_patient_is_in_two_splits():
    split_of = {}
    for sample in first():
        assert split_of.setdefault(sample.patient, sample.split) == sample.split
    assert set(split_of.values()) == {"train", "val", "test"}


def drawn(labels, s):
    """The slice at s of one exam with these labels, everything else the same."""
    canvas = Canvas.of(64)
    exam = _knee.Exam.of(Draws(3, _knee.STREAM, 1))
    exam = replace(exam, labels=labels, side=1.0, tear=(0.5, 0.5))
    nothing = np.zeros((canvas.drawn_px, canvas.drawn_px))
    knee = _knee.Knee.of(Draws(3, "knee", 1))
    grid = tuple(axis + nothing for axis in canvas.grid())
    return canvas.reduce(_knee.frame(knee, exam, s, grid, nothing, nothing))


WHOLE = {"abnormal": 1, "acl": 0, "meniscus": 0}


@pytest.mark.parametrize(("name", "at", "elsewhere"), [("acl", 0.0, 0.6), ("meniscus", 0.5, -0.5)])
def test_a_tear_is_bright_where_it_is_and_nowhere_else(name, at, elsewhere):
    torn = WHOLE | {name: 1}
    change = drawn(torn, at) - drawn(WHOLE, at)
    assert change.max() > 0.3 and (np.abs(change) > 0.1).mean() < 0.1
    assert np.abs(drawn(torn, elsewhere) - drawn(WHOLE, elsewhere)).max() < 0.02


@pytest.mark.parametrize("size_px", [7, 2049])
def test_a_size_outside_the_range_is_refused(size_px):
    with pytest.raises(ValueError, match="8 to 2048"):
        phantoms.knee(0, 0, size_px)


def test_knees_make_a_set_of_clips(tmp_path):
    shards.write_set(
        tmp_path,
        phantoms.dataset("knee", 1, 12, 16),
        name="knees",
        classes=phantoms.CLASSES["knee"],
        size_px=16,
        encoding="raw",
    )
    assert shards.verify(Store(tmp_path)) == []
    found = ClipSet.open(tmp_path)
    facts = [fact for split in found.splits for fact in found.facts(split)]
    assert len(facts) == 12 and found.read(facts[0].key).frames_THW.shape[1:] == (16, 16)
