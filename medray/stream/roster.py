"""What is known of every sample of a split without its pixels, and the pixels of those one names.

Shape letters: N images, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medray.stream.cache import ShardCache
from medray.stream.decode import Array, Decoder
from medray.stream.loader import CACHE_BYTES, agreed, united
from medray.stream.sets import OpenSet, Source

Positions = npt.NDArray[np.int64]
Kept = list[list[Positions]]


@dataclass(frozen=True, slots=True)
class Fact:
    """One sample: its place (source, shard, sample in it) and what its record says of it.

    `synthetic` where the record says which address it was made from.
    """

    place: tuple[int, int, int]
    key: str
    label: str | None
    labels: dict[str, int | None]
    patient: str | None
    source_sha256: str | None = None
    synthetic: bool = False


class Roster:
    """All samples of one split of some sources, in the order of their shards.

    Reads every record, no image. DataError for a set that lacks the split or is damaged.
    """

    def __init__(
        self, sources: Sequence[Source], split: str, cache_dir: str | Path | None = None
    ) -> None:
        cache = ShardCache(cache_dir, CACHE_BYTES)
        self._sets = [OpenSet(source, split, cache) for source in sources]
        self.name = ", ".join(opened.name for opened in self._sets)
        self.urls = tuple(source.url for source in sources)
        self.set_names = tuple(opened.index.name for opened in self._sets)
        self.split = split
        self.channels, self.size_px, self.bits = agreed(self._sets, None)
        self.classes = united([opened.index.classes for opened in self._sets])
        self.facts = tuple(self._read())

    def _read(self) -> Iterator[Fact]:
        for source, opened in enumerate(self._sets):
            for shard in range(len(opened.shards)):
                reader = opened.reader(shard)
                for sample, row in enumerate(reader.rows):
                    record = reader.record(sample)
                    yield Fact(
                        place=(source, shard, sample),
                        key=row["key"],
                        label=row["label"],
                        labels=record.get("labels") or {},
                        patient=record.get("patient"),
                        source_sha256=record.get("source_sha256"),
                        synthetic=record.get("provenance") is not None,
                    )

    def where(self, wanted: Callable[[Fact], bool]) -> list[Fact]:
        """The samples that `wanted` holds for, in order."""
        return [fact for fact in self.facts if wanted(fact)]

    def by_source(self, facts: Iterable[Fact]) -> list[tuple[str, list[Fact]]]:
        """(the set's name, those of `facts` that are in it) of each source, in order."""
        found: list[list[Fact]] = [[] for _ in self._sets]
        for fact in facts:
            found[fact.place[0]].append(fact)
        return list(zip(self.set_names, found, strict=True))

    def kept(self, facts: Sequence[Fact]) -> Kept:
        """The places of `facts` as `Stream` takes them: sample numbers by source and shard."""
        found: list[list[list[int]]] = [[[] for _ in opened.shards] for opened in self._sets]
        for fact in facts:
            source, shard, sample = fact.place
            found[source][shard].append(sample)
        return [[np.asarray(shard, np.int64) for shard in source] for source in found]

    def images(self, facts: Sequence[Fact], batch: int = 64) -> Iterator[Array]:
        """The images of `facts` in their order, `(N, C, H, W)` as stored, N up to `batch`."""
        decoder = Decoder(self.channels, self.size_px, self.bits, self.name)
        for first in range(0, len(facts), batch):
            some = facts[first : first + batch]
            images_NCHW = np.empty((len(some), *decoder.shape_CHW), decoder.dtype)
            for image_CHW, fact in zip(images_NCHW, some, strict=True):
                source, shard, sample = fact.place
                reader, data = self._sets[source].fetch(shard, sample)
                decoder.into(image_CHW, reader, sample, data)
            yield images_NCHW
