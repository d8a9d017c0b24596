"""PNG both ways: what is written is what Pillow and OpenCV read, and the bytes never vary."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from medray.errors import DataError
from medray.images import png
from medray.images.png import decode_png, encode_png
from medray.phantoms import chest

SHAPES = [(1, 1), (1, 7), (7, 1), (2, 3), (31, 33), (64, 64), (257, 255)]


def picture(shape, dtype, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    full = shape if channels == 1 else (*shape, channels)
    return rng.integers(0, np.iinfo(dtype).max, full, dtype, endpoint=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_the_same_in_medray_opencv_and_pillow(shape, dtype, channels):
    image = picture(shape, dtype, channels)
    data = encode_png(image)
    back = decode_png(data)
    assert back.dtype == dtype
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(back, image)
    by_opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(by_opencv[..., ::-1] if channels == 3 else by_opencv, image)
    by_pillow = np.asarray(Image.open(io.BytesIO(data)))
    # Pillow has no 16-bit RGB and keeps the high bytes.
    deep_colour = dtype == np.uint16 and channels == 3
    np.testing.assert_array_equal(by_pillow, image >> 8 if deep_colour else image)


def test_the_same_pixels_give_the_same_bytes_whatever_their_memory_layout():
    image = picture((40, 50), np.uint16)
    assert encode_png(image) == encode_png(np.asfortranarray(image))
    assert encode_png(image) == encode_png(np.repeat(image, 2, axis=1)[:, ::2])


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_png_files_of_pillow_are_read_pixel_for_pixel(mode):
    dtype = np.uint16 if mode == "I;16" else np.uint8
    image = picture((37, 41), dtype, 3 if mode == "RGB" else 1)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    np.testing.assert_array_equal(decode_png(buffer.getvalue()), image)


def test_text_survives_and_pillow_reads_it():
    data = encode_png(picture((8, 8), np.uint8), {"SyntheticData": "YES", "address": "mr1:é:7"})
    opened = Image.open(io.BytesIO(data))
    opened.load()
    assert opened.text == {"SyntheticData": "YES", "address": "mr1:é:7"}
    np.testing.assert_array_equal(decode_png(data), picture((8, 8), np.uint8))


@pytest.mark.parametrize("key", ["", "a" * 80, "nul\0", "☃"])
def test_a_text_key_that_png_does_not_allow_is_refused(key):
    with pytest.raises(ValueError, match="text key"):
        encode_png(picture((2, 2), np.uint8), {key: "x"})


@pytest.mark.parametrize(
    "bad", [np.zeros((2, 2)), np.zeros((0, 3), np.uint8), np.zeros(4, np.uint8)]
)
def test_an_array_that_is_no_image_is_refused(bad):
    with pytest.raises(ValueError, match="PNG holds|must have shape"):
        encode_png(bad)


@pytest.mark.parametrize("data", [b"", b"\x89PNG", b"GIF89a" + bytes(80), bytes(100)])
def test_what_is_no_png_is_one_data_error(data):
    with pytest.raises(DataError, match="not a PNG"):
        decode_png(data)


def test_transparency_is_refused_and_an_opaque_alpha_is_dropped():
    grey = picture((9, 9), np.uint8, 3)
    opaque = np.dstack([grey, np.full((9, 9), 255, np.uint8)])
    buffer = io.BytesIO()
    Image.fromarray(opaque).save(buffer, "PNG")
    np.testing.assert_array_equal(decode_png(buffer.getvalue()), grey)
    opaque[0, 0, 3] = 7
    Image.fromarray(opaque).save(buffer := io.BytesIO(), "PNG")
    with pytest.raises(DataError, match="transparent"):
        decode_png(buffer.getvalue())


def test_a_film_with_grain_is_at_most_a_fifth_larger_than_pillows():
    ramp = np.add.outer(np.arange(128), np.arange(128)) / 2
    film = (ramp + np.random.default_rng(0).normal(0, 2, (128, 128))).clip(0, 255).astype(np.uint8)
    Image.fromarray(film).save(buffer := io.BytesIO(), "PNG")
    assert len(encode_png(film)) < 1.2 * len(buffer.getvalue())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_filter_of_each_row_is_undone_by_medray_opencv_and_pillow(shape, dtype, channels):
    smooth = np.add.outer(*(np.arange(n) * (7 if n < 50 else 2) for n in shape))
    image = (smooth + picture(shape, np.uint8, seed=1) % 9).astype(dtype)
    image = image if channels == 1 else np.dstack([image, image[::-1], image // 2])
    data = encode_png(image, filter="smallest")
    np.testing.assert_array_equal(decode_png(data), image)
    by_opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(by_opencv[..., ::-1] if channels == 3 else by_opencv, image)
    by_pillow = np.asarray(Image.open(io.BytesIO(data)))
    deep_colour = dtype == np.uint16 and channels == 3
    np.testing.assert_array_equal(by_pillow, image >> 8 if deep_colour else image)


def test_the_smallest_filter_is_within_eight_percent_of_pillows_bytes_on_films():
    films = [chest(0, index, 256).image for index in range(4)] + [smooth_noise(n) for n in range(3)]
    for film in films:
        Image.fromarray(film).save(buffer := io.BytesIO(), "PNG")
        size, pillows = len(encode_png(film, filter="smallest")), len(buffer.getvalue())
        assert size <= 1.08 * pillows
        assert size <= len(encode_png(film))


def smooth_noise(seed, px=256):
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.standard_normal((16, 16)), (px, px), interpolation=cv2.INTER_CUBIC) * 40
    fine = cv2.resize(rng.standard_normal((64, 64)), (px, px)) * 10
    grain = rng.standard_normal((px, px)) * 2
    return np.clip(coarse + fine + grain + 128, 0, 255).astype(np.uint8)


def test_the_filter_of_a_row_is_the_one_that_leaves_the_smallest_residues():
    """What grain leaves least of is the mean of two neighbours; of a ramp downwards, Sub."""
    grain = np.random.default_rng(0).integers(0, 30, (64, 64)).astype(np.uint8)
    assert (png._smallest_filtered(grain)[1:, 0] == png.AVERAGE).mean() > 0.8
    down = np.repeat(np.arange(64, dtype=np.uint8)[:, None] * 3, 64, axis=1)
    assert (png._smallest_filtered(down)[1:, 0] != png.UP).all()
    assert (png._smallest_filtered(np.ascontiguousarray(down.T))[1:, 0] == png.UP).all()
