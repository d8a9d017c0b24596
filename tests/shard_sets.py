"""Small sets of shards for tests: random images of known content, written in a moment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medray.records import Sample, ShardIndex
from medray.shards import write_set
from medray.stream import Source, Stream

CLASSES = ("clear", "opacity", "rare")
Array = npt.NDArray[Any]


def image(number: int, px: int = 16, bits: int = 8, channels: int = 1) -> Array:
    """Image `number`: random, so that no two are alike."""
    generator = np.random.default_rng(number)
    shape = (px, px) if channels == 1 else (px, px, channels)
    return generator.integers(0, 2**bits, shape).astype(np.uint8 if bits == 8 else np.uint16)


def samples(count: int, split: str = "train", masks: bool = False, **form: int) -> Iterator[Sample]:
    """Samples 0 to `count`, every seventh without a label."""
    for number in range(count):
        pixels = image(number, **form)
        flat = pixels if pixels.ndim == 2 else pixels[..., 0]
        yield Sample(
            key=f"source{number}",
            image=pixels,
            label=None if number % 7 == 6 else CLASSES[number % 3],
            split=split,
            patient=f"p{number // 2}",
            mask=(flat > 99).astype(np.uint8) * np.uint8(255) if masks else None,
        )


def make_set(
    url: str | Path,
    count: int = 20,
    *,
    encoding: str = "png",
    per_shard: int = 8,
    masks: bool = False,
    split: str = "train",
    **form: int,
) -> ShardIndex:
    """Writes a set of `count` samples."""
    return write_set(
        url,
        samples(count, split, masks, **form),
        name="small",
        classes=CLASSES,
        size_px=form.get("px", 16),
        encoding=encoding,
        samples_per_shard=per_shard,
    )


def stream(*urls: str | Path, **named: Any) -> Stream:
    """A stream with one thread over sets of equal weight."""
    return Stream([Source(url) for url in urls], **{"threads": 1, "prefetch": 1, **named})


def drain(batches: Stream, images: int, batch: int = 4) -> list[tuple[str, bytes]]:
    """(key, pixels) of the next images, in order."""
    found: list[tuple[str, bytes]] = []
    while len(found) < images:
        made = batches.next(batch)
        found += [(key, made.images_NCHW[i].tobytes()) for i, key in enumerate(made.keys)]
    return found
