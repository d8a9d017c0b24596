"""A sample's members as bytes, both ways: `.json`, `.mask.png`, and `.png`, `.npy` or `.npy.zst`.

A clip's mask is `.mask.npy` or `.mask.npy.zst`. Only these are ever decoded; arrays of objects are
refused. Letters: H and W pixels, C channels.
"""

from __future__ import annotations

import io
import json
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from medray.errors import DataError
from medray.records import Sample

IMAGE_MEMBER = {"png": "png", "raw": "npy", "zstd": "npy.zst"}
PICTURES = ("png", "jpg", "jpeg")
IMAGES = (*IMAGE_MEMBER.values(), "jpg", "jpeg")
MASK, RECORD = "mask.png", "json"
CLIP_MASKS = ("mask.npy", "mask.npy.zst")
ZSTD_LEVEL = 3
MAX_ARRAY_BYTES = 1 << 30

# A decompressor is not to be used by two threads at once, and costs as much to make as to use.
_of_thread = threading.local()

Array = npt.NDArray[Any]
Buffer = bytes | bytearray | memoryview


def encode(sample: Sample, encoding: str | None) -> list[tuple[str, bytes]]:
    """The members (extension, bytes) of a sample, sorted by extension; None: without the image."""
    members = [(RECORD, _json(sample.record()))]
    if encoding is not None:
        members.append((IMAGE_MEMBER[encoding], encode_image(sample.image, encoding)))
    if sample.mask is not None and sample.frames is None:
        members.append((MASK, encode_png(sample.mask)))
    elif sample.mask is not None:
        assert encoding is not None, "the mask of a clip is encoded as its frames are"
        member = f"mask.{IMAGE_MEMBER[encoding]}"
        members.append((member, encode_image(sample.mask, encoding)))
    return sorted(members)


_encoded = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
).encode


def _json(record: dict[str, Any]) -> bytes:
    return _encoded(record).encode()


def encode_image(image: Array, encoding: str) -> bytes:
    """The bytes of an image's member."""
    if encoding == "png":
        return encode_png(image)
    data = npy_header(image.shape, image.dtype) + np.ascontiguousarray(image).tobytes()
    return data if encoding == "raw" else _zstd(data)


def npy_header(shape: tuple[int, ...], dtype: npt.DTypeLike) -> bytes:
    """The bytes before the values of a `.npy` of this shape and type, C order."""
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(
        file, {"shape": shape, "fortran_order": False, "descr": descr}
    )
    return file.getvalue()


def decode_image(extension: str, data: Buffer, where: str) -> Array:
    """The array in an image member: (H, W), (H, W, 3) or, in a `.npy`, any shape.

    DataError naming `where` if it cannot be read.
    """
    if extension in PICTURES:
        return decode_picture(extension, data, where)
    if extension == "npy.zst":
        data = unzstd(data, MAX_ARRAY_BYTES, where)
    return decode_npy(data, where)


def decode_record(data: Buffer, where: str) -> dict[str, Any]:
    """The object in a `.json` member."""
    try:
        record = json.loads(bytes(data))
    except ValueError as error:
        raise DataError(
            f"the .json cannot be read: {error}", code="MR-D029", where=where
        ) from error
    if not isinstance(record, dict):
        raise DataError("the .json holds no object", code="MR-D029", where=where)
    return record


def decode_npy(data: Buffer, where: str) -> Array:
    """The array of a `.npy`, objects refused."""
    try:
        array: Array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, MemoryError) as error:
        raise DataError(f"the .npy cannot be read: {error}", code="MR-D029", where=where) from error
    return array


def _zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=False).compress(data)


def unzstd(data: Buffer, limit_bytes: int, where: str) -> bytes:
    """One zstd frame unpacked; refused before it is, where it would pass `limit_bytes`."""
    import zstandard

    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= limit_bytes:
            raise DataError(
                f"the zstd frame says {size} bytes, allowed are {limit_bytes}",
                code="MR-D029",
                where=where,
            )
        return zstandard.ZstdDecompressor().decompress(data)
    except zstandard.ZstdError as error:
        raise DataError(
            f"the zstd frame is damaged: {error}", code="MR-D029", where=where
        ) from error


def unzstd_exactly(data: Buffer, size: int) -> bytes | None:
    """One zstd frame that holds exactly `size` bytes; None for any other, and for a damaged one."""
    import zstandard

    if not hasattr(_of_thread, "decompressor"):
        _of_thread.decompressor = zstandard.ZstdDecompressor()
    try:
        if zstandard.frame_content_size(data) != size:
            return None
        unpacked: bytes = _of_thread.decompressor.decompress(data)
        return unpacked
    except zstandard.ZstdError:
        return None


def encode_png(image: Array) -> bytes:
    """PNG of a (H, W) or (H, W, 3) image of 8 or 16 bits."""
    from medray.images import encode_png as encode_picture

    return encode_picture(image)


def decode_picture(extension: str, data: Buffer, where: str) -> Array:
    """A PNG or JPEG as (H, W) or (H, W, 3) RGB; DataError naming `where`."""
    from medray.images import decode_png

    try:
        return decode_png(bytes(data)) if extension == "png" else _decode_jpeg(data)
    except DataError as error:
        error.where = where
        raise


def _decode_jpeg(data: Buffer) -> Array:
    import cv2

    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or bytes(data[:2]) != b"\xff\xd8":
        raise DataError("not a JPEG that can be decoded", code="MR-D029")
    return np.ascontiguousarray(image[..., ::-1]) if image.ndim == 3 else image
