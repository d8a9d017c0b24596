"""The tables that jobs/sweep.py reads: of features, or of images shrunk to a few pixels.

Shape letters: N rows, C channels, H and W pixels, D features.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jobs import _data
from jobs.sweep import SweepJob
from medray import lineage
from medray.errors import DataError, UsageError
from medray.shards import read_index
from medray.store import Store
from medray.stream import Roster, Source
from medray.stream.table import FeatureTable, read_table
from medray.train import targets
from medray.tune import folds

FOLD = "{fold}"
SPLITS = ("train", "val", "test")
PIXELS = 8


class Tables:
    """The tables of a sweep, each read once: of features, or of images shrunk to a few pixels."""

    def __init__(self, config: SweepJob) -> None:
        self.config = config
        self._read = functools.lru_cache(maxsize=None)(self._of)
        self.folds = functools.lru_cache(maxsize=None)(self._folds)

    @property
    def images(self) -> tuple[str, ...]:
        c = self.config
        return _data.sources_of(
            c.data,
            phantoms=c.phantoms,
            count=c.phantom_images,
            size_px=32,
            seed=c.seed,
            cache_dir=c.cache_dir,
        )

    @property
    def urls(self) -> tuple[str, ...]:
        """Every set that is read."""
        c = self.config
        numbers = range(c.folds) if c.folds else [None]
        own = [c.features] if c.features else [*self.images]
        given = [*own, *([c.synthetic] if c.synthetic else [])]
        return tuple(dict.fromkeys(url_of(url, fold) for url in given for fold in numbers))

    def table(self, fold: int | None, split: str) -> FeatureTable:
        """Rows of a split, or of all splits joined where there are folds."""
        if fold is None:
            return self._read(None, split)
        tables = [self._read(fold, name) for name in SPLITS if self._has(fold, name)]
        return _joined(tables)

    def archive(self, fold: int | None) -> FeatureTable | None:
        """The synthetic rows."""
        return self._read(fold, "synthetic") if self.config.synthetic else None

    def _has(self, fold: int | None, split: str) -> bool:
        c = self.config
        urls = [url_of(c.features, fold)] if c.features else self.images
        return all(read_index(Store(url)).of_split(split) for url in urls)

    def _of(self, fold: int | None, split: str) -> FeatureTable:
        c = self.config
        if split == "synthetic":
            url = url_of(str(c.synthetic), fold)
            if c.features:
                return _vectors(read_table(url, "train", c.cache_dir))
            return pixel_table((url,), "train", c.pixels or PIXELS, c.cache_dir)
        if c.features:
            return _vectors(read_table(url_of(c.features, fold), split, c.cache_dir))
        return pixel_table(self.images, split, c.pixels or PIXELS, c.cache_dir)

    def _folds(self, fold: int) -> dict[str, int]:
        """The outer fold of each patient who has a label: the same whatever the features."""
        table = self.table(fold, "train").labelled()
        table = only(table, self.config.classes) if self.config.classes else table
        labels = folds.label_by_patient(table.patients, [str(name) for name in table.labels])
        return folds.folds_of(labels, self.config.folds, self.config.seed)


def url_of(url: str, fold: int | None) -> str:
    if FOLD in url and fold is None:
        raise UsageError(f"{url} names {FOLD}: it goes with --folds")
    return url.replace(FOLD, str(fold))


def _vectors(table: FeatureTable) -> FeatureTable:
    if table.features.ndim != 2:
        raise UsageError(
            f"{table.url} has maps of shape {table.features.shape[1:]}, heads take vectors",
            hint="medray features --pool mean, max or masked",
        )
    return table


def _joined(tables: Sequence[FeatureTable]) -> FeatureTable:
    first = tables[0]
    for other in tables[1:]:
        check_same(first, other)
    return replace(
        first,
        features=np.concatenate([table.features for table in tables]),
        keys=tuple(key for table in tables for key in table.keys),
        labels=tuple(label for table in tables for label in table.labels),
        findings=tuple(found for table in tables for found in table.findings),
        patients=tuple(patient for table in tables for patient in table.patients),
        samples=tuple(sample for table in tables for sample in table.samples),
    )


def check_same(real: FeatureTable, other: FeatureTable) -> None:
    """DataError where two tables are not features of the same network, layer and pooling."""
    if real.tag != other.tag or real.features.shape[1:] != other.features.shape[1:]:
        raise DataError(
            f"features of another network than {real.url}: {other.tag} {other.features.shape[1:]}, "
            f"there {real.tag} {real.features.shape[1:]} (network:layer:pooling, shape)",
            code="MR-D417",
            where=other.url,
            hint="medray features with the same --model, --layer and --pool on both sets",
        )


def pixel_table(
    urls: tuple[str, ...], split: str, side: int, cache_dir: str | None
) -> FeatureTable:
    """Images shrunk to `side` x `side` by area means, as features (D = channels x side x side)."""
    import cv2

    roster = Roster([Source(url) for url in urls], split, cache_dir)
    facts = list(roster.facts)
    rows = [
        cv2.resize(
            image_CHW.transpose(1, 2, 0).astype(np.float32),
            (side, side),
            interpolation=cv2.INTER_AREA,
        ).ravel()
        for images_NCHW in roster.images(facts)
        for image_CHW in images_NCHW
    ]
    samples = {id(f): lineage.sample_of(n, f) for n, some in roster.by_source(facts) for f in some}
    return FeatureTable(
        features=np.stack(rows).astype(np.float32) / np.float32(2**roster.bits - 1),
        keys=tuple(fact.key for fact in facts),
        labels=tuple(fact.label for fact in facts),
        findings=tuple(fact.labels for fact in facts),
        patients=tuple(targets.patient_of(fact) for fact in facts),
        samples=tuple(samples[id(fact)] for fact in facts),
        split=split,
        classes=roster.classes,
        network_sha256="pixels",
        layer=str(side),
        pooling="area",
        url=roster.name,
    )


def only(table: FeatureTable, classes: tuple[str, ...]) -> FeatureTable:
    """The rows of these classes."""
    return table.take([n for n, label in enumerate(table.labels) if label in classes])
