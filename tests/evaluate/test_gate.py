"""The privacy gate: its thresholds, its positive control, its verdict on each image alone."""

import functools

import numpy as np
import pytest

from medray import phantoms
from medray.errors import DataError, UsageError
from medray.evaluate import control, memorisation
from medray.evaluate.memorisation import Gate, best_inside, subsets
from medray.evaluate.similarity import SHIFTS, fine_NFF, fine_of, moved, window_ND, windows_NVD
from medray.store import Store

PX = 32


@functools.cache
def chest(first, count, px=PX):
    """Phantoms of addresses `first` on: those of two ranges far apart share no patient."""
    return np.stack([phantoms.chest(0, first + i, px).image for i in range(count)])


@pytest.fixture(scope="module")
def gate():
    return Gate.fit(chest(0, 160), chest(1200, 60), seed=3)


def test_planted_copies_are_caught_and_the_gate_audits(gate):
    assert gate.audits and gate.facts.caught["all"] >= 0.9
    assert gate.facts.planted == 100


def test_an_overfitted_generator_is_flagged_at_nine_tenths(gate):
    replayed = control.near_copies(chest(0, 100), "all", seed=99)
    flagged = gate.judge(replayed).copies_N
    assert flagged.mean() >= 0.9
    nearest_N = gate.judge(replayed).nearest_N[flagged]
    assert (nearest_N == np.arange(100)[flagged]).mean() > 0.95


def test_images_of_other_patients_pass(gate):
    """Negative control: the gate does not simply call everything a copy."""
    assert gate.judge(chest(2400, 100)).copies_N.mean() <= 0.1


def test_hold_out_images_themselves_are_not_copies_and_set_the_threshold(gate):
    verdict = gate.judge(chest(1200, 60))
    assert not verdict.copies_N.any()
    assert verdict.similarity_N.max() == np.float32(gate.facts.pixel_threshold)
    assert gate.facts.resolution == pytest.approx(1 / 60)


def test_a_gate_that_catches_nothing_does_not_audit():
    """With training images among the hold-out nothing is more alike than the hold-out is."""
    train = chest(0, 60)
    blind = Gate.fit(train, train[:20])
    assert not blind.audits and blind.facts.caught["all"] < 0.9


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 40])
def test_a_verdict_is_a_function_of_the_image_alone(gate, count):
    images = chest(2400, 40)
    whole, part = gate.judge(images), gate.judge(images[40 - count :])
    for name in ("copies_N", "similarity_N", "cosine_N", "nearest_N"):
        assert np.array_equal(getattr(whole, name)[40 - count :], getattr(part, name))


def test_no_images_have_an_empty_verdict(gate):
    assert gate.judge(np.zeros((0, PX, PX), np.uint8)).copies_N.shape == (0,)


def test_a_blank_image_is_like_nothing(gate):
    verdict = gate.judge(np.full((1, PX, PX), 90, np.uint8))
    assert verdict.similarity_N[0] == 0 and np.isfinite(verdict.cosine_N).all()


def test_it_is_saved_and_loaded_whole(gate, tmp_path):
    sha256 = gate.save(Store(tmp_path))
    again = Gate.load(str(tmp_path))
    images = chest(2400, 20)
    assert again.sha256 == sha256 == gate.sha256
    assert np.array_equal(again.judge(images).similarity_N, gate.judge(images).similarity_N)
    assert np.array_equal(again.judge(images).cosine_N, gate.judge(images).cosine_N)


@pytest.mark.parametrize("place", [60, 5_000, -9])
def test_a_flipped_bit_in_the_file_is_refused(gate, tmp_path, place):
    gate.save(Store(tmp_path))
    path = tmp_path / memorisation.TENSORS
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)
    with pytest.raises(DataError, match="sha256 differs"):
        Gate.load(str(tmp_path))


def test_a_changed_threshold_is_refused(gate, tmp_path):
    gate.save(Store(tmp_path))
    path = tmp_path / memorisation.FACTS
    path.write_text(path.read_text().replace('"pixel_threshold": 0.', '"pixel_threshold": 1.'))
    with pytest.raises(DataError, match="sha256 differs"):
        Gate.load(str(tmp_path))


def test_a_folder_without_a_gate_is_named(tmp_path):
    with pytest.raises(UsageError, match="holds no gate"):
        Gate.load(str(tmp_path))


def test_the_same_images_in_other_batches_give_the_same_gate(gate):
    train, holdout = chest(0, 160), chest(1200, 60)
    again = Gate.of_batches(
        [train[:7], train[7:90], train[90:]], [holdout[:31], holdout[31:]], 60, seed=3
    )
    assert again.sha256 == gate.sha256


def test_other_sizes_and_too_small_a_hold_out_are_refused(gate):
    with pytest.raises(DataError, match="16 px grey, the training images 32 px grey"):
        gate.judge(chest(0, 2, 16))
    with pytest.raises(DataError, match="hold-out of 9 images"):
        Gate.fit(chest(0, 20), chest(1200, 9))
    with pytest.raises(DataError, match="no training images"):
        Gate.fit(np.zeros((0, PX, PX), np.uint8), chest(1200, 10))
    with pytest.raises(ValueError, match="must be uint8"):
        gate.judge(chest(0, 2).astype(np.float32))


def test_colour_images_are_judged_as_colour():
    colour = [np.stack([chest(first, 30)] * 3, axis=3) for first in (0, 1200)]
    gate = Gate.fit(*colour)
    assert gate.facts.channels == 3 and gate.judge(colour[0]).copies_N.all()
    with pytest.raises(DataError, match="grey, the training images 32 px colour"):
        gate.judge(chest(0, 1))


def test_a_training_image_is_found_after_each_shift_and_mirroring(gate):
    image = chest(5, 1)
    for mirrored in (False, True):
        for down, right in SHIFTS:
            verdict = gate.judge(moved(image, mirrored, down, right))
            assert verdict.copies_N[0] and verdict.nearest_N[0] == 5


@pytest.mark.parametrize("px", [16, 32, 40, 64, 100])
def test_the_pixel_part_agrees_with_correlation_written_out(px):
    images = chest(0, 3, px)
    fine = fine_of(px)
    grid_NFF = fine_NFF(images).numpy()
    inner = grid_NFF.shape[1] - 2 * fine
    best = -1.0
    centre = grid_NFF[1][fine : fine + inner, fine : fine + inner]
    for turned in (grid_NFF[0], grid_NFF[0][:, ::-1]):
        for down in range(2 * fine + 1):
            for right in range(2 * fine + 1):
                cut = turned[down : down + inner, right : right + inner]
                pair = [
                    side.reshape(inner // fine, fine, inner // fine, fine).mean((1, 3)).ravel()
                    for side in (cut, centre)
                ]
                best = max(best, np.corrcoef(*pair)[0, 1])
    ours_V = windows_NVD(images[:1])[0] @ window_ND(fine_NFF(images[1:2]), fine)[0]
    assert float(ours_V.max()) == pytest.approx(best, abs=1e-5)


def test_subsets_are_of_the_size_asked_for_and_seeded():
    inside_AM = subsets(50, 20, seed=1)
    assert inside_AM.shape == (100, 50) and (inside_AM.sum(1) == 20).all()
    assert np.array_equal(inside_AM, subsets(50, 20, seed=1))
    assert not np.array_equal(inside_AM, subsets(50, 20, seed=2))
    assert subsets(50, 99, seed=1).all()


def test_with_a_large_hold_out_the_threshold_is_the_percentile_over_subsets(monkeypatch):
    """At 40 instead of 2,000 images: of the best in each subset, all draws pooled."""
    monkeypatch.setattr(memorisation, "RESOLVED_HOLDOUT", 40)
    train, holdout = chest(0, 90), chest(1200, 40)
    gate = Gate.fit(train, holdout)
    inside_AM = subsets(90, 40, 0)
    grid_NFF = fine_NFF(train)
    rows = windows_NVD(holdout) @ window_ND(grid_NFF, 1).half().float().T
    best = np.stack([best_inside(row.amax(0).numpy(), inside_AM) for row in rows])
    assert gate.facts.pixel_threshold == pytest.approx(np.quantile(best, 0.999), abs=2e-5)
    assert "99.9th percentile" in gate.facts.rule


def test_features_that_never_change_do_not_decide():
    train = chest(0, 1).repeat(40, axis=0)
    gate = Gate.fit(train, chest(1200, 10))
    assert np.isfinite(gate.judge(chest(2400, 5)).cosine_N).all()
