"""Several sources in given proportions: which one the i-th image comes from is a pure function.

The proportions become whole numbers over the shortest period in which they are exact. Within a
period each source's images are spread evenly, then shuffled among `SHUFFLED_SLOTS` neighbours, so
any stretch of the run has the asked proportions to within a few images.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from medray import rng
from medray.errors import UsageError

LONGEST_PERIOD = 10_000
SHUFFLED_SLOTS = 32

Positions = npt.NDArray[np.int64]


def whole_counts(weights: Sequence[float]) -> tuple[int, ...]:
    """The least whole numbers in the proportions of `weights`; UsageError past `LONGEST_PERIOD`."""
    shares = np.asarray(weights, np.float64)
    if not (len(shares) and np.isfinite(shares).all() and (shares > 0).all()):
        raise UsageError(f"weights must be positive numbers, got {list(weights)}")
    shares = shares / shares.sum()
    periods = np.arange(1, LONGEST_PERIOD + 1)
    products = periods[:, None] * shares
    exact = (np.abs(products - np.rint(products)) < 1e-6).all(axis=1)
    if not exact.any():
        raise UsageError(
            f"weights {list(weights)} are exact over no period of {LONGEST_PERIOD} images or fewer",
            hint="give proportions such as 0.7 and 0.3, or 3 and 1",
        )
    return tuple(int(count) for count in np.rint(products[int(np.argmax(exact))]))


class Mix:
    """Which source an image comes from, and which of that source's images it is."""

    def __init__(self, seed: int, weights: Sequence[float]) -> None:
        self._seed = seed
        self.counts = whole_counts(weights)
        self.period = sum(self.counts)
        self._even = _spread_evenly(self.counts)
        self._pattern = lru_cache(maxsize=8)(self._make_pattern)

    def draw(self, first: int, count: int) -> tuple[Positions, Positions]:
        """(source, number among that source's images) of images `first` to `first + count`."""
        image_N = np.arange(first, first + count)
        block_N, slot_N = np.divmod(image_N, self.period)
        source_N, number_N = np.empty_like(image_N), np.empty_like(image_N)
        counts = np.asarray(self.counts, np.int64)
        for block in np.unique(block_N).tolist():
            here = block_N == block
            source_L, before_L = self._pattern(block)
            source_N[here] = source_L[slot_N[here]]
            number_N[here] = block * counts[source_N[here]] + before_L[slot_N[here]]
        return source_N, number_N

    def _make_pattern(self, block: int) -> tuple[Positions, Positions]:
        """Each slot's source, and how many of that source come before it, in one period."""
        keys = rng.permutation(self._seed, "stream.mix", block, self.period)
        neighbours = np.arange(self.period) // SHUFFLED_SLOTS
        source_L = self._even[np.lexsort((keys, neighbours))]
        before_L = np.empty_like(source_L)
        for source, count in enumerate(self.counts):
            before_L[source_L == source] = np.arange(count)
        return source_L, before_L


def _spread_evenly(counts: Sequence[int]) -> Positions:
    """The sources of one period, each at even distances."""
    source = np.repeat(np.arange(len(counts)), counts)
    place = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    return source[np.lexsort((source, place))]
