"""A roster whose samples have masks: which of them do, and images with masks of those one names.

Shape letters: N images, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from medray.shards import _members
from medray.stream.decode import Array, Decoder
from medray.stream.roster import Fact, Roster


class MaskRoster(Roster):
    """A roster, and the masks of its samples."""

    def masked(self) -> list[Fact]:
        """The samples that have a mask (an empty one too), in order."""
        return self.where(self._has_mask)

    def _has_mask(self, fact: Fact) -> bool:
        source, shard, sample = fact.place
        members = self._sets[source].reader(shard).rows[sample]["members"]
        return any(extension == _members.MASK for extension, *_ in members)

    def pairs(self, facts: Sequence[Fact], batch: int = 64) -> Iterator[tuple[Array, Array]]:
        """Images `(N, C, H, W)` as stored and masks `(N, H, W)` bool of `facts`, N up to `batch`.

        `facts` are some of `masked()`.
        """
        decoder = Decoder(self.channels, self.size_px, self.bits, self.name)
        for first in range(0, len(facts), batch):
            some = facts[first : first + batch]
            images_NCHW = np.empty((len(some), *decoder.shape_CHW), decoder.dtype)
            masks_NHW = np.zeros((len(some), *decoder.shape_CHW[1:]), np.bool_)
            for number, fact in enumerate(some):
                source, shard, sample = fact.place
                reader, data = self._sets[source].fetch(shard, sample)
                _, mask = decoder.into(images_NCHW[number], reader, sample, data)
                assert mask is not None, f"the sample {fact.key} has no mask"
                masks_NHW[number] = mask != 0
            yield images_NCHW, masks_NHW
