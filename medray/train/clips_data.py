"""Clips to train on: a roster of them, their frames or their maps in memory, batches.

Shape letters: N clips, T frames, H and W pixels, D maps, g cells a side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medray import rng
from medray.errors import DataError, UsageError
from medray.records import Batch
from medray.stream import Fact, Roster
from medray.stream.clips import ClipSet, spread

Array = npt.NDArray[Any]
# Clips (N, T, H, W) as stored to what a network is fed with.
Encode = Callable[[Array], Array]

ORDER = "train.clips"
# Frames beyond these are read again each time.
KEPT_BYTES = 2 * 2**30


class ClipRoster(Roster):
    """The clips of a split or of several, `frames` of each, evenly; a batch of images is of clips.

    Once it is told what to `encode_with` they are what that makes of them, made once and kept.
    """

    def __init__(self, clips: ClipSet, split: str | Sequence[str], frames: int) -> None:
        self.clips, self.frames = clips, frames
        self.name, self.urls, self.set_names = clips.url, (clips.url,), (clips.index.name,)
        self._splits = (split,) if isinstance(split, str) else tuple(split)
        self.split, self.classes = "+".join(self._splits), clips.classes
        self.channels, self.size_px, self.bits = 1, clips.size_px, clips.bits
        self.facts = tuple(self._read())
        self.encode_with(None)

    def _read(self) -> Iterator[Fact]:
        facts = [fact for split in self._splits for fact in self.clips.facts(split)]
        for number, fact in enumerate(facts):
            if fact.frames < 1:
                raise DataError("a clip has no frame", code="MR-D036", where=fact.key)
            yield Fact(
                place=(0, 0, number),
                key=fact.key,
                label=fact.label,
                labels=fact.labels,
                patient=fact.patient,
                source_sha256=fact.source_sha256,
            )

    def encode_with(self, encode: Encode | None) -> None:
        """What makes rows of clips from now on (None: they stay as stored)."""
        self.encode = encode
        self._rows: dict[str, Array] = {}
        self._bytes = 0

    def by_source(self, facts: Iterable[Fact]) -> list[tuple[str, list[Fact]]]:
        """As of any roster; there is one source."""
        return [(self.set_names[0], list(facts))]

    def images(self, facts: Sequence[Fact], batch: int = 64) -> Iterator[Array]:
        """The clips of `facts` in their order, `(N, T, H, W)` as stored, or what was made of
        them."""
        for first in range(0, len(facts), batch):
            yield self.rows(facts[first : first + batch])

    def rows(self, facts: Sequence[Fact]) -> Array:
        """All of `facts` at once."""
        return np.stack([self._row(fact) for fact in facts])

    def _row(self, fact: Fact) -> Array:
        if fact.key in self._rows:
            return self._rows[fact.key]
        frames_THW = self.picked(fact)
        row = frames_THW if self.encode is None else self.encode(frames_THW[None])[0]
        if self.encode is not None or self._bytes + row.nbytes <= KEPT_BYTES:
            self._rows[fact.key], self._bytes = row, self._bytes + row.nbytes
        return row

    def picked(self, fact: Fact) -> Array:
        """The frames that are looked at, (T, H, W) as stored."""
        frames_THW = self.clips.read(fact.key).frames_THW
        return frames_THW[spread(len(frames_THW), self.frames)]


class ClipBatches:
    """This rank's part of batches of clips, each epoch a permutation, for `medray.train.loop`."""

    def __init__(
        self, roster: ClipRoster, facts: Sequence[Fact], seed: int, rank: int = 0, world: int = 1
    ) -> None:
        if not facts:
            raise DataError("no clip to train on", code="MR-D070", where=roster.name)
        self._roster, self._facts, self._seed = roster, tuple(facts), seed
        self._rank, self._world = rank, world
        self._images = 0
        self._order: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def __enter__(self) -> ClipBatches:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def next(self, batch_images: int) -> Batch:
        """This rank's part of the next `batch_images` clips."""
        part = batch_images // self._world
        first = self._images + self._rank * part
        self._images += batch_images
        some = [self._facts[self._place(first + n)] for n in range(part)]
        return Batch(
            keys=tuple(fact.key for fact in some),
            images_NCHW=self._roster.rows(some),
            labels_N=np.full(part, -1),
            records=[{"label": fact.label, "labels": fact.labels} for fact in some],
            first_index=first,
        )

    def _place(self, image: int) -> int:
        epoch, at = divmod(image, len(self._facts))
        if self._order[0] != epoch:
            self._order = epoch, rng.permutation(self._seed, ORDER, epoch, len(self._facts))
        return int(self._order[1][at])

    def state(self) -> dict[str, Any]:
        """The position, and which clips they are."""
        keys = "\n".join(fact.key for fact in self._facts)
        return {"images": self._images, "clips": hashlib.sha256(keys.encode()).hexdigest()}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to where `state` was taken; UsageError where the clips are others."""
        if state.get("clips") != self.state()["clips"]:
            raise UsageError(
                "the clips to go on with are not those that the run began with",
                hint="give the same set and the same patients, or start a new run",
            )
        self._images = int(state["images"])
