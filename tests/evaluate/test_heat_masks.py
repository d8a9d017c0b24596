"""Heat into masks: thresholds, quantiles, Otsu, the choice between them, and masks moved."""

import numpy as np
import pytest

from medray.errors import UsageError
from medray.evaluate.heat_masks import CUTS, Choice, Cut, centre, otsu, rolled


def heat(count=3, px=16, seed=0):
    return np.random.default_rng(seed).random((count, px, px), np.float32)


def test_a_threshold_and_a_quantile_take_what_they_say():
    values = heat()
    assert np.array_equal(Cut("threshold", 0.5).masks(values), values >= 0.5)
    share = Cut("quantile", 0.9).masks(values).mean((1, 2))
    assert np.allclose(share, 0.1, atol=0.01)
    assert not Cut("quantile", 0.0).masks(np.zeros_like(values)).any(), "no heat, no mask"
    assert not Cut("threshold", 0.0).masks(np.zeros_like(values)).any()


def test_otsu_is_the_threshold_between_which_means_differ_most():
    values = np.concatenate([heat() * 0.3, 0.6 + heat(seed=1) * 0.3], 1)
    for found, image in zip(otsu(values), values, strict=True):
        bins = np.floor(image.ravel() * 256)
        between = [
            (bins < t).mean()
            * (bins >= t).mean()
            * (bins[bins < t].mean() - bins[bins >= t].mean()) ** 2
            if (bins < t).any() and (bins >= t).any()
            else 0
            for t in range(257)
        ]
        assert found == pytest.approx(int(np.argmax(between)) / 256, abs=1e-6)
        assert 0.25 < found < 0.65
    assert otsu(np.full((1, 4, 4), 0.3, np.float32)) == 0, "one value has no two sides"


@pytest.mark.parametrize("text", ["threshold:0.5", "quantile:0.95", "otsu"])
def test_a_cut_is_read_as_it_is_written(text):
    assert str(Cut.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["threshold", "otsu:1", "quantile:1", "half:0.5", "threshold:x", ""]
)
def test_anything_else_is_no_cut(text):
    with pytest.raises(UsageError, match="threshold:T, quantile:Q"):
        Cut.parse(text)


def test_the_choice_finds_the_way_and_cut_that_made_the_masks():
    values, other = heat(40), heat(40, seed=9)
    true = Cut("quantile", 0.95).masks(values)
    choice = Choice()
    for at in range(0, 40, 16):
        part = slice(at, at + 16)
        choice.add({"noise": other[part], "right": values[part]}, true[part])
    assert choice.images == 40
    assert choice.best() == ("right", Cut("quantile", 0.95), 1.0)
    name, cut, dice = choice.best("noise")
    assert name == "noise" and dice < 0.2 and cut in CUTS


def test_rolled_masks_keep_their_area_and_are_functions_of_their_number():
    masks = heat(20) > 0.8
    moved = rolled(masks, 5, 0)
    assert np.array_equal(moved.sum((1, 2)), masks.sum((1, 2))) and not np.array_equal(moved, masks)
    assert np.array_equal(rolled(masks[7:], 5, 0, first=7), moved[7:])
    assert not np.array_equal(rolled(masks, 5, 1), moved)
    assert not np.array_equal(rolled(masks, 6, 0), moved)


def test_the_middle_is_hot_and_the_corners_are_not():
    found = centre(8, 8)
    assert np.array_equal(found, found[::-1, ::-1]) and found.min() >= 0
    assert found[3, 3] == found.max() > 0.8 and found[0, 0] == found.min() < 0.2
