"""The real images of a packed set that an image is most like: what it may be a copy of.

Likeness is the correlation of the fine structure of small thumbnails, whole and without margins, by
which `pack` finds near-duplicates (`medray.pack.thumbs`). No network takes part, so there is none
that a generator could have learnt to please. 1 is the same picture, up to size and grey curve.

Shape letters: N real images, Q images asked about, F forms of a thumbnail, D its numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medray import log
from medray.pack import thumbs
from medray.pack.config import PackConfig
from medray.records import Sample
from medray.stream.cache import ShardCache
from medray.stream.sets import OpenSet, Source
from serve.records import Array

# What generators have seen.
SPLIT = "train"
# From here on `pack` calls two pictures nearly the same.
COPY: float = PackConfig.model_fields["near_similarity"].default
ROWS = 4096
CACHE_BYTES = 4 << 30


@dataclass(frozen=True)
class Match:
    """A real image, and how like it is: -1 to 1."""

    sample: Sample
    similarity: float


class Likeness:
    """The first `most` images of a set's training split, by what their thumbnails show.

    Thread-safe. Nothing is like anything until `look` has ended; then it is `ready`.
    """

    def __init__(self, url: str, most: int) -> None:
        """Opens the set; DataError for one that cannot be read or has no such split."""
        self._set = OpenSet(Source(url), SPLIT, ShardCache(None, CACHE_BYTES))
        index = self._set.index
        self.size_px, self.channels, self._bits = index.size_px, index.channels, index.bits
        self.images = min(most, sum(shard.samples for shard in self._set.shards))
        self._places = [
            (number, row)
            for number, shard in enumerate(self._set.shards)
            for row in range(shard.samples)
        ][: self.images]
        self._thumbs_NFD: npt.NDArray[np.int16] | None = None
        self._lengths_NF: npt.NDArray[np.float32] = np.zeros((0, thumbs.FORMS), np.float32)
        self._stopped = threading.Event()

    @property
    def ready(self) -> bool:
        """Whether all images were looked at."""
        return self._thumbs_NFD is not None

    def look(self) -> None:
        """Looks at every image, thousands of small ones a second; DataError for a damaged one."""
        made = []
        for at in range(0, self.images, thumbs.AT_ONCE):
            some = self._places[at : at + thumbs.AT_ONCE]
            pictures = [thumbs.reduced(self._sample(place).image) for place in some]
            made.append(thumbs.thumbnails(pictures, self._bits))
            if self._stopped.is_set():
                return
        self._lengths_NF = np.concatenate([_lengths(part) for part in made])
        self._thumbs_NFD = np.concatenate(made)
        log.event("real", f"{self.images:,} real images can be compared with")

    def stop(self) -> None:
        """Ends `look` before it is done."""
        self._stopped.set()

    def nearest(self, images: Sequence[Array], count: int) -> list[list[Match]]:
        """The likest real images of each image, uint8 or uint16 of the set's size; likest first."""
        alike_QN = self._similarities(images)
        order_QN = np.argsort(-alike_QN, axis=1, kind="stable")[:, :count]
        return [
            [Match(self._sample(self._places[n]), float(alike_N[n])) for n in order_N]
            for alike_N, order_N in zip(alike_QN, order_QN, strict=True)
        ]

    def _similarities(self, images: Sequence[Array]) -> npt.NDArray[np.float32]:
        """Of each image with each real one (Q, N); of several forms the likest counts."""
        assert self._thumbs_NFD is not None, "asked once it is ready"
        asked_QFD = np.concatenate([_thumbnail(image) for image in images])
        unit_QFD = asked_QFD / _lengths(asked_QFD)[..., None]
        alike_QN = np.empty((len(images), self.images), np.float32)
        for at in range(0, self.images, ROWS):
            real_NFD = self._thumbs_NFD[at : at + ROWS].astype(np.float32)
            products_FQN = np.einsum("qfd,nfd->fqn", unit_QFD, real_NFD, optimize=True)
            products_FQN /= self._lengths_NF[at : at + ROWS].T[:, None]
            alike_QN[:, at : at + ROWS] = products_FQN.max(axis=0)
        return alike_QN

    def _sample(self, place: tuple[int, int]) -> Sample:
        number, row = place
        reader, data = self._set.fetch(number, row)
        return reader.decode(row, data)


def _thumbnail(image: Array) -> npt.NDArray[np.int16]:
    return thumbs.thumbnails([thumbs.reduced(image)], 8 * image.dtype.itemsize)


def _lengths(thumbs_NFD: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """Of each form (N, F); 1 for a picture without structure, which so is like no other."""
    lengths_NF = np.linalg.norm(thumbs_NFD.astype(np.float32), axis=2)
    return np.asarray(np.maximum(lengths_NF, 1), np.float32)
