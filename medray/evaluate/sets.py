"""A set of shards read in order for the judge: every digest checked, a batch in memory at a time.

Shape letters: N images, H and W pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from medray.errors import DataError
from medray.records import Sample, Shard
from medray.shards import open_shard, read_index
from medray.store import Store

Pixels = npt.NDArray[np.uint8]
AT_ONCE = 256


@dataclass(frozen=True)
class Rows:
    """What is known of N images beside their pixels."""

    keys: tuple[str, ...]
    labels: tuple[str | None, ...]
    findings: tuple[dict[str, int], ...]
    patients: tuple[str | None, ...]
    sources: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def to_json(self) -> str:
        """As text, for `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Rows:
        """What `to_json` gave."""
        return cls(**{name: tuple(values) for name, values in json.loads(text).items()})

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Several, one after the other."""
        names = ("keys", "labels", "findings", "patients", "sources")
        return cls(*(tuple(v for part in parts for v in getattr(part, name)) for name in names))


@dataclass(frozen=True)
class Part:
    """A shard, and which of its samples are read."""

    shard: Shard
    numbers: tuple[int, ...]


class ImageSet:
    """One split of a set, or all of it (`split` None); `name` is what messages call it.

    With `most`, as many images at most, evenly spread over the set.
    """

    def __init__(
        self, url: str, split: str | None, name: str = "", most: int | None = None
    ) -> None:
        self.store, self.split = Store(url), split
        self.index = read_index(self.store)
        every = self.index.shards
        self.shards = every if split is None else self.index.of_split(split)
        self.name = name or self.store.url
        if not self.shards:
            present = ", ".join(sorted({shard.split for shard in every})) or "none"
            raise DataError(
                f"the set has no images of split {split!r}, its splits are: {present}",
                code="MR-D033",
                where=self.store.url,
            )
        if self.index.encoding != "png" and self.index.bits not in (8, 16):
            raise DataError(
                f"the set holds values of {self.index.bits} bits, not images",
                code="MR-D309",
                where=self.store.url,
            )

        self.present = sum(shard.samples for shard in self.shards)
        self.parts = _parts(self.shards, min(self.present, most or self.present))

    def __len__(self) -> int:
        return sum(len(part.numbers) for part in self.parts)

    @property
    def classes(self) -> tuple[str, ...]:
        """The set's classes."""
        return self.index.classes

    @property
    def kind(self) -> str:
        """Size and channels in words."""
        colour = "colour" if self.index.channels == 3 else "grey"
        return f"{self.index.size_px} px {colour}"

    @property
    def sha256(self) -> str:
        """A digest of what is read of it."""
        facts = [[part.shard.sha256, list(part.numbers)] for part in self.parts]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def batches(self) -> Iterator[tuple[Pixels, Rows]]:
        """All images, 256 at a time, as uint8 (N, H, W) or (N, H, W, 3).

        DataError for a damaged shard, or an image of another size than the set's.
        """
        for part in self.parts:
            yield from part_batches(self.store, part)

    def take(self, numbers: Sequence[int]) -> Pixels:
        """The images of these numbers (0 to N - 1 over all parts), in the order given."""
        first = 0
        found: dict[int, Pixels] = {}
        for part in self.parts:
            here = sorted({n for n in numbers if first <= n < first + len(part.numbers)})
            if here:
                reader = open_shard(self.store, part.shard)
                found |= {n: as_bytes(reader.sample(part.numbers[n - first])) for n in here}
            first += len(part.numbers)
        return np.stack([found[int(number)] for number in numbers])

    def images(self) -> Iterator[Pixels]:
        """The pixels alone."""
        return (images for images, _ in self.batches())

    def rows(self) -> Rows:
        """What is known of every image."""
        return Rows.joined([rows for _, rows in self.batches()])

    def read(self) -> tuple[Pixels, Rows]:
        """Everything at once: for sets that fit."""
        parts = list(self.batches())
        return np.concatenate([images for images, _ in parts]), Rows.joined([r for _, r in parts])


def _parts(shards: Sequence[Shard], wanted: int) -> tuple[Part, ...]:
    """`wanted` of all samples, evenly spread."""
    total, first, parts = sum(shard.samples for shard in shards), 0, []
    for shard in shards:
        numbers = tuple(
            n
            for n in range(shard.samples)
            if (first + n + 1) * wanted // total > (first + n) * wanted // total
        )
        if numbers:
            parts.append(Part(shard, numbers))
        first += shard.samples
    return tuple(parts)


def part_batches(store: Store, part: Part) -> Iterator[tuple[Pixels, Rows]]:
    """The images of one part in order, with what is known of them."""
    reader, shard = open_shard(store, part.shard), part.shard
    for first in range(0, len(part.numbers), AT_ONCE):
        numbers = part.numbers[first : first + AT_ONCE]
        samples = [reader.sample(number) for number in numbers]
        shapes = {sample.image.shape for sample in samples}
        if len(shapes) > 1:
            raise DataError(
                f"the images differ in size: {sorted(shapes)}",
                code="MR-D030",
                where=f"{store.url}/{shard.name}",
            )
        yield np.stack([as_bytes(sample) for sample in samples]), _rows(samples)


def _rows(samples: Sequence[Sample]) -> Rows:
    return Rows(
        tuple(sample.key for sample in samples),
        tuple(sample.label for sample in samples),
        tuple({n: v for n, v in sample.labels.items() if v is not None} for sample in samples),
        tuple(sample.patient for sample in samples),
        tuple(sample.source_sha256 for sample in samples),
    )


def as_bytes(sample: Sample) -> Pixels:
    """The image as uint8; 16 bit values by their upper eight."""
    image = sample.image
    if image.dtype == np.uint8 and image.ndim in (2, 3):
        return image
    if image.dtype == np.uint16 and image.ndim in (2, 3):
        return (image >> 8).astype(np.uint8)
    raise DataError(
        f"sample {sample.key} is {image.dtype} of shape {image.shape}, not an image",
        code="MR-D309",
    )


def same_kind(first: ImageSet, *others: ImageSet) -> None:
    """DataError where sets differ in size or channels, naming both."""
    for other in others:
        if other.kind != first.kind:
            raise DataError(
                f"{first.name} has images of {first.kind}, {other.name} of {other.kind}",
                code="MR-D307",
                hint="pack the real set with the generator's --size-px and --channels",
            )


def patients_apart(first: Rows, second: Rows, names: tuple[str, str]) -> None:
    """DataError where a patient is in both."""
    common = (set(first.patients) & set(second.patients)) - {None}
    if common:
        raise DataError(
            f"{len(common)} patients are in both {names[0]} and {names[1]}: what is held out must "
            "be of other patients",
            code="MR-D310",
            hint="pack the set again with --patient-column",
        )
