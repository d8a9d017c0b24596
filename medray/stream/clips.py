"""Clips of a set: what is known of each without its frames, and the frames of those one names.

Shape letters: T frames, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medray import lineage
from medray.errors import DataError
from medray.lineage import Lineage
from medray.records import CLIPS, SPLITS, Sample, ShardIndex
from medray.shards import read_index
from medray.store import Store
from medray.stream.cache import ShardCache
from medray.stream.loader import CACHE_BYTES
from medray.stream.sets import OpenSet, Source

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class ClipFact:
    """What the record of a clip says; no pixels.

    `labels` has every finding of the set, None where it is unknown. `patient` and `sample` are what
    a lineage calls them: the sample stands for a patient that is not known.
    """

    key: str
    frames: int
    label: str | None
    labels: dict[str, int | None]
    patient: str
    split: str
    sample: str
    source_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip: uint8 or uint16 frames in anatomical order, the mask uint8 with 0 and 255.

    `spacing_mm` between the centres of a frame's pixels (rows, columns), `slice_mm` between frames.
    """

    fact: ClipFact
    frames_THW: Array
    mask_THW: Array | None
    spacing_mm: tuple[float, float] | None
    slice_mm: float | None


class ClipSet:
    """A set of clips opened for random access. Thread-safe; nothing is read ahead."""

    def __init__(self, url: str, index: ShardIndex, cache: ShardCache) -> None:
        self.url, self.index = url, index
        self.classes, self.size_px, self.bits = index.classes, index.size_px, index.bits
        self._cache = cache
        self._sets: dict[str, OpenSet] = {}

    @classmethod
    def open(cls, url: str | Path, cache_dir: str | Path | None = None) -> ClipSet:
        """Opens a set by folder or URL; DataError where it is not finished, or not of clips."""
        index = read_index(Store(url), CLIPS)
        return cls(str(url), index, ShardCache(cache_dir, CACHE_BYTES))

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it has clips of."""
        return tuple(split for split in SPLITS if self.index.of_split(split))

    def facts(self, split: str) -> tuple[ClipFact, ...]:
        """The clips of a split in order, records alone read; DataError where there is none."""
        return tuple(self._facts(split))

    def read(self, key: str) -> Clip:
        """One clip, its digest checked first.

        DataError for a key that the set does not have, for damage, and for frames that are not what
        the index says.
        """
        if key not in self._places:
            raise DataError(f"the set has no clip {key!r}", code="MR-D035", where=self.url)
        split, shard, number = self._places[key]
        reader, data = self._open(split).fetch(shard, number)
        sample = reader.decode(number, data)
        self._check(sample)
        return Clip(
            fact=self._fact(key, split, sample.record()),
            frames_THW=sample.image,
            mask_THW=sample.mask,
            spacing_mm=sample.spacing_mm,
            slice_mm=sample.slice_mm,
        )

    def lineage(self, split: str, *, labels: bool) -> Lineage:
        """All clips of a split, used with or without their labels."""
        return self.lineage_of(self.facts(split), labels=labels)

    def lineage_of(self, facts: Sequence[ClipFact], *, labels: bool) -> Lineage:
        """Some clips, used with or without their labels, each as the split that it is of."""
        found = Lineage()
        for split in sorted({fact.split for fact in facts}):
            some = [fact for fact in facts if fact.split == split]
            found |= lineage.of_facts(self.index.name, some, labels=labels, split=split)
        return found

    @cached_property
    def _places(self) -> dict[str, tuple[str, int, int]]:
        """Where each clip is: split, shard of the split, number in the shard."""
        return {
            row["key"]: (split, shard, number)
            for split in self.splits
            for shard in range(len(self._open(split).shards))
            for number, row in enumerate(self._open(split).reader(shard).rows)
        }

    def _open(self, split: str) -> OpenSet:
        if split not in self._sets:
            self._sets[split] = OpenSet(Source(self.url), split, self._cache, CLIPS)
        return self._sets[split]

    def _facts(self, split: str) -> Iterator[ClipFact]:
        opened = self._open(split)
        for shard in range(len(opened.shards)):
            reader = opened.reader(shard)
            for number, row in enumerate(reader.rows):
                yield self._fact(row["key"], split, reader.record(number))

    def _fact(self, key: str, split: str, record: dict[str, Any]) -> ClipFact:
        known = record.get("labels") or {}
        source = record.get("source_sha256")
        sample = source or f"{self.index.name}/{key}"
        return ClipFact(
            key=key,
            frames=int(record.get("frames") or 0),
            label=record.get("label"),
            labels={name: known.get(name) for name in self.classes},
            patient=record.get("patient") or sample,
            split=split,
            sample=sample,
            source_sha256=source,
        )

    def _check(self, sample: Sample) -> None:
        """Refuses frames and masks of another shape or type than index and record say."""
        dtype = np.uint8 if self.bits == 8 else np.uint16
        wanted = (sample.frames, self.size_px, self.size_px)
        pairs = [("frames", sample.image, dtype), ("mask", sample.mask, np.uint8)]
        for what, array, of in pairs:
            if array is not None and (array.shape != wanted or array.dtype != of):
                raise DataError(
                    f"the {what} of a clip are {array.dtype} {array.shape}, "
                    f"index and record say {np.dtype(of)} {wanted}",
                    code="MR-D030",
                    where=f"{self.url} key {sample.key}",
                )


def spread(frames: int, count: int) -> npt.NDArray[np.int64]:
    """`count` frame numbers evenly over a clip of `frames`, the middle of each of `count` parts.

    They never fall; a clip shorter than that repeats some. ValueError below 1.
    """
    if frames < 1 or count < 1:
        raise ValueError(f"frames and count must be at least 1, got {frames} and {count}")
    return np.asarray((2 * np.arange(count, dtype=np.int64) + 1) * frames // (2 * count))
