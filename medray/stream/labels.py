"""How many samples of each class there are, by the labels in the idx files; no image is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medray.stream.cache import ShardCache
from medray.stream.loader import CACHE_BYTES, united
from medray.stream.sets import OpenSet, Source


def count_labels(
    sources: Sequence[Source], split: str, cache_dir: str | Path | None = None
) -> dict[str, int]:
    """Samples by class, all sources together: every class that `Stream` knows, in its order.

    A sample counts for its `label` alone, not for its findings. DataError as `Stream`.
    """
    cache = ShardCache(cache_dir, CACHE_BYTES)
    sets = [OpenSet(source, split, cache) for source in sources]
    counts = dict.fromkeys(united([opened.index.classes for opened in sets]), 0)
    for opened in sets:
        for shard in range(len(opened.shards)):
            for label in opened.labels(shard):
                if label in counts:
                    counts[label] += 1
    return counts
