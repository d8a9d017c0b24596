"""Small sets of features for tests: rows of known content, written in a moment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medray.records import Sample, ShardIndex
from medray.shards import ShardWriter, write_index
from medray.shards.writer import classes_of
from medray.store import Store
from medray.stream.table import FEATURES, tag

NETWORK = "ab" * 32
LAYER, POOLING = "body.blocks.1", "mean"
CLASSES = ("normal", "virus")
Array = npt.NDArray[Any]


def rows_of(
    features: Array,
    labels: Sequence[str | None],
    split: str = "train",
    *,
    network: str = NETWORK,
    per_patient: int = 1,
) -> list[Sample]:
    """Samples of a split, `per_patient` following ones of one patient."""
    return [
        Sample(
            key=f"{split}-{number:08d}",
            image=row,
            label=label,
            patient=f"{split}-p{number // per_patient}",
            split=split,
            source_sha256=f"{number:03x}" * 21 + "0",
            extra={FEATURES: tag(network, LAYER, POOLING)},
        )
        for number, (row, label) in enumerate(zip(features, labels, strict=True))
    ]


def make_features(
    url: str | Path,
    samples: Iterable[Sample],
    *,
    classes: Sequence[str] = CLASSES,
    name: str = "small",
    per_shard: int = 100,
) -> ShardIndex:
    """Writes a set of features; samples of a split follow each other."""
    store, shards, by_split = Store(url), [], {}
    for sample in samples:
        by_split.setdefault(sample.split, []).append(sample)
    for split, some in by_split.items():
        for number, first in enumerate(range(0, len(some), per_shard)):
            with ShardWriter(store, f"{split}-{number:06d}", split, "raw") as writer:
                for sample in some[first : first + per_shard]:
                    assert classes_of(sample) <= set(classes)
                    writer.add(sample)
                shards.append(writer.close())
    shape = next(iter(by_split.values()))[0].image.shape
    index = ShardIndex(
        name=name,
        classes=tuple(classes),
        channels=shape[0],
        size_px=shape[1] if len(shape) == 3 else 1,
        bits=32,
        encoding="raw",
        source="",
        licence="",
        audited=False,
        shards=tuple(shards),
    )
    write_index(store, index)
    return index


def two_gaussians(
    count: int, dims: int = 8, *, seed: int = 0, apart: float = 3.0
) -> tuple[Array, list[str]]:
    """Rows (count, dims) of two normal classes, `apart` deviations from each other, and labels."""
    generator = np.random.default_rng(seed)
    numbers = np.arange(count) % 2
    rows = generator.standard_normal((count, dims)) * np.linspace(0.5, 1.5, dims)
    rows[:, :2] += apart * (numbers[:, None] - 0.5)
    return rows.astype(np.float32), [CLASSES[number] for number in numbers]
