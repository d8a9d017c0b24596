"""Several sources in given proportions: which one the i-th image comes from is a pure function.

The proportions become whole numbers over the shortest period in which they are exact. Within it
each source's images are spread evenly, then neighbours are shuffled: whole periods together where
they are short. So any stretch of the run has the asked proportions to within a few images.
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
BLOCK_SLOTS = 1024

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
        # Drawn a block at a time: a short period alone would be a draw for every few images.
        periods = max(1, BLOCK_SLOTS // self.period)
        self._even = np.tile(_spread_evenly(self.counts), periods)
        self._block_counts = np.asarray(self.counts, np.int64) * periods
        # Neighbours end where a period does, so that each period keeps its exact counts.
        period_L, slot_L = np.divmod(np.arange(len(self._even)), self.period)
        short = SHUFFLED_SLOTS // self.period
        self._neighbourhood = (
            period_L // short if short else period_L * self.period + slot_L // SHUFFLED_SLOTS
        )
        self._pattern = lru_cache(maxsize=8)(self._make_pattern)

    def draw(self, first: int, count: int) -> tuple[Positions, Positions]:
        """(source, number among that source's images) of images `first` to `first + count`."""
        image_N = np.arange(first, first + count)
        if len(self.counts) == 1:
            return np.zeros_like(image_N), image_N
        block_N, slot_N = np.divmod(image_N, len(self._even))
        source_N, number_N = np.empty_like(image_N), np.empty_like(image_N)
        for block in np.unique(block_N).tolist():
            here = block_N == block
            source_L, before_L = self._pattern(block)
            source_N[here] = source_L[slot_N[here]]
            earlier = block * self._block_counts[source_N[here]]
            number_N[here] = earlier + before_L[slot_N[here]]
        return source_N, number_N

    def _make_pattern(self, block: int) -> tuple[Positions, Positions]:
        """Each slot's source, and how many of that source come before it, in one block."""
        keys = rng.permutation(self._seed, "stream.mix", block, len(self._even))
        source_L = self._even[np.lexsort((keys, self._neighbourhood))]
        before_L = np.empty_like(source_L)
        for source, count in enumerate(self._block_counts):
            before_L[source_L == source] = np.arange(count)
        return source_L, before_L


def _spread_evenly(counts: Sequence[int]) -> Positions:
    """The sources of one period, each at even distances."""
    source = np.repeat(np.arange(len(counts)), counts)
    place = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    return source[np.lexsort((source, place))]
