"""A run in small, to kill: no torch, a state of a few numbers, and the real run folder underneath.

`python -m tests.faults.publisher FOLDER` trains to the end, and goes on after a kill. The functions
are single saves for `preload.Forks`; `order` and `durable` are the guards that controls take away.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from medray import checkpoints as module
from medray._tensors import write_tensors
from medray.checkpoints import Checkpoints
from medray.errors import MedrayError
from medray.rundir import RunDir
from medray.store import Store

OLD_IMAGES, NEW_IMAGES = 8, 16
TOTAL_IMAGES, STEP_IMAGES, SAVE_IMAGES = 36, 4, 12
CONFIG = "seed: 0\nworkers: 1\n"


class Free:
    """A lease that nobody contests."""

    epoch = 1

    def check(self) -> None:
        """Always held."""

    def release(self) -> None:
        """Nothing to let go."""


def tensors_at(images: int) -> dict[str, np.ndarray[Any, Any]]:
    """The state that belongs to `images`."""
    values = np.arange(300, dtype=np.float32) * np.float32(images)
    return {"weights": values, "step": np.array([images], np.int64)}


def save(folder: Path, images: int = NEW_IMAGES, order: str = "last", durable: bool = True) -> int:
    """Saves one checkpoint below `folder`; with `order="first"` by a careless publisher."""
    if not durable:
        os.fsync = lambda handle: None
    checkpoints = Checkpoints(Store(folder), Free())
    if order == "first":
        _save_manifest_first(checkpoints, images)
    else:
        checkpoints.save(images, tensors_at(images), {"data": images})
    return images


def _save_manifest_first(checkpoints: Checkpoints, images: int) -> None:
    store, folder = checkpoints.store, f"{module.FOLDER}/{images:010d}"
    spare = store.path("spare")
    files = {module.TENSORS: write_tensors(spare, tensors_at(images))}
    state = json.dumps({"schema": module.STATE_SCHEMA, "images": images, "data": images}).encode()
    files[module.STATE] = module._digest(state)
    manifest = {"schema": module.SCHEMA, "images": images, "epoch": 1, "score": None}
    store.write_bytes(
        f"{folder}/{module.MANIFEST}", json.dumps({**manifest, "files": files}).encode()
    )
    store.publish(spare, f"{folder}/{module.TENSORS}")
    store.write_bytes(f"{folder}/{module.STATE}", state)


def prune(folder: Path) -> list[int]:
    """Removes all but the newest checkpoint below `folder`."""
    checkpoints = Checkpoints(Store(folder), Free())
    checkpoints.prune(1)
    return checkpoints.complete()


def train(folder: Path, cut: bool = True, **start: Any) -> int:
    """Trains to the end from the newest checkpoint; without `cut` it keeps rows past it."""
    run = RunDir.start(
        str(folder / "run"),
        config_hash="0" * 64,
        command=["medray", "small"],
        **{"config_yaml": CONFIG, "resume": True, **start},
    )
    with run:
        if run.complete:
            return TOTAL_IMAGES
        saved = Checkpoints(run.store, run.lease)
        images, total = _resume(run, saved, cut)
        while images < TOTAL_IMAGES:
            images += STEP_IMAGES
            total = np.float32(total * 0.9 + images)
            run.append_metrics({"images": images, "total": float(total)})
            if images % SAVE_IMAGES == 0:
                saved.save(images, {"total": np.array([total])}, {"images": images})
                saved.prune(2)
        saved.prune(2)
        run.finish({"total": float(total)})
    return images


def _resume(run: RunDir, saved: Checkpoints, cut: bool) -> tuple[int, Any]:
    newest = saved.newest()
    images, total = 0, np.float32(0)
    if newest is not None:
        tensors, state = saved.load(newest, as_numpy=True)
        images, total = state["images"], tensors["total"][0]
    if cut:
        run.cut_metrics(images)
    return images, total


def command(folder: Path, seed: int = 0, alone: bool = True) -> int:
    """Trains, without waiting for another that does; the exit code."""
    if not alone:
        fcntl.flock = lambda file, kind: None  # type: ignore[assignment]
    try:
        train(folder, config_yaml=f"seed: {seed}\nworkers: 1\n", wait_s=0.0)
    except MedrayError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def is_result(name: str) -> bool:
    """Whether a file of the run folder must not depend on kills: not times, logs and the lease."""
    told = ("run/.lease/", "run/status.json", "run/train.log", "run/command.txt")
    return not name.startswith(told)


if __name__ == "__main__":
    train(Path(sys.argv[1]), wait_s=10.0)
