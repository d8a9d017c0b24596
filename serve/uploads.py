"""Uploads to arrays: what a file is says its content, and only limited children ever decode one.

A pool of children stands ready; each has a limit on memory and processor time, and one that a file
kills is replaced before the next file. Counts and sizes are checked before anything is decoded, as
far as a header says them. Every refusal is a 4xx problem: what is wrong, given, allowed.

Letters: T frames, H and W pixels.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import struct
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from medray.errors import DataError
from medray.images import encode_png, format_of
from medray.images.child import LimitedDecoder
from medray.images.volumes import assemble, grey_levels_of
from serve.compute.fit import colour
from serve.problems import Problem, busy
from serve.records import Array

KINDS = ("png", "jpeg", "npy", "nifti", "dicom")
TAKEN = "PNG, JPEG, NPY, NIfTI or DICOM"
MOST_FRAMES = 512
# What may wait for a child; who comes later is told to come again.
MOST_WAITING = 256
# One more than there are cores: a file that keeps a child busy is not what others wait for.
CHILDREN = 1 + max(2, min(4, os.cpu_count() or 1))
_KILLED = ("MR-D108", "MR-D109", "MR-D110")
_STATUS = {
    "MR-D101": 415,
    "MR-D103": 413,
    "MR-D105": 415,
    "MR-D108": 413,
    "MR-D113": 413,
}
# SOF markers of a JPEG: of FFC0 to FFCF all but tables, conditioning and a reserved one.
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_MOST_SEGMENTS = 10_000
_LEAST_STACK_PX = 8


@dataclass(frozen=True)
class Caps:
    """What an upload may be: pixels of all its frames and files, files, frames of a file."""

    pixels: int = 64_000_000
    files: int = 64
    frames: int = MOST_FRAMES


@dataclass(frozen=True)
class Upload:
    """One image that came in: of which file and frame, its kind, its pixels, how large it was.

    `image` is as `finish` left it; `height`, `width` and `colour` are those of the file.
    """

    file: int
    frame: int
    kind: str
    image: Array
    height: int
    width: int
    colour: float = 0.0


Finish = Callable[[Array], Array]


class Uploads:
    """Children that decode, and the threads that wait for them. Safe for one event loop or more."""

    def __init__(self, children: int = CHILDREN) -> None:
        self.children = children
        self._free: queue.SimpleQueue[LimitedDecoder] = queue.SimpleQueue()
        self._all = [LimitedDecoder() for _ in range(children)]
        for decoder in self._all:
            self._free.put(decoder)
        self._threads = ThreadPoolExecutor(children, "upload")
        self._starters = ThreadPoolExecutor(children, "upload-start")
        self._waiting, self._lock = 0, threading.Lock()

    def warm(self) -> None:
        """Starts every child in the background, so that the first upload need not wait."""
        for _ in self._all:
            with contextlib.suppress(queue.Empty):  # those at work are warm
                self._starters.submit(self._start, self._free.get_nowait())

    async def decode(
        self, files: Sequence[bytes], caps: Caps, finish: Finish = lambda image: image
    ) -> list[Upload]:
        """All images of the files, in order; Problem 4xx for the first file that has none.

        `finish` is what each image is turned into as soon as it is there: the pixels of a large
        upload are not kept.
        """
        if not files:
            raise refusal(400, "upload_empty", "no file", "0 files", f"1 to {caps.files}")
        if len(files) > caps.files:
            given = f"{len(files)} files"
            raise refusal(413, "too_many_files", "too many files", given, f"1 to {caps.files}")
        left, found = caps.pixels, list[Upload]()
        for number, data in enumerate(files):
            before_decoding(data, number, left, caps)
            images = await self._soon(_Work(data, number, left, caps, finish))
            left -= sum(image.height * image.width for image in images)
            found += images
        return found

    async def _soon(self, work: _Work) -> list[Upload]:
        with self._lock:
            if self._waiting >= MOST_WAITING:
                raise busy("uploads_full", f"{self._waiting} uploads wait to be decoded already")
            self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._with_decoder, work)
        finally:
            with self._lock:
                self._waiting -= 1

    def _with_decoder(self, work: Callable[[LimitedDecoder], list[Upload]]) -> list[Upload]:
        decoder = self._free.get()
        dead = False
        try:
            return work(decoder)
        except Problem as problem:
            dead = problem.code in _KILLED
            raise
        finally:
            if dead:
                # Others go on with the children that there are while this one's successor starts.
                self._starters.submit(self._start, decoder)
            else:
                self._free.put(decoder)

    def _start(self, decoder: LimitedDecoder) -> None:
        try:
            decoder.decode(encode_png(np.zeros((1, 1), np.uint8)))
        finally:
            self._free.put(decoder)

    def close(self) -> None:
        """Ends the children."""
        self._threads.shutdown(cancel_futures=True)
        self._starters.shutdown()
        for decoder in self._all:
            decoder.close()


@cache
def shared() -> Uploads:
    """The children of this process; they end with it."""
    import atexit

    pool = Uploads()
    atexit.register(pool.close)
    return pool


# --- before decoding ----------------------------------------------------------------------------


def refusal(status: int, code: str, what: str, given: str, allowed: str) -> Problem:
    """A problem in the one form: what, what was given, what is allowed."""
    return Problem(status, code, f"{what} (given: {given}; allowed: {allowed})")


def before_decoding(data: bytes, number: int, pixels_left: int, caps: Caps) -> str:
    """The kind of a file; Problem for one that is none of those taken, or whose header is enough
    to see that it is too large.
    """
    kind = kind_of(data)
    if kind not in KINDS:
        what = "the file is empty" if not data else f"not {TAKEN}"
        raise refusal(415 if data else 400, "file_kind", what, _given(data, number, kind), TAKEN)
    try:
        pixels = _pixels_of(data, kind)
    except DataError as error:
        raise of_data_error(error, data, number, kind, caps) from None
    if pixels > pixels_left:
        given = f"{_given(data, number, kind)}, {pixels:,} pixels"
        allowed = f"{caps.pixels:,} pixels in all, {pixels_left:,} are left"
        raise refusal(413, "too_many_pixels", "too many pixels", given, allowed)
    return kind


def kind_of(data: bytes) -> str:
    """What a file's first bytes say that it is; "unknown" for anything else."""
    return format_of(data[:132]) or "unknown"


def _pixels_of(data: bytes, kind: str) -> int:
    """Pixels by the header, 0 where it takes a parser to know; DataError for a broken header."""
    if kind == "png" and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return int(width) * int(height)
    if kind == "jpeg":
        height, width, components = _jpeg_header(data)
        if components == 4:
            raise DataError("a JPEG of four colours (CMYK); grey or RGB", code="MR-D105")
        return height * width
    # Headers that are a language of their own are for the children.
    return 0


def _jpeg_header(data: bytes) -> tuple[int, int, int]:
    """Height, width and components of a JPEG's first frame; zeros where there is no header."""
    at = 2
    for _ in range(_MOST_SEGMENTS):
        if at + 10 > len(data) or data[at] != 0xFF:
            break
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _FRAME_HEADERS:
            height, width, components = struct.unpack_from(">HHB", data, at + 5)
            return height, width, components
        at += 2 + length
    return 0, 0, 0


def _given(data: bytes, number: int, kind: str) -> str:
    return f"file {number}, {kind}, {len(data):,} bytes"


def of_data_error(error: DataError, data: bytes, number: int, kind: str, caps: Caps) -> Problem:
    """What a file is refused for, without anything of what it holds."""
    allowed = f"{TAKEN}; {caps.pixels:,} pixels in all, {caps.frames} frames a file"
    detail = f"{error.message} (given: {_given(data, number, kind)}; allowed: {allowed})"
    return Problem(_STATUS.get(error.code, 422), error.code, detail, error.hint or None)


# --- in a thread --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """One file, decoded by whatever child is free."""

    data: bytes
    number: int
    pixels_left: int
    caps: Caps
    finish: Finish

    def __call__(self, decoder: LimitedDecoder) -> list[Upload]:
        kind = kind_of(self.data)
        try:
            images = self._images(decoder, kind)
        except DataError as error:
            raise of_data_error(error, self.data, self.number, kind, self.caps) from None
        found = []
        for frame, image in enumerate(images):
            height, width = image.shape[:2]
            fitted = self.finish(image)
            found.append(Upload(self.number, frame, kind, fitted, height, width, colour(image)))
        return found

    def _images(self, decoder: LimitedDecoder, kind: str) -> Sequence[Array]:
        if kind == "nifti":
            return self._frames(decoder)
        try:
            decoded = decoder.decode(self.data)
        except DataError as error:
            if kind != "npy" or error.code != "MR-D107":
                raise
            # What is no picture may be a stack of them; one only pixels wide is neither.
            stack = self._frames(decoder)
            if stack[0].shape[1] < _LEAST_STACK_PX:
                raise
            return stack
        self._check(decoded.frames, decoded.image.shape[0] * decoded.image.shape[1], kind)
        if decoded.frames > 1:
            return self._frames(decoder)
        return [decoded.image]

    def _frames(self, decoder: LimitedDecoder) -> list[Array]:
        """Grey levels (H, W) of each frame, one window for all."""
        frames = next(iter(decoder.frames_many([("", self.data)])))
        if isinstance(frames, DataError):
            raise frames
        count, height, width = frames.values_THW.shape
        self._check(count, height * width, kind_of(self.data))
        if kind_of(self.data) != "nifti":
            # A file's own frames are pictures as they are: none is moved, turned or left out.
            frames = replace(frames, places_mm=None, directions=None)
        levels_THW, _ = grey_levels_of(assemble([frames]))
        return list(levels_THW)

    def _check(self, frames: int, pixels: int, kind: str) -> None:
        given = f"{_given(self.data, self.number, kind)}, {frames:,} frames of {pixels:,} pixels"
        if frames > self.caps.frames:
            allowed = f"{self.caps.frames} frames a file"
            raise refusal(413, "too_many_frames", "too many frames", given, allowed)
        if frames * pixels > self.pixels_left:
            allowed = f"{self.caps.pixels:,} pixels in all, {self.pixels_left:,} are left"
            raise refusal(413, "too_many_pixels", "too many pixels", given, allowed)
