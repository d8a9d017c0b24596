"""Small sweeps on made-up features: their sets, their words, and one to kill."""

from __future__ import annotations

import fcntl
import os
from dataclasses import replace
from pathlib import Path

# So that a forked child imports nothing, here and below.
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import numpy as np
import torch._dynamo  # noqa: F401

import jobs._sweep_run  # noqa: F401
from jobs import sweep
from medray import lineage
from medray.lineage import Lineage, Saw
from medray.store import Store
from tests.feature_sets import make_features, rows_of

CLASSES = ("common", "rare", "rarest")
SMALL = (
    *("--backend", "local", "--trials", "3", "--width", "2", "--seeds", "2", "--steps", "30"),
    *("--ratios", "1", "4", "--interval-draws", "300", "--quiet"),
)


def features(
    url, counts, *, seed=0, apart=1.2, dims=6, seen=(), splits=None, left_out=None, **more
):
    """A set of features: `counts` of each class in each split, two rows a patient."""
    draw = np.random.default_rng(seed)
    centres_KD = np.random.default_rng(77).standard_normal((len(CLASSES), dims)) * apart
    samples = []
    for split, scale in (splits or {"train": 1, "val": 1, "test": 1}).items():
        labels = [name for name, n in zip(CLASSES, counts, strict=True) for _ in range(n * scale)]
        labels = [name for name in labels if name != (left_out or {}).get(split)]
        numbers = [CLASSES.index(name) for name in labels]
        rows = centres_KD[numbers] + draw.standard_normal((len(numbers), dims))
        made = rows_of(rows.astype(np.float32), labels, split, per_patient=2, **more)
        samples += [_named(sample, url, split) for sample in made]
    make_features(url, samples, classes=CLASSES, name=Path(url).name)
    if seen is not None:
        lineage.write(Store(url), Lineage(seen))
    return str(url)


def _named(sample, url, split):
    source = f"{Path(url).name}-{split}-{sample.key}"
    return replace(sample, patient=f"{Path(url).name}-{sample.patient}", source_sha256=source)


def saw(patient, sample="elsewhere", label=None):
    return Saw(sample, patient, "train", label)


def words(folder: Path, out: Path, *more: str) -> list[str]:
    return ["--features", f"{folder}/real", "--out", f"{out}", *SMALL, *more]


def make(folder: Path, sets: str, durable: bool = True, alone: bool = True, seed: int = 0) -> int:
    """Sweeps at `folder`; the exit code."""
    if not durable:
        os.fsync = lambda handle: None
    if not alone:
        fcntl.flock = lambda file, kind: None
    return sweep.main(words(Path(sets), folder, "--arms", "none,smote", "--seed", f"{seed}"))
