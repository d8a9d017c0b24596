"""Small files that ask for much: each is refused or decoded within the child's limits."""

import struct
import time
import zlib

import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, RLELossless

from medray.errors import DataError
from medray.images import encode_png
from medray.images.child import LimitedDecoder
from tests.made_dicom import deflated, dicom_bytes, dicom_dataset, saved

FILM = np.arange(256, dtype=np.uint8).reshape(16, 16)
PIXELS = b"\xe0\x7f\x10\x00OW"


def inserted(elements):
    """A film with raw bytes in front of its pixels."""
    data = dicom_bytes(FILM)
    at = data.index(PIXELS)
    return data[:at] + elements + data[at:]


def encapsulated(syntax, frame, **attributes):
    dataset = dicom_dataset(FILM, **attributes)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return saved(dataset)


def nested():
    item = b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    return inserted(item * 10_000)


def without_end():
    return inserted(b"\x09\x00\x01\x10UN\0\0\xff\xff\xff\xff")


def huge_canvas():
    dataset = dicom_dataset(np.tile(FILM, (4, 4)))
    dataset.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg")
    data = saved(dataset)
    at = data.index(b"\xff\x51") + 6  # SIZ: marker, length, capabilities, then the canvas
    size = struct.pack(">II", 60_000, 60_000)
    return data[:at] + size + data[at + 8 :]


def run_lengths():
    header = struct.pack("<16I", 1, 64, *[0] * 14)
    return encapsulated(RLELossless, header + b"\x81\x00" * 4_000_000)


def rows_of_another_kind():
    data = dicom_bytes(FILM)
    short = b"\x28\x00\x10\x00US\x02\x00\x10\x00"
    return data.replace(short, b"\x28\x00\x10\x00UL\x04\x00\xff\xff\xff\x7f", 1)


def inflating():
    return deflated(dicom_bytes(FILM) + bytes(257 << 20))


def png_just_under_the_cap():
    return encode_png(np.zeros((8192, 8192), np.uint8))


def chunk(kind, body):
    checksum = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def png_with(kind, before):
    """A small film with a chunk in front of its pixels that inflates to 300 MiB."""
    data = encode_png(FILM)
    inflates = zlib.compress(bytes(300 << 20), 9)
    return data[:33] + chunk(kind, before + inflates) + data[33:]


def png_just_over_the_cap():
    header = struct.pack(">IIBBBBB", 8193, 8192, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(8194 * 8192), 1)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


BOMBS = {
    "nested": (nested, None),
    "without_end": (without_end, None),
    "huge_canvas": (huge_canvas, False),
    "run_lengths": (run_lengths, None),
    "rows_of_another_kind": (rows_of_another_kind, False),
    "rows_65535": (lambda: dicom_bytes(FILM, Rows=65535, Columns=65535), False),
    "frames": (lambda: dicom_bytes(FILM, NumberOfFrames=10**9), False),
    "inflating": (inflating, False),
    "png_under": (png_just_under_the_cap, True),
    "png_over": (png_just_over_the_cap, False),
    "png_text": (lambda: png_with(b"zTXt", b"Comment\0\0"), True),
    "png_profile": (lambda: png_with(b"iCCP", b"ICC\0\0"), True),
}


@pytest.fixture(scope="module")
def decoder():
    with LimitedDecoder() as decoder:
        yield decoder


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_or_decoded_and_the_next_file_is_served(decoder, name):
    make, decodes = BOMBS[name]
    data = make()
    started_s = time.process_time()
    try:
        decoder.decode(data, name=name)
        decoded = True
    except DataError as error:
        assert error.code.startswith("MR-D1") and error.where == name
        decoded = False
    assert decodes in (None, decoded)
    assert time.process_time() - started_s < 5  # this process only waits
    np.testing.assert_array_equal(decoder.decode(dicom_bytes(FILM)).image, FILM)
