"""A sample's checked bytes into one row of a batch, with no more copies or objects than it takes.

Shape letters: C channels, H and W pixels.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from medray.errors import DataError
from medray.shards import _members
from medray.shards.reader import ShardReader

Array = npt.NDArray[Any]


class Decoder:
    """Decodes samples whose images share channels, size and bits."""

    def __init__(self, channels: int, size_px: int, bits: int, where: str) -> None:
        if channels not in (1, 3) or bits not in (8, 16):
            what = f"a stream is of images with 1 or 3 channels of 8 or 16 bits, not {channels}"
            raise DataError(f"{what} channels of {bits} bits", code="MR-D031", where=where)
        self.shape_CHW = (channels, size_px, size_px)
        self.dtype = np.dtype(np.uint8 if bits == 8 else np.uint16)
        self._shape = (size_px, size_px, 3) if channels == 3 else (size_px, size_px)
        self._npy_header = _members.npy_header(self._shape, self.dtype)
        self._pixels = int(np.prod(self._shape))
        self._npy_bytes = len(self._npy_header) + self._pixels * self.dtype.itemsize

    def into(
        self, image_CHW: Array, reader: ShardReader, number: int, data: bytes
    ) -> tuple[bytes, Array | None]:
        """Fills `image_CHW` from a sample's bytes; returns its record as JSON and its mask (H, W).

        DataError naming the member for an image that cannot be read or has another shape or type.
        """
        row = reader.rows[number]
        start, record, mask, filled = row["offset"], b"", None, False
        for extension, offset, size, _ in row["members"]:
            at = offset - start
            if extension == _members.RECORD:
                record = data[at : at + size]
            elif extension == _members.MASK:
                where = reader.where(row, extension, offset, size)
                mask = self._mask(data[at : at + size], where)
            elif extension in _members.IMAGES and not filled:
                body = memoryview(data)[at : at + size]
                filled = self._fast(image_CHW, extension, body)
                if not filled:
                    where = reader.where(row, extension, offset, size)
                    self._place(image_CHW, self._decode(extension, body, where), where)
                    filled = True
        assert filled, f"the sample {row['key']} has no image"
        return record, mask

    def _fast(self, image_CHW: Array, extension: str, body: memoryview) -> bool:
        """Copies the values of a `.npy` with exactly the header expected; False for all else."""
        unpacked: bytes | memoryview | None
        if extension == "npy.zst":
            unpacked = _members.unzstd_exactly(body, self._npy_bytes)
        elif extension == "npy" and len(body) == self._npy_bytes:
            unpacked = body
        else:
            return False
        header = len(self._npy_header)
        if unpacked is None or unpacked[:header] != self._npy_header:
            return False
        values = np.frombuffer(unpacked, self.dtype, self._pixels, header).reshape(self._shape)
        _copy(image_CHW, values)
        return True

    def _decode(self, extension: str, body: memoryview, where: str) -> Array:
        if extension == "png" and len(body) > 24:
            # The size is refused from the header: what it says may not fit into memory.
            width, height = struct.unpack(">II", body[16:24])
            self._check((height, width, *self._shape[2:]), self.dtype, where)
        return _members.decode_image(extension, body, where)

    def _place(self, image_CHW: Array, image: Array, where: str) -> None:
        self._check(image.shape, image.dtype, where)
        _copy(image_CHW, image)

    def _check(self, shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> None:
        if shape != self._shape or dtype != self.dtype:
            what = f"the image is {_words(shape, dtype)}"
            wanted = f"the set's are {_words(self._shape, self.dtype)}"
            raise DataError(f"{what}, {wanted}", code="MR-D030", where=where)

    def _mask(self, data: bytes, where: str) -> Array:
        mask = _members.decode_picture("png", data, where)
        if mask.shape != self._shape[:2] or mask.dtype != np.uint8:
            what = f"the mask is {_words(mask.shape, mask.dtype)}, its image {self._shape[:2]}"
            raise DataError(what, code="MR-D030", where=where)
        return mask


def _copy(image_CHW: Array, image: Array) -> None:
    if image.ndim == 2:
        image_CHW[0] = image
    else:
        image_CHW[...] = image.transpose(2, 0, 1)


def _words(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    return f"{'x'.join(map(str, shape))} {dtype}"


class Records(Sequence[dict[str, Any]]):
    """The records of a batch, parsed when they are looked at."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[number] for number in range(len(self)))

    @overload
    def __getitem__(self, number: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, number: slice) -> Records: ...
    def __getitem__(self, number: int | slice) -> dict[str, Any] | Records:
        if isinstance(number, slice):
            return Records(self._texts[number])
        text = self._texts[number]
        return _members.decode_record(text, f"record {number}") if text else {}
