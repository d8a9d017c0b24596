"""PNG, JPEG, TIFF and NPY files from outside: each checked by its header before it is decoded."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from isal import isal_zlib

from medray.errors import DataError
from medray.images.pixels import Decoded, Window, check_size, from_values
from medray.images.png import SIGNATURE, decode_any_png

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage
    from PIL.ImageFile import ImageFile

# Text, profiles and animation are where the bombs are; none of it changes a pixel.
_PNG_KEPT = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
_NPY_HEADER_BYTES = 10_000
PILLOW_8_BIT = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"))
_PILLOW_DEEP = frozenset(("I;16", "I;16B", "I;16L", "I", "F"))


def damaged(kind: str, what: str) -> DataError:
    """The one error for a file that its own format does not allow."""
    return DataError(
        f"damaged {kind}: {what}", code="MR-D102", hint="get the file again, or leave it out"
    )


def png_bits(head: bytes) -> int:
    """8 or 16, from the first 33 bytes of a PNG; its size is checked too."""
    if len(head) < 33 or head[12:16] != b"IHDR":
        raise damaged("PNG", "no header")
    width, height, bits, _, _, _, _ = struct.unpack(">IIBBBBB", head[16:29])
    check_size(width, height)
    return 16 if bits == 16 else 8


def decode_png_file(data: bytes, window: Window = "auto") -> Decoded:
    """A PNG from outside: size, chunk checksums and completeness before pixels."""
    png_bits(data)
    return from_values(decode_any_png(_plain_png(data)), window)


def _plain_png(data: bytes) -> bytes:
    """The PNG with only the chunks that make pixels; DataError where one is cut or changed."""
    kept, start, others = [], 8, False
    while True:
        if start + 12 > len(data):
            raise damaged("PNG", f"it ends at byte {len(data)}, before its last chunk")
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if end > len(data):
            raise damaged("PNG", f"the chunk at byte {start} ends past the file")
        if isal_zlib.crc32(memoryview(data)[start + 4 : end - 4]) != _uint32(data, end - 4):
            raise damaged("PNG", f"the chunk at byte {start} fails its checksum")
        if kind in _PNG_KEPT:
            kept.append((start, end))
        others = others or kind not in _PNG_KEPT
        start = end
        if kind == b"IEND":
            break
    if not others:
        return data
    return SIGNATURE + b"".join(data[first:last] for first, last in kept)


def _uint32(data: bytes, start: int) -> int:
    return int.from_bytes(data[start : start + 4], "big")


def pillow_bits(data: bytes, kind: str) -> int:
    """8 or 16, from the header of a JPEG or TIFF."""
    with _pillow_opened(data, kind) as picture:
        return 8 if picture.mode in PILLOW_8_BIT else 16


def decode_pillow_file(data: bytes, kind: str, window: Window = "auto") -> Decoded:
    """A JPEG or TIFF (`kind`) from outside, its first frame; truncated ones are refused."""
    with _pillow_opened(data, kind) as picture:
        mode = picture.mode
        if mode not in PILLOW_8_BIT | _PILLOW_DEEP:
            raise DataError(f"{kind} with pixels of kind {mode} is not supported", code="MR-D105")
        opaque = _opaque(picture)
        values = np.asarray(opaque)
    if mode == "I" and values.min() >= 0 and values.max() <= 65535:
        values = values.astype(np.uint16)
    return from_values(values, window)


def _opaque(picture: ImageFile) -> PillowImage:
    """The picture as grey, RGB or a deep grey mode; transparent ones are refused."""
    picture.load()
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        if picture.convert("RGBA").getchannel("A").getextrema()[0] != 255:
            raise DataError(
                "the image has transparent pixels; an opaque one is wanted", code="MR-D106"
            )
        return picture.convert("L" if picture.mode == "LA" else "RGB")
    return picture.convert("RGB") if picture.mode in ("P", "RGBX", "CMYK", "YCbCr") else picture


def _pillow_opened(data: bytes, kind: str) -> ImageFile:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of sizes; check_size decides on them
        try:
            picture = Image.open(io.BytesIO(data), formats=(kind,))
        except Image.DecompressionBombError:
            raise DataError(f"{kind} of more pixels than are decoded", code="MR-D103") from None
    check_size(*picture.size)
    return picture


def npy_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[np.generic], int]:
    """Shape, Fortran order, type and the first pixel's byte of an NPY file; objects are refused."""
    file = io.BytesIO(data[: _NPY_HEADER_BYTES + 20])
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else _read_header_2
        shape, fortran, dtype = read(file, max_header_size=_NPY_HEADER_BYTES)
    except ValueError:
        raise damaged("NPY", "its header cannot be read") from None
    if dtype.hasobject or dtype.names is not None or dtype.kind not in "buif":
        raise DataError("NPY does not hold plain numbers; objects are never loaded", code="MR-D107")
    if len(shape) not in (2, 3):
        raise DataError(f"NPY has shape {shape}; (H, W) or (H, W, 3) is wanted", code="MR-D107")
    check_size(shape[1], shape[0])
    return shape, fortran, dtype, file.tell()


_read_header_2: Callable[..., tuple[tuple[int, ...], bool, np.dtype[np.generic]]] = (
    np.lib.format.read_array_header_2_0
)


def decode_npy_file(data: bytes, window: Window = "auto") -> Decoded:
    """An NPY file of numbers; its length is checked against its header before anything is made."""
    shape, fortran, dtype, start = npy_header(data)
    count = int(np.prod(shape))
    if len(data) - start < count * dtype.itemsize:
        raise damaged(
            "NPY", f"{len(data) - start} bytes of pixels, {count * dtype.itemsize} are needed"
        )
    flat = np.frombuffer(data, dtype, count, start)
    return from_values(flat.reshape(shape, order="F" if fortran else "C"), window)
