"""The order of a set's samples: a pure function of (seed, epoch), whatever the number of ranks.

Shards are permuted, cut into windows of `WINDOW_SHARDS`, and the samples of each window permuted.
So a set of few shards is shuffled whole, and of a large one about two windows are in use at a time,
which bounds a cache of remote shards. Nothing but a position has to be saved.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from medray import rng

WINDOW_SHARDS = 16
_WINDOWS_KEPT = 4
_WINDOW_BITS = 24

Positions = npt.NDArray[np.int64]


class Order:
    """Where the i-th sample of a source lies, for i counted over all epochs. Thread-safe.

    `kept` names the only samples to give, shard by shard; a shard may keep none.
    """

    def __init__(
        self,
        seed: int,
        source: int,
        shard_samples: Sequence[int],
        kept: Sequence[Positions] | None = None,
    ) -> None:
        self._seed, self._kept_samples = seed, kept
        if kept is not None:
            shard_samples = [len(samples) for samples in kept]
        self._streams = f"stream.shards.{source}", f"stream.samples.{source}"
        self._samples = np.asarray(shard_samples, np.int64)
        self.samples_per_epoch = int(self._samples.sum())
        assert self.samples_per_epoch > 0, "an order needs at least one sample"
        self._starts = lru_cache(maxsize=4)(self._window_starts)
        self._kept: OrderedDict[tuple[int, int], tuple[Positions, Positions]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def kept_digest(self) -> str:
        """A digest of which samples were chosen; empty where all are."""
        if self._kept_samples is None:
            return ""
        text = json.dumps([samples.tolist() for samples in self._kept_samples])
        return f" of {hashlib.sha256(text.encode()).hexdigest()}"

    def locate(self, index_N: Positions) -> tuple[Positions, Positions]:
        """(shard number, sample number in it) of the samples `index_N`, counted over all epochs."""
        shard_N, sample_N = np.empty_like(index_N), np.empty_like(index_N)
        epoch_N, place_N = np.divmod(index_N, self.samples_per_epoch)
        for epoch in np.unique(epoch_N).tolist():
            starts = self._starts(epoch)
            window_N = np.searchsorted(starts, place_N, side="right") - 1
            for window in np.unique(window_N[epoch_N == epoch]).tolist():
                here = (epoch_N == epoch) & (window_N == window)
                shards, samples = self._window(epoch, window)
                inside = place_N[here] - starts[window]
                shard_N[here], sample_N[here] = shards[inside], samples[inside]
        return shard_N, sample_N

    def _shard_order(self, epoch: int) -> Positions:
        return rng.permutation(self._seed, self._streams[0], epoch, len(self._samples))

    def _window_starts(self, epoch: int) -> Positions:
        """The place in the epoch at which each window begins."""
        if len(self._samples) <= WINDOW_SHARDS:
            return np.zeros(1, np.int64)
        before = np.cumsum(self._samples[self._shard_order(epoch)])
        return np.concatenate([[0], before[WINDOW_SHARDS - 1 : -1 : WINDOW_SHARDS]])

    def _window(self, epoch: int, window: int) -> tuple[Positions, Positions]:
        """The shards and samples of one window, in order; the last few windows are remembered."""
        key = (epoch, window)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = self._make_window(epoch, window)
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > _WINDOWS_KEPT:
                self._kept.popitem(last=False)
        return made

    def _make_window(self, epoch: int, window: int) -> tuple[Positions, Positions]:
        first = window * WINDOW_SHARDS
        shards = self._shard_order(epoch)[first : first + WINDOW_SHARDS]
        counts = self._samples[shards]
        ends = np.cumsum(counts)
        address = (epoch << _WINDOW_BITS) | window
        drawn = rng.permutation(self._seed, self._streams[1], address, int(ends[-1]))
        which = np.searchsorted(ends, drawn, side="right")
        if self._kept_samples is not None:
            samples = np.concatenate([self._kept_samples[shard] for shard in shards])
            return shards[which], samples[drawn]
        return shards[which], drawn - (ends - counts)[which]
