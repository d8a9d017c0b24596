"""Unfinished files: named after their writer, locked while it lives, removed once it is dead."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

PART = ".part"
# Whether a writer on another machine lives cannot be seen everywhere; it writes more often.
STALE_S = 86400.0


def part_path(target: Path) -> Path:
    """A name beside `target` for this writer alone."""
    writer = f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}"
    return target.with_name(f"{target.name}.{writer}{PART}")


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def open_part(path: Path) -> IO[bytes]:
    """Opens an unfinished file; until it is closed its lock says that its writer lives."""
    while True:
        file = path.open("wb", buffering=1 << 20)
        # Without locks on this file system nothing is ever thought dead.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        # Between the two calls it may have been taken for a leftover.
        if path.exists():
            return file
        file.close()


def remove_dead(folder: Path, prefixes: Sequence[str] = ("",)) -> None:
    """Removes the unfinished files in `folder` that dead writers left, by how their names begin."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.endswith(PART)]
    for name in names:
        if name.startswith(tuple(prefixes)):
            # Another process may be faster; what may not be removed stays.
            with contextlib.suppress(OSError):
                _remove_if_dead(folder / name)


def _remove_if_dead(path: Path) -> None:
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        here = f".{_host()}-" in path.name
        if here or time.time() - os.fstat(file.fileno()).st_mtime > STALE_S:
            path.unlink()
