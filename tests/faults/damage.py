"""Damage to files at rest: flipped, cut, swapped, missing, doubled; seeded, saying where;
and a disk that is too small.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path


def flip_bit(path: Path, seed: int = 0, *, at_byte: int | None = None) -> int:
    """Flips one bit; the byte that it is in."""
    draw = random.Random(seed)
    data = bytearray(path.read_bytes())
    place = draw.randrange(len(data)) if at_byte is None else at_byte
    data[place] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    return place


def cut(path: Path, seed: int = 0, *, to_bytes: int | None = None) -> int:
    """Cuts the file short; the bytes that are left (at least one fewer than there were)."""
    size = path.stat().st_size
    left = random.Random(seed).randrange(size) if to_bytes is None else to_bytes
    os.truncate(path, left)
    return left


def swap(first: Path, second: Path) -> None:
    """Exchanges the contents of two files."""
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def drop(path: Path) -> None:
    """Removes a file."""
    path.unlink()


def double(path: Path, other: Path) -> None:
    """Puts a copy of `path` where `other` is or could be."""
    shutil.copyfile(path, other)


def small_disk(command: list[str], folder: Path, size_bytes: int) -> list[str]:
    """The command that runs `command` with a disk of `size_bytes` mounted at `folder`.

    Needs user namespaces; whether they work here: `small_disk(["true"], ...)` ends with 0. What the
    command wrote into `folder` is gone with it.
    """
    script = f'mount -t tmpfs -o size={size_bytes} tmpfs "{folder}" && exec "$@"'
    return ["unshare", "-Urm", "sh", "-c", script, "sh", *command]
