"""Scaling: aspect kept, black around, averages on the way down, masks without new values."""

import cv2
import numpy as np
import pytest

from medray.errors import DataError
from medray.pack.geometry import as_mask, as_set, box_mask, fit, fitted_px, scaled_spacing_mm


@pytest.mark.parametrize("shape", [(8, 8), (9, 4), (4, 9), (1, 100), (100, 1), (64, 63), (3, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_aspect_is_kept_and_the_rest_is_black(shape, dtype):
    white = np.full(shape, np.iinfo(dtype).max, dtype)
    square = fit(white, 16)
    assert square.shape == (16, 16) and square.dtype == dtype
    height, width = fitted_px(*shape, 16)
    assert max(height, width) == 16
    assert abs(height / width - shape[0] / shape[1]) <= max(shape) / 16 or 1 in (height, width)
    assert (square == np.iinfo(dtype).max).sum() == height * width


def test_halving_is_the_mean_of_four_pixels():
    image = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    means = image.reshape(32, 2, 32, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(fit(image, 32), means, atol=0.51)


def test_an_image_of_the_right_size_is_not_touched():
    image = np.random.default_rng(0).integers(0, 65536, (16, 16), np.uint16)
    np.testing.assert_array_equal(as_set(image, 16, 1, 16), image)


def test_colour_becomes_luminance_or_grey_becomes_three_channels():
    colour = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    grey = as_set(colour, 8, 1, 8)
    np.testing.assert_allclose(grey, colour @ [0.299, 0.587, 0.114], atol=0.51)
    assert as_set(grey, 8, 3, 8).shape == (8, 8, 3)


def test_bits_change_without_losing_levels():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    deep = as_set(ramp, 16, 1, 16)
    assert deep.dtype == np.uint16 and deep.max() == 65535
    np.testing.assert_array_equal(as_set(deep, 16, 1, 8), ramp)


def test_masks_follow_their_image_and_keep_two_values():
    image = np.zeros((60, 40), np.uint8)
    image[10:50, 10:30] = 255
    mask = as_mask((image > 0).astype(np.uint8), image.shape, 30)
    assert set(np.unique(mask)) == {0, 255}
    assert (cv2.absdiff(mask, fit(image, 30)) > 128).mean() < 0.03


def test_a_mask_of_another_size_or_of_grey_levels_is_refused():
    with pytest.raises(DataError, match="4x4, the image 8x8 px"):
        as_mask(np.zeros((4, 4), np.uint8), (8, 8), 8)
    with pytest.raises(DataError, match="more than two values"):
        as_mask(np.arange(64, dtype=np.uint8).reshape(8, 8), (8, 8), 8)
    assert as_mask(np.zeros((8, 8), np.uint8), (8, 8), 8).max() == 0


def test_spacing_grows_as_pixels_do():
    assert scaled_spacing_mm((0.5, 0.25), (100, 50), 50) == (1.0, 0.5)
    assert scaled_spacing_mm(None, (100, 50), 50) is None


def test_a_box_is_filled_in_and_follows_its_image() -> None:
    mask = box_mask((10.0, 4.0, 20.0, 16.0), (40, 40), 20)
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 7, 5, 9)
    assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 255}
    over_the_edge = box_mask((-3.0, 30.0, 5.0, 99.0), (40, 40), 40)
    assert int((over_the_edge > 0).sum()) == 5 * 10


def test_a_box_outside_its_image_is_refused() -> None:
    with pytest.raises(DataError, match="no pixel of the image"):
        box_mask((50.0, 50.0, 60.0, 60.0), (40, 40), 20)
