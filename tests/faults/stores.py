"""A store that fails as object stores do: 503, resets, short reads, stalls; seeded and counted.

`faulty://name/...` keeps its objects in this process. `Faults` says how often what happens, from
which seed, and counts it: a test asserts that there were some.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

PROTOCOL = "faulty"


@dataclass
class Faults:
    """Rates per call, and what was injected so far."""

    seed: int = 0
    unavailable: float = 0.0
    reset: float = 0.0
    short_read: float = 0.0
    stall: float = 0.0
    stall_s: float = 2.0
    sleep: Callable[[float], None] = time.sleep
    injected: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)

    def _strikes(self, name: str, rate: float) -> bool:
        hit = self._draw.random() < rate
        self.injected[name] += hit
        return hit

    def call(self, method: str, path: str) -> None:
        """Before a call: stalls, or raises what a client of an object store raises."""
        if self._strikes("stall", self.stall):
            self.sleep(self.stall_s)
        if self._strikes("unavailable", self.unavailable):
            raise OSError(f"503 Service Unavailable: {method} {path}")
        if self._strikes("reset", self.reset):
            raise ConnectionResetError(f"connection reset by peer: {method} {path}")

    def cut(self, data: bytes) -> bytes:
        """What arrives of `data`: all, or less of it, in silence."""
        if len(data) > 1 and self._strikes("short_read", self.short_read):
            return data[: self._draw.randrange(len(data))]
        return data

    @property
    def total(self) -> int:
        """All faults so far."""
        return sum(self.injected.values())


NONE = Faults()
_active = [NONE]


class FaultyFileSystem(MemoryFileSystem):
    """Objects in memory behind a network that fails as `faults()` says."""

    protocol = PROTOCOL
    store: dict[str, Any] = {}
    pseudo_dirs = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        # Calls arrive with and without the scheme.
        return str(MemoryFileSystem._strip_protocol(path.replace(f"{PROTOCOL}://", "memory://")))

    def cat_file(self, path: str, start: Any = None, end: Any = None, **named: Any) -> bytes:
        """As fsspec; may arrive short."""
        _active[-1].call("GET", path)
        return _active[-1].cut(super().cat_file(path, start=start, end=end, **named))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **named: Any) -> None:
        """As fsspec; a reset may come before or after the object was stored."""
        _active[-1].call("PUT", path)
        super().pipe_file(path, value, mode=mode, **named)
        _active[-1].call("PUT (answer)", path)

    def put_file(self, lpath: str, rpath: str, **named: Any) -> None:
        """As fsspec."""
        _active[-1].call("PUT", rpath)
        super().put_file(lpath, rpath, **named)

    def find(self, path: str, **named: Any) -> Any:
        """As fsspec."""
        _active[-1].call("LIST", path)
        return super().find(path, **named)

    def exists(self, path: str, **named: Any) -> bool:
        """As fsspec."""
        _active[-1].call("HEAD", path)
        return bool(super().exists(path, **named))

    def rm_file(self, path: str) -> None:
        """As fsspec."""
        _active[-1].call("DELETE", path)
        super().rm_file(path)

    def _open(self, path: str, mode: str = "rb", **named: Any) -> Any:
        _active[-1].call("GET", path)
        file = super()._open(path, mode=mode, **named)
        return _ShortReads(file) if mode == "rb" else file


class _ShortReads:
    """A file opened for reading whose reads may end early, in silence."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """As a file's, or fewer bytes."""
        return _active[-1].cut(self._file.read(size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _ShortReads:
        return self

    def __exit__(self, *ended: object) -> None:
        self._file.close()


@contextmanager
def faults(**rates: Any) -> Iterator[Faults]:
    """`faulty://` fails at these rates while the context lasts; the counts stay readable."""
    found = Faults(**rates)
    _active.append(found)
    try:
        yield found
    finally:
        _active.remove(found)


def register() -> None:
    """Makes `faulty://` known, empty."""
    fsspec.register_implementation(PROTOCOL, FaultyFileSystem, clobber=True)
    FaultyFileSystem.store.clear()
    FaultyFileSystem.pseudo_dirs[:] = [""]
