"""Decoding in a child process with a limit on memory and time: only arrays cross.

A parser that is led astray takes its child with it, not the job: the next file gets a new child.
A message is `<IQ` (bytes of JSON, bytes of payload), JSON, payload: a question has the files of a
batch behind it, an answer one image.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import io
import json
import math
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from medray.errors import DataError
from medray.images import Decoded, Window, decode, format_of
from medray.images.dicom import Header, dicom_header
from medray.images.frames import Frames, decode_frames

MEMORY_BYTES = 700 << 20
CPU_S = 5
CLIP_MEMORY_BYTES, CLIP_CPU_S = 3 << 30, 60
# A child that neither computes nor answers: stopped by a debugger, or a machine about to fall over.
WALL_S = 60.0
_FRAME = struct.Struct("<IQ")
_PIPE_BYTES = 1 << 20
BATCH_FILES = 64
BATCH_BYTES = 1 << 20

T = TypeVar("T")
_Answer = tuple[dict[str, Any], bytes]


class LimitedDecoder:
    """Decodes files in one child, which lives for many files and is replaced when it dies.

    A file may take `memory_bytes` beyond what the child has with its libraries loaded, and `cpu_s`.
    """

    def __init__(self, *, memory_bytes: int = MEMORY_BYTES, cpu_s: int = CPU_S) -> None:
        self._limits = (str(memory_bytes), str(cpu_s))
        self._child: subprocess.Popen[bytes] | None = None
        self.started = 0

    def decode(self, data: bytes, *, name: str = "", window: Window = "auto") -> Decoded:
        """What `images.decode` gives; DataError for a file that cannot be, or that kills."""
        return _or_raise(next(self.decode_many([(name, data)], window=window)))

    def header(self, data: bytes, *, name: str = "") -> Header:
        """What `dicom.dicom_header` gives; the same errors."""
        return _or_raise(next(self.headers([(name, data)])))

    def decode_many(
        self, files: Sequence[tuple[str, bytes]], *, window: Window = "auto"
    ) -> Iterator[Decoded | DataError]:
        """One result or error per (name, bytes), in order; a switch of processes per batch."""
        for answer in self._ask({"do": "decode", "window": window}, files):
            yield answer if isinstance(answer, DataError) else _decoded(*answer)

    def headers(self, files: Sequence[tuple[str, bytes]]) -> Iterator[Header | DataError]:
        """One header or error per (name, bytes) of DICOM files, in order."""
        for answer in self._ask({"do": "header"}, files):
            yield answer if isinstance(answer, DataError) else Header(**answer[0])

    def frames_many(self, files: Sequence[tuple[str, bytes]]) -> Iterator[Frames | DataError]:
        """What `frames.decode_frames` gives, or an error, per (name, bytes), in order."""
        for answer in self._ask({"do": "frames"}, files):
            yield answer if isinstance(answer, DataError) else _framed_values(*answer)

    def close(self) -> None:
        """Ends the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            self._answers.close()
            assert child.stdin is not None
            child.stdin.close()

    def __enter__(self) -> LimitedDecoder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ask(
        self, question: dict[str, Any], files: Sequence[tuple[str, bytes]]
    ) -> Iterator[_Answer | DataError]:
        done, at_a_time = 0, BATCH_FILES
        while done < len(files):
            batch = files[done : _batch_end(files, done, at_a_time)]
            answered = 0
            for answer in self._ask_batch(question, batch):
                answered += 1
                yield answer
            done += answered
            # A batch that was cut short goes on file by file, to see which one kills.
            at_a_time = BATCH_FILES if answered == len(batch) else 1

    def _ask_batch(
        self, question: dict[str, Any], files: Sequence[tuple[str, bytes]]
    ) -> Iterator[_Answer | DataError]:
        """Answers as far as they came before the child died; the error, if one file was asked."""
        child = self._running()
        assert child.stdin is not None
        watch = threading.Timer(WALL_S + len(files), child.kill)
        watch.daemon = True
        watch.start()
        asked = len(files)
        try:
            _send_batch(child.stdin, question, [data for _, data in files])
            for name, _ in files:
                head, payload = _receive(self._answers)
                asked -= 1
                yield _refusal(head["error"], name) if "error" in head else (head, payload)
                if "error" in head and head["error"]["code"] == "MR-D108":
                    return  # what is left of the child's memory is anybody's guess
        except (OSError, EOFError):
            asked = 0
            died = self._died(child, files[0][0])
            if len(files) == 1:
                yield died
        finally:
            watch.cancel()
            if asked:  # answers that nobody will read
                self.close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._child = _start(self._limits)
            assert isinstance(self._child.stdout, io.FileIO)
            self._answers = io.BufferedReader(self._child.stdout, _PIPE_BYTES)
            self.started += 1
        return self._child

    def _died(self, child: subprocess.Popen[bytes], name: str) -> DataError:
        status = child.wait()
        self.close()
        if status in (-signal.SIGXCPU, -signal.SIGKILL):
            what, code = f"decoding takes more than {self._limits[1]} s", "MR-D109"
        else:
            what, code = f"decoding ended its process (status {status})", "MR-D110"
        return DataError(
            what, code=code, where=name, hint="leave the file out, or convert it first"
        )


def _batch_end(files: Sequence[tuple[str, bytes]], first: int, most: int) -> int:
    """As many files as keep a batch small, at least one: the child holds a whole batch."""
    size, last = 0, first
    while last < len(files) and last - first < most and size < BATCH_BYTES:
        size += len(files[last][1])
        last += 1
    return last


def _or_raise(answer: T | DataError) -> T:
    if isinstance(answer, DataError):
        raise answer
    return answer


def _refusal(error: dict[str, str], name: str) -> DataError:
    return DataError(error["message"], code=error["code"], hint=error["hint"], where=name)


def _decoded(head: dict[str, Any], pixels: bytes) -> Decoded:
    image = np.frombuffer(pixels, head.pop("dtype")).reshape(head.pop("shape"))
    for pair in ("spacing_mm", "window"):
        head[pair] = None if head[pair] is None else tuple(head[pair])
    return Decoded(image, **head)


def _framed_values(head: dict[str, Any], pixels: bytes) -> Frames:
    values = np.frombuffer(pixels, head.pop("dtype")).reshape(head.pop("shape"))
    for name in ("spacing_mm", "window", "places_mm"):
        head[name] = None if head[name] is None else tuple(head[name])
    if head["directions"] is not None:
        head["directions"] = tuple(tuple(direction) for direction in head["directions"])
    return Frames(values, **head)


_shared: LimitedDecoder | None = None
_shared_for_clips: LimitedDecoder | None = None


def shared() -> LimitedDecoder:
    """This process's decoder, with its child started at first use and ended with the process."""
    global _shared
    if _shared is None:
        _shared = LimitedDecoder()
        atexit.register(_shared.close)
    return _shared


def shared_for_clips() -> LimitedDecoder:
    """As `shared`, for files of hundreds of frames, which take more memory and time."""
    global _shared_for_clips
    if _shared_for_clips is None:
        _shared_for_clips = LimitedDecoder(memory_bytes=CLIP_MEMORY_BYTES, cpu_s=CLIP_CPU_S)
        atexit.register(_shared_for_clips.close)
    return _shared_for_clips


def decode_limited(data: bytes, *, name: str = "", window: Window = "auto") -> Decoded:
    """`images.decode` in the limited child of this process."""
    return shared().decode(data, name=name, window=window)


def _start(limits: tuple[str, str]) -> subprocess.Popen[bytes]:
    """A child with nothing of this process but its Python path; its errors go nowhere."""
    environment = {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)]),
        "PATH": os.environ.get("PATH", ""),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "medray.images.child", *limits],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what parsers print quotes the file
        env=environment,
    )
    assert child.stdin is not None and child.stdout is not None
    for pipe in (child.stdin, child.stdout):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return child


def _send_batch(pipe: IO[bytes], question: dict[str, Any], files: list[bytes]) -> None:
    sizes = {**question, "bytes": [len(data) for data in files]}
    _write_all(pipe, _framed(sizes, b""), *files)


_encoded = json.JSONEncoder(separators=(",", ":")).encode


def _framed(head: dict[str, Any], payload: bytes | memoryview) -> bytes:
    text = _encoded(head).encode()
    return _FRAME.pack(len(text), len(payload)) + text


def _write_all(pipe: IO[bytes], *parts: bytes | memoryview) -> None:
    """Writes the parts, small ones joined: a system call each would cost more than the copy."""
    if sum(map(len, parts)) <= _PIPE_BYTES:
        parts = (b"".join(parts),)
    for part in parts:
        rest = memoryview(part)
        while rest:
            rest = rest[pipe.write(rest) or 0 :]


def _receive(pipe: IO[bytes]) -> tuple[Any, bytes]:
    head_bytes, payload_bytes = _FRAME.unpack(_read_exactly(pipe, _FRAME.size))
    text = _read_exactly(pipe, head_bytes)
    return json.loads(text.decode()), _read_exactly(pipe, payload_bytes)


def _read_exactly(pipe: IO[bytes], length: int) -> bytes:
    data = pipe.read(length)
    if len(data) != length:
        raise EOFError
    return data


# --- in the child -----------------------------------------------------------------------------


def serve(memory_bytes: int, cpu_s: int) -> None:
    """Answers questions on standard input until it closes."""
    import cv2

    cv2.setNumThreads(1)
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", 0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    loaded: set[str] = set()
    while True:
        try:
            question, _ = _receive(questions)
        except EOFError:
            return
        batch = [_read_exactly(questions, length) for length in question["bytes"]]
        kinds = {format_of(data[:132]) or "unknown" for data in batch} - loaded
        for kind in kinds:
            _load(kind)
        loaded |= kinds
        _limit_memory(memory_bytes)
        waiting: list[bytes | memoryview] = []
        for data in batch:
            _limit_time(cpu_s)
            head, payload = _answer(question, data)
            waiting += (_framed(head, payload), payload)
            if sum(map(len, waiting)) > _PIPE_BYTES // 2:
                _write_all(answers, *waiting)
                waiting = []
        _write_all(answers, *waiting)


def _load(kind: str) -> None:
    """Libraries are part of the child, not of what a file may take."""
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if kind == "dicom":
        from pydicom.pixels import decoders

        for name in dir(decoders):
            if name.endswith("Decoder"):
                _ = getattr(decoders, name).is_available
    elif kind == "nifti":
        with contextlib.suppress(ImportError):  # which a file's answer will say
            import nibabel

            _ = nibabel
    elif kind in ("jpeg", "tiff"):
        from PIL import JpegImagePlugin, TiffImagePlugin

        _ = JpegImagePlugin, TiffImagePlugin


def _limit_memory(memory_bytes: int) -> None:
    """Address space for any of the next files, counted from what is used up now."""
    with open("/proc/self/statm", "rb") as file:
        now_bytes = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now_bytes + memory_bytes, resource.RLIM_INFINITY))


def _limit_time(cpu_s: int) -> None:
    """Processor time for the next file, counted from what is used up now, in whole seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed_s = math.ceil(used.ru_utime + used.ru_stime) + cpu_s
    resource.setrlimit(resource.RLIMIT_CPU, (allowed_s, resource.RLIM_INFINITY))


def _answer(question: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes | memoryview]:
    try:
        if question["do"] == "header":
            return asdict(dicom_header(data)), b""
        if question["do"] == "frames":
            return _described_frames(decode_frames(data))
        window: Window = question["window"]
        decoded = decode(data, window=window if isinstance(window, str) else (window[0], window[1]))
        return _described(decoded)
    except MemoryError:
        error = DataError("decoding takes more memory than allowed", code="MR-D108")
    except DataError as raised:
        error = raised
    return {"error": {"message": error.message, "code": error.code, "hint": error.hint}}, b""


def _described(decoded: Decoded) -> tuple[dict[str, Any], memoryview]:
    image = np.ascontiguousarray(decoded.image)
    names = ("bits", "modality", "spacing_mm", "window", "burned_in", "frames")
    head = {name: getattr(decoded, name) for name in names}
    return {**head, "dtype": image.dtype.str, "shape": image.shape}, image.reshape(-1).view(
        np.uint8
    ).data


def _described_frames(frames: Frames) -> tuple[dict[str, Any], memoryview]:
    values = frames.values_THW
    head = {field.name: getattr(frames, field.name) for field in fields(Frames)[1:]}
    return {**head, "dtype": values.dtype.str, "shape": values.shape}, values.reshape(-1).view(
        np.uint8
    ).data


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
