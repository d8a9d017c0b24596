"""Images in and out: DICOM, PNG, JPEG, TIFF, NPY as bytes in, arrays out; PNG out.

Everything that a file can do wrong is one DataError with a code and a reason, which never quotes
the file. Codes: MR-D101 unknown format, 102 damaged, 103 too large, 104 no pixels, 105 kind of
pixels not supported, 106 transparent, 107 array that is no image, 108 memory, 109 time, 110 crash,
113 inflates too far, 114 not finite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

from medray.errors import DataError
from medray.images.files import (
    decode_npy_file,
    decode_pillow_file,
    decode_png_file,
    npy_header,
    pillow_bits,
    png_bits,
)
from medray.images.pixels import MAX_PIXELS, Array, Decoded, Window, to_bits, windowed
from medray.images.png import SIGNATURE, decode_png, encode_png

__all__ = [
    "MAX_PIXELS",
    "Array",
    "Decoded",
    "Window",
    "bits_of",
    "decode",
    "decode_png",
    "encode_png",
    "format_of",
    "to_bits",
    "windowed",
]

T = TypeVar("T")
_ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")
# The length of its header, 348 or 540 bytes, in either order of bytes; or a gzip's first two.
_NIFTI_HEADS = frozenset(size.to_bytes(4, order) for size in (348, 540) for order in _ORDERS)
EXTENSIONS = frozenset((".dcm", ".dicom", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy"))


def format_of(head: bytes) -> str | None:
    """ "dicom", "png", "jpeg", "tiff", "npy" or "nifti" by a file's first 132 bytes, else None.

    Anything gzipped is taken for NIfTI, which decoding will refuse where it is not.
    """
    if head[:8] == SIGNATURE:
        return "png"
    if head[128:132] == b"DICM":
        return "dicom"
    if head[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if head[:4] in (b"II*\0", b"MM\0*"):
        return "tiff"
    if head[:4] in _NIFTI_HEADS or head[:2] == b"\x1f\x8b":
        return "nifti"
    return "npy" if head[:6] == b"\x93NUMPY" else None


def decode(data: bytes, *, name: str = "", window: Window = "auto") -> Decoded:
    """The image in a file's bytes, in this process; `name` says in an error where it came from.

    Raises DataError alone. For files that nobody vouches for use `child.decode_limited`.
    """
    return _named(name, lambda: _decode(data, window))


def bits_of(data: bytes, *, name: str = "") -> int:
    """8 or 16: the depth that `decode` would give; a PNG's first 33 bytes are enough."""
    return _named(name, lambda: _bits_of(data))


def _decode(data: bytes, window: Window) -> Decoded:
    kind = format_of(data)
    if kind == "png":
        return decode_png_file(data, window)
    if kind == "dicom":
        from medray.images.dicom import decode_dicom

        return decode_dicom(data, window)
    if kind in ("jpeg", "tiff"):
        return decode_pillow_file(data, kind.upper(), window)
    if kind == "npy":
        return decode_npy_file(data, window)
    if kind == "nifti":
        raise DataError(
            "a volume is not one image", code="MR-D105", hint="medray pack --clips takes NIfTI"
        )
    raise unknown_format(data)


def _bits_of(data: bytes) -> int:
    kind = format_of(data)
    if kind == "png":
        return png_bits(data)
    if kind == "dicom":
        from medray.images.dicom import dicom_header

        return dicom_header(data).bits
    if kind in ("jpeg", "tiff"):
        return pillow_bits(data, kind.upper())
    if kind == "npy":
        dtype = npy_header(data)[2]
        return 8 if dtype.itemsize == 1 and dtype.kind in "bu" else 16
    if kind == "nifti":
        from medray.images.nifti import nifti_bits

        return nifti_bits(data)
    raise unknown_format(data)


def unknown_format(data: bytes) -> DataError:
    """The error for bytes that are none of the formats that are read."""
    return DataError(
        "the file is empty" if not data else "not DICOM, PNG, JPEG, TIFF or NPY",
        code="MR-D101",
        hint="a DICOM file needs its preamble (DICM at byte 128)",
    )


def _named(name: str, work: Callable[[], T]) -> T:
    """Runs `work`; whatever the format's library raises is a DataError that says `name`."""
    try:
        return work()
    except DataError as error:
        error.where = error.where or name
        raise
    except MemoryError:
        raise DataError(
            "decoding takes more memory than allowed", code="MR-D108", where=name
        ) from None
    except Exception as error:
        # Pillow and OpenCV raise many kinds; their texts may quote the file.
        kind = type(error).__name__
        raise DataError(
            f"the file cannot be decoded ({kind})", code="MR-D102", where=name, hint="get it again"
        ) from None
