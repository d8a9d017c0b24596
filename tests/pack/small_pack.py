"""A small pack to kill: two shards of eight images of 8 px, made in a forked child."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import medray.pack.pack  # noqa: F401  (so that a forked child imports nothing)
from jobs import pack
from medray.errors import DataError
from medray.images import Decoded, decode, encode_png
from medray.pack import worker

IMAGES, PER_SHARD = 16, 8


class _Here:
    """Decodes in this process: the limited child costs more than all the rest of it."""

    def decode_many(
        self, files: Sequence[tuple[str, bytes]], *, window: object = "auto"
    ) -> Iterator[Decoded | DataError]:
        yield from (decode(data, name=name) for name, data in files)


def make_source(folder: Path, images: int = IMAGES) -> Path:
    """Images of noise, and the secret of the project."""
    (folder / "images").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for k in range(images):
        image = draw.integers(0, 256, (9, 9), np.uint8)
        (folder / "images" / f"{k:02d}.png").write_bytes(encode_png(image))
    (folder / "secret").write_text("0123456789abcdef")
    return folder


def make(
    folder: Path | str,
    source: str,
    durable: bool = True,
    guarded: bool = True,
    alone: bool = True,
    size_px: int = 8,
) -> int:
    """Packs into `folder`/set; the exit code."""
    worker.shared = _Here  # type: ignore[assignment]
    if not durable:
        os.fsync = lambda handle: None
    if not guarded:
        _write_under_final_names()
    if not alone:
        fcntl.flock = lambda file, kind: None
    given = f"--source {source}/images --secret-file {source}/secret --out {folder}/set"
    small = f"--samples-per-shard {PER_SHARD} --workers 0 --val 0 --test 0 --name small --quiet"
    return pack.main([*given.split(), *small.split(), "--size-px", str(size_px), "--bits", "8"])


def _write_under_final_names() -> None:
    """Takes a guard away: what is half written bears its final name, and nobody looks twice."""
    from medray.shards import writer

    writer._part_path = lambda store, name: store.path(f"{name}.tar")
    worker._is_whole = lambda store, shard: True


def is_result(name: str) -> bool:
    """Whether a file must not depend on when and how it was made."""
    return not name.startswith("set/.pack/")
