"""The arms of `jobs/gradcam.py`: what is kept, whose masks are borrowed, trainings, words."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from jobs import _gradcam_arms as arms
from jobs import _gradcam_shift as shift
from jobs import _gradcam_train as train
from jobs import _gradcam_verdict as verdicts
from jobs.gradcam import ARMS, GradcamJob, main
from medray.errors import DataError, Stopped
from medray.train.targets import Targets
from tests.jobs import gradcam_sets as sets


def disc(px=32, radius=10, down=0, right=0):
    y, x = np.mgrid[:px, :px] - px / 2 + 0.5
    return ((y - down) ** 2 + (x - right) ** 2 < radius**2).astype(np.float32) * 0.5


def square(px=32, top=4, left=20, side=4):
    mask = np.zeros((px, px), bool)
    mask[top : top + side, left : left + side] = True
    return mask


# --- masks moved ---------------------------------------------------------------------------------


def test_a_mask_moves_the_least_that_brings_it_as_far_inside_as_it_was():
    mask, wide, small = square(top=8, left=20), disc(radius=14), disc(radius=6)
    assert shift.least_shift(mask, shift.head_of(wide), shift.head_of(wide)) == (0, 0)
    (inside,) = shift.shifted_inside(mask, (mask,), wide, small)
    assert inside.sum() == mask.sum() and not (inside & (small == 0)).any()
    down, right = shift.least_shift(mask, shift.head_of(wide), shift.head_of(small))
    for other in ((down - 1, right), (down, right + 1)):
        moved = shift.moved(mask, *other)
        assert (moved & (small == 0)).any(), "a smaller shift would not do"
    edge = shift.least_shift(
        square(top=8, left=27, side=5), shift.head_of(wide), disc(right=-9) > 0
    )
    assert edge[1] < 0, "towards the other head"
    corner, ring = square(top=0, left=0, side=20), disc(radius=5, down=-14, right=-14)
    (kept,) = shift.shifted_inside(corner, (corner,), np.ones((32, 32)), ring)
    assert kept.sum() == corner.sum(), "none of a mask leaves the image"
    outside = square(top=0, left=0)
    assert shift.least_shift(outside, shift.head_of(wide), shift.head_of(small)) == (0, 0), (
        "what was outside of its own head need not be inside of another"
    )
    assert shift.least_shift(mask, shift.head_of(wide), np.zeros((32, 32), bool)) == (0, 0)


def test_a_head_is_what_is_bright_with_its_holes_filled():
    ring = disc(radius=12)
    ring[14:18, 14:18] = 0
    assert np.array_equal(shift.head_of(ring), disc(radius=12) > 0)
    assert not shift.head_of(np.zeros((8, 8), np.float32)).any()


# --- what is kept --------------------------------------------------------------------------------


def images(count=8):
    """Odd images are positive and have masks; even ones do not."""
    draw = np.random.default_rng(0)
    pixels = np.stack([np.uint8(255 * disc(radius=8 + n % 3)) for n in range(count)])[:, None]
    true = np.zeros((count, 32, 32), bool)
    for n in range(1, count, 2):
        true[n] = square(top=12 + n % 3, left=14, side=2 + n // 2)
    heat = draw.random((count, 32, 32)).astype(np.float32) * 0.2 + true * 0.8
    heat[::2] = 0.1
    heat = np.clip(heat, 0, 1)
    return arms.Images(
        pixels,
        np.arange(count) % 2,
        tuple(f"p{n // 2}" for n in range(count)),
        heat,
        heat > 0.5,
        true,
        (heat, heat > 0.5),
    )


def test_images_without_a_place_borrow_heat_and_masks_of_those_with_one():
    own = images()
    found = arms.borrowed(own, (0,), 0, "s")
    assert np.array_equal(found.true_NHW[1::2], own.true_NHW[1::2])
    areas = sorted(int(mask.sum()) for mask in own.true_NHW[1::2])
    assert sorted(int(m.sum()) for m in found.true_NHW[::2]) == areas, "area tells nothing"
    still = sorted(float(heat.sum()) for heat in found.still_NHW[0][::2])
    assert still == sorted(float(heat.sum()) for heat in own.heat_NHW[1::2])
    assert found.mask_NHW[::2].any((1, 2)).all() and found.heat_NHW[::2].max() > 0.8
    again = arms.borrowed(own, (0,), 0, "s")
    assert np.array_equal(again.heat_NHW, found.heat_NHW)
    other = arms.borrowed(own, (0,), 1, "s")
    assert not np.array_equal(other.true_NHW, found.true_NHW)
    assert arms.borrowed(own, (), 0, "s") is own, "where every class has a place nobody borrows"
    empty = replace(own, true_NHW=np.zeros_like(own.true_NHW))
    with pytest.raises(DataError, match="no image of a class with a place"):
        arms.borrowed(empty, (0,), 0, "s")


@pytest.mark.parametrize("form", ["soft", "binary"])
def test_what_is_kept_and_what_is_removed_make_the_image_up(form):
    own, mean = images(), 60.0
    whole = own.images_NCHW.astype(float)
    kept = arms.filtered(own, arms.Training("kept", form), 0, mean).astype(float)
    removed = arms.filtered(own, arms.Training("removed", form), 0, mean).astype(float)
    assert np.abs(kept + removed - whole - mean).max() <= 1, "each is the other's rest"
    if form == "binary":
        inside = own.mask_NHW[:, None]
        assert (kept[~inside] == mean).all() and np.array_equal(kept[inside], whole[inside])
    original = arms.filtered(own, arms.Training("original", "binary"), 0, mean)
    assert np.array_equal(original, own.images_NCHW)


def test_the_true_tumour_is_kept_or_removed_and_a_random_mask_has_equal_area():
    own, mean = images(), 60.0
    tumour = arms.keep_of(own, arms.Training("tumour", "binary"), 0)
    without = arms.keep_of(own, arms.Training("no-tumour", "binary"), 0)
    assert np.array_equal(tumour, own.true_NHW) and np.array_equal(without, 1 - tumour)
    random = arms.keep_of(own, arms.Training("random", "binary"), 0)
    assert np.array_equal(random.sum((1, 2)), own.mask_NHW.sum((1, 2)))
    assert not np.array_equal(random, own.mask_NHW)
    alone = arms.filtered(own, arms.Training("kept", "binary", alone=True), 0, mean)
    assert np.array_equal(alone[:, 0], own.mask_NHW * np.uint8(255)), "no pixel of the image"


def test_every_arm_is_trained_once_and_masks_alone_are_shared():
    names = [training.name for training in arms.trainings(ARMS)]
    assert len(names) == len(set(names)) == 14
    assert {n for n in names if n.endswith("alone")} == {
        *("kept-soft-alone", "kept-binary-alone", "tumour-binary-alone"),
        *("random-soft-alone", "random-binary-alone"),
    }


# --- words ---------------------------------------------------------------------------------------


def said(truth, share, seeds=2):
    """Probabilities that are right for a share of the images."""
    rows = []
    for seed in range(seeds):
        right = np.random.default_rng(seed).random(len(truth)) < share
        numbers = np.where(right, truth, 1 - truth)
        rows.append(np.eye(2)[numbers] * 0.8 + 0.1)
    return np.stack(rows)


def verdict(removed, alone):
    truth = np.arange(120) % 2
    test = SimpleNamespace(numbers_N=truth, patients=tuple(f"p{n // 4}" for n in range(120)))
    predictions = {
        "original-binary": said(truth, 0.95),
        "removed-binary": said(truth, removed),
        "kept-binary-alone": said(truth, alone),
    }
    config = SimpleNamespace(seed=0)
    return verdicts.verdict(config, predictions, test, ("a", "b"), ("original", "removed"))


def test_dark_regions_carry_information_only_where_they_beat_chance_and_their_masks():
    assert verdict(0.85, 0.5)["words"][0].startswith("Dark regions carry information: with")
    assert "was not shown" in verdict(0.5, 0.5)["words"][0]
    found = verdict(0.85, 0.85)
    assert "was not shown" in found["words"][0], "the masks alone say as much"
    assert "not blind to the class" in found["words"][1]
    assert [row[0] for row in found["rows"]] == ["(a) original", "(c) heat removed"]
    assert found["figures"]["removed-binary"]["minus_original"]["high"] < 0.05


def test_sigterm_in_a_training_is_heard_and_the_old_handler_comes_back():
    every = np.stack([sample.image[None] for sample in sets.samples(16, "train")])
    part = train.Part(every, np.arange(16) // 2 % 2)
    flags = {"classifier": "c", "data": "d", "out": "o", "arm_images": 3200, "arm_px": 16}
    config = GradcamJob(**flags, arm_width=8)
    before, steps = signal.getsignal(signal.SIGTERM), []
    plain = train._Batches.next

    def third_is_the_last(batches, count):
        steps.append(count)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(batches, count)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped) as stopped:
        patch.setattr(train._Batches, "next", third_is_the_last)
        train.trained(config, Targets(sets.CLASSES, False), part, part, part, seed=0)
    assert len(steps) == 3 and stopped.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) is before


# --- the job -------------------------------------------------------------------------------------


def test_the_arms_are_trained_once_and_read_back_after_a_kill(tmp_path, monkeypatch):
    sets.write(tmp_path / "set")
    sets.save(tmp_path / "c", sets.trained())
    flags = ["--classifier", f"{tmp_path}/c", "--data", f"{tmp_path}/set", "-q"]
    flags += [
        "--background",
        "plain",
        "--arms",
        "original",
        "removed",
        "--arm-images",
        "64",
        "--arm-px",
        "16",
    ]
    flags += ["--arm-width", "8", "--arm-seeds", "1", "--interval-draws", "40"]
    plain, count = arms._trained, [0]

    def third_fails(*given):
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt
        return plain(*given)

    monkeypatch.setattr(arms, "_trained", third_fails)
    assert main([*flags, "--out", str(tmp_path / "o")]) == 130
    assert main([*flags, "--out", str(tmp_path / "o")]) == 0 and count[0] == 6
    monkeypatch.setattr(arms, "_trained", plain)
    assert main([*flags, "--out", str(tmp_path / "p")]) == 0
    ours, theirs = (json.loads((tmp_path / o / "summary.json").read_text()) for o in "op")
    assert ours["arms"] == theirs["arms"]
    assert len(ours["arms"]["rows"]) == 3 and len(ours["arms"]["words"]) >= 1
    assert "(c) heat removed" in (tmp_path / "o" / "report.html").read_text()
