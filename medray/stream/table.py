"""A split of a set of features as one table: rows, and beside each what is known of its image.

A set of features is shards of `.npy` members, one a sample, with the record of the image that it
was taken from: a row and its label come out of one member's neighbour, checked by one digest.

Shape letters: N samples, D features, C channels of maps, H and W their pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medray.errors import DataError, UsageError
from medray.records import Sample, ShardIndex
from medray.stream.cache import ShardCache
from medray.stream.loader import CACHE_BYTES
from medray.stream.roster import Fact
from medray.stream.sets import OpenSet, Source

Array = npt.NDArray[np.float32]

# What `extra` of a record says of its features: "<network sha256>:<layer>:<pooling>".
FEATURES = "features"


@dataclass(frozen=True)
class FeatureTable:
    """Rows in the order of their shards; `findings` are 1, 0 or None (unknown) by name.

    `patients` has "sample <key>" where the patient is unknown; `samples` names each row's image as
    lineages do: its source's SHA-256, else "<set name>/<key>".
    """

    features: Array
    keys: tuple[str, ...]
    labels: tuple[str | None, ...]
    findings: tuple[dict[str, int | None], ...]
    patients: tuple[str, ...]
    samples: tuple[str, ...]
    split: str
    classes: tuple[str, ...]
    network_sha256: str
    layer: str
    pooling: str = ""
    url: str = ""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def tag(self) -> str:
        """What the features are: "<network sha256>:<layer>:<pooling>"."""
        return tag(self.network_sha256, self.layer, self.pooling)

    def take(self, numbers: Sequence[int] | npt.NDArray[np.integer[Any]]) -> FeatureTable:
        """The rows of these numbers, in their order."""
        rows = [int(number) for number in numbers]
        return replace(
            self,
            features=self.features[rows],
            keys=tuple(self.keys[n] for n in rows),
            labels=tuple(self.labels[n] for n in rows),
            findings=tuple(self.findings[n] for n in rows),
            patients=tuple(self.patients[n] for n in rows),
            samples=tuple(self.samples[n] for n in rows),
        )

    def labelled(self) -> FeatureTable:
        """The rows that have a label."""
        return self.take([n for n, label in enumerate(self.labels) if label is not None])

    def facts(self) -> tuple[Fact, ...]:
        """What is known of each row, as a roster tells it; its place is its number."""
        return tuple(
            Fact(
                place=(0, 0, n),
                key=key,
                label=self.labels[n],
                labels=self.findings[n],
                patient=None if self.patients[n] == _unknown(key) else self.patients[n],
                source_sha256=self.samples[n],
            )
            for n, key in enumerate(self.keys)
        )

    def per_patient(self) -> FeatureTable:
        """A row for each patient, in the order of their first: mean features, majority label.

        Of two labels equally frequent the one that stands first in `classes`; a finding is present
        where half or more of the rows that know it say so. Key and sample are the first row's, so
        a lineage is to be taken of the table before.
        """
        rows_of: dict[str, list[int]] = {}
        for number, patient in enumerate(self.patients):
            rows_of.setdefault(patient, []).append(number)
        groups = list(rows_of.values())
        means = [self.features[rows].mean(0, dtype=np.float64) for rows in groups]
        return replace(
            self.take([rows[0] for rows in groups]),
            features=np.stack(means).astype(np.float32) if means else self.features,
            labels=tuple(self._majority(rows) for rows in groups),
            findings=tuple(self._findings(rows) for rows in groups),
        )

    def _majority(self, rows: list[int]) -> str | None:
        found = Counter(label for n in rows if (label := self.labels[n]) is not None)
        places = {name: place for place, name in enumerate(self.classes)}
        if not found:
            return None
        return min(found, key=lambda name: (-found[name], places.get(name, len(places)), name))

    def _findings(self, rows: list[int]) -> dict[str, int | None]:
        names = sorted({name for n in rows for name in self.findings[n]})
        found: dict[str, int | None] = {}
        for name in names:
            known = [v for n in rows if (v := self.findings[n].get(name)) is not None]
            found[name] = int(2 * sum(known) >= len(known)) if known else None
        return found


def _unknown(key: str) -> str:
    """Who the patient of a sample is where that is not known: one of its own."""
    return f"sample {key}"


def tag(network_sha256: str, layer: str, pooling: str) -> str:
    """What stands in a record's `extra["features"]`."""
    return f"{network_sha256}:{layer}:{pooling}"


def read_table(url: str | Path, split: str, cache_dir: str | Path | None = None) -> FeatureTable:
    """All features of one split of a set, digests checked.

    DataError for a set of images, for a damaged one, for rows of different networks, layers or
    shapes, and for features that are not finite.
    """
    opened = OpenSet(Source(url), split, ShardCache(cache_dir, CACHE_BYTES))
    samples = [
        opened.reader(shard).sample(number)
        for shard in range(len(opened.shards))
        for number in range(len(opened.reader(shard)))
    ]
    return table_of(samples, opened.index, split, opened.name)


def table_of(samples: Sequence[Sample], index: ShardIndex, split: str, where: str) -> FeatureTable:
    """The table of samples that are features, as `read_table`; UsageError where there is none."""
    if not samples:
        raise UsageError(f"{where}: there is no sample to make a table of")
    tags = [_tag_of(sample, where) for sample in samples]
    first = samples[0].image
    for sample, found in zip(samples, tags, strict=True):
        _check(sample, found, first.shape, tags[0], where)
    network_sha256, _, rest = tags[0].partition(":")
    layer, _, pooling = rest.rpartition(":")
    return FeatureTable(
        features=np.stack([np.asarray(sample.image, np.float32) for sample in samples]),
        keys=tuple(sample.key for sample in samples),
        labels=tuple(sample.label for sample in samples),
        findings=tuple(sample.labels for sample in samples),
        patients=tuple(sample.patient or _unknown(sample.key) for sample in samples),
        samples=tuple(sample.source_sha256 or f"{index.name}/{sample.key}" for sample in samples),
        split=split,
        classes=index.classes,
        network_sha256=network_sha256,
        layer=layer,
        pooling=pooling,
        url=where,
    )


def _tag_of(sample: Sample, where: str) -> str:
    found = sample.extra.get(FEATURES)
    if found is None or found.count(":") < 2:
        raise DataError(
            f"not a set of features: key {sample.key} does not say of which network it is",
            code="MR-D401",
            where=where,
            hint="give a folder that `medray features` wrote",
        )
    return found


def _check(sample: Sample, found: str, shape: tuple[int, ...], wanted: str, where: str) -> None:
    place = f"{where} key {sample.key}"
    if found != wanted:
        raise DataError(
            f"features of two kinds in one set: {wanted} and {found}",
            code="MR-D402",
            where=place,
            hint="make the set again with one network, layer and pooling",
        )
    image = sample.image
    if image.shape != shape or image.dtype != np.float32 or image.ndim not in (1, 3):
        raise DataError(
            f"features must be float32 of shape (D,) or (C, H, W), the same for all ({shape}), "
            f"got {image.dtype} of shape {image.shape}",
            code="MR-D403",
            where=place,
        )
    if not np.isfinite(image).all():
        bad = int(np.count_nonzero(~np.isfinite(image)))
        raise DataError(
            f"{bad} of {image.size} features are not finite",
            code="MR-D404",
            where=place,
            hint="make the features again; a network that gives NaN is damaged or diverged",
        )
