"""A small archive to kill: three shards of eight images of 16 px, made in a forked child."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import jobs._archive_run  # noqa: F401  (so that a forked child imports nothing)
from jobs import archive
from tests.archive.made_parts import arguments


def make(
    folder: Path,
    parts: str,
    durable: bool = True,
    guarded: bool = True,
    alone: bool = True,
    seed: int = 0,
    wait_s: float = 5,
) -> int:
    """Makes the archive at `folder`/archive; the exit code."""
    if not durable:
        os.fsync = lambda handle: None
    if not guarded:
        _write_under_final_names()
    if not alone:
        fcntl.flock = lambda file, kind: None
    more = ("--seed", seed, "--wait-s", wait_s, "--quiet")
    return archive.main(arguments(Path(parts), folder / "archive", *more))


def _write_under_final_names() -> None:
    """Takes a guard away: what is half written bears its final name, and nobody looks twice."""
    from medray.archive import archive as making
    from medray.archive import worker
    from medray.shards import writer

    writer._part_path = lambda store, name: store.path(f"{name}.tar")
    worker._is_whole = lambda store, shard: True
    making.finished = lambda store, plan, number: (
        worker.finished(store, plan, number)
        if store.exists(worker.manifest_name(plan.shard_name(number)))
        else None
    )
