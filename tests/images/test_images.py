"""Files from outside, format by format: decoded right, or refused with one typed error."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from medray.errors import DataError
from medray.images import bits_of, decode, encode_png, format_of, to_bits

GREY = np.random.default_rng(0).integers(0, 256, (37, 53), np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (37, 53), np.uint16)
COLOUR = np.random.default_rng(2).integers(0, 256, (37, 53, 3), np.uint8)


def pillow(image, kind, **options):
    Image.fromarray(image).save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def npy(array, **options):
    np.save(buffer := io.BytesIO(), array, **options)
    return buffer.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("image", [GREY, DEEP, COLOUR], ids=["grey", "deep", "colour"])
@pytest.mark.parametrize("write", [lambda a: pillow(a, "PNG"), lambda a: pillow(a, "TIFF"), npy])
def test_lossless_formats_give_every_pixel_back(image, write):
    decoded = decode(write(image))
    assert decoded.image.dtype == image.dtype
    assert decoded.bits == bits_of(write(image)) == 8 * image.itemsize
    np.testing.assert_array_equal(decoded.image, image)


def test_a_jpeg_gives_what_pillow_gives():
    smooth = np.add.outer(np.arange(40), 2 * np.arange(60)).astype(np.uint8)
    data = pillow(smooth, "JPEG", quality=95)
    np.testing.assert_array_equal(decode(data).image, np.asarray(Image.open(io.BytesIO(data))))
    assert bits_of(data) == 8


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_a_file_cut_anywhere_is_refused(kind):
    data = pillow(GREY, kind)
    for length in (0, 1, 7, 20, 40, len(data) // 2, len(data) - 13):
        with pytest.raises(DataError) as caught:
            decode(data[:length], name="x.bin")
        assert caught.value.where == "x.bin"
        assert caught.value.code in ("MR-D101", "MR-D102")


def test_a_flipped_bit_in_a_png_is_refused_by_its_checksum():
    data = bytearray(encode_png(GREY))
    data[len(data) // 2] ^= 4
    with pytest.raises(DataError, match="checksum"):
        decode(bytes(data))


@pytest.mark.parametrize(
    "width, height", [(100_000, 100_000), (8193, 8192), (2**31 - 1, 1), (0, 5)]
)
def test_a_png_header_of_too_many_pixels_is_refused_before_it_is_decoded(width, height):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000)))
    with pytest.raises(DataError, match=f"{width} x {height} px"):
        decode(bomb + chunk(b"IEND", b""))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_a_header_of_too_many_pixels_is_refused_in_jpeg_and_tiff_too(kind):
    data = bytearray(pillow(GREY, kind))
    if kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    else:
        for tag in (256, 257):
            data[data.index(struct.pack("<H", tag) + b"\4\0\1\0\0\0") + 8 :][:4] = b""
            at = data.index(struct.pack("<H", tag) + b"\4\0\1\0\0\0") + 8
            data[at : at + 4] = struct.pack("<I", 60_000)
    with warnings.catch_warnings(), pytest.raises(DataError) as caught:
        warnings.simplefilter("error")
        decode(bytes(data))
    assert caught.value.code == "MR-D103"


def test_text_and_profiles_in_a_png_are_not_even_inflated():
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000), 9))
    data = encode_png(GREY)
    np.testing.assert_array_equal(decode(data[:33] + bomb + data[33:]).image, GREY)


def test_objects_in_an_npy_are_never_loaded(tmp_path):
    class Canary:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    data = npy(np.array([[Canary()]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="never loaded"):
        decode(data)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("array", [np.zeros(4), np.zeros((2, 2, 2)), np.zeros((2, 2), complex)])
def test_an_npy_that_is_no_image_is_refused(array):
    with pytest.raises(DataError) as caught:
        decode(npy(array))
    assert caught.value.code == "MR-D107"


def test_an_npy_shorter_than_its_header_says_is_refused():
    with pytest.raises(DataError, match="are needed"):
        decode(npy(GREY)[:-1])


def test_floats_are_spread_over_16_bits_and_their_window_is_kept():
    decoded = decode(npy(np.linspace(-1, 3, 12).reshape(3, 4)))
    assert decoded.image.dtype == np.uint16
    assert (decoded.image.min(), decoded.image.max()) == (0, 65535)
    assert decoded.window == (1.0, 4.0)
    assert decode(npy(np.eye(3) > 0)).image.max() == 255


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused(bad):
    values = np.zeros((4, 4))
    values[1, 2] = bad
    with pytest.raises(DataError, match="not finite"):
        decode(npy(values))


def test_a_given_window_puts_its_ends_at_black_and_white():
    values = np.arange(0, 1000, 100, np.uint16).reshape(2, 5)
    image = decode(npy(values), window=(500, 400)).image.reshape(-1)
    expected = np.clip((np.arange(0, 1000, 100) - 300) / 400, 0, 1) * 65535
    np.testing.assert_allclose(image, expected, atol=0.51)


def test_8_bits_survive_a_trip_through_16():
    levels = np.arange(256, dtype=np.uint8)[None]
    np.testing.assert_array_equal(to_bits(to_bits(levels, 16), 8), levels)
    assert to_bits(np.array([[65535]], np.uint16), 8)[0, 0] == 255


@pytest.mark.parametrize("head", [b"", b"GIF89a", b"\x00" * 200, b"%PDF"])
def test_what_is_none_of_the_formats_is_named_so(head):
    assert format_of(head) is None
    with pytest.raises(DataError) as caught:
        decode(head)
    assert caught.value.code == "MR-D101"


@pytest.mark.parametrize(
    ("low", "step"),
    [(0, 1e-320), (0, 1e-36), (0, 1e-3), (0, 1e30), (-1e35, 1e30), (1e300, 1e298), (-1e308, 4e307)],
)
def test_values_of_any_size_make_the_same_picture(low, step):
    values = low + step * np.arange(5).reshape(1, 5)
    away = decode(npy(values)).image.astype(int) - [0, 16384, 32768, 49151, 65535]
    assert np.abs(away).max() <= 1


def test_a_flat_picture_of_huge_values_is_black():
    assert not decode(npy(np.full((3, 3), 1e300))).image.any()
