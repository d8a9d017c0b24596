"""Small sets of clips for tests: random frames of known content, written in a moment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medray.records import Sample, ShardIndex
from medray.shards import write_set

FINDINGS = ("abnormal", "acl", "meniscus")
SPLITS = ("train", "train", "train", "val", "test")
Array = npt.NDArray[Any]


def frames(number: int, count: int, px: int = 16, bits: int = 8) -> Array:
    """The frames of clip `number`: random, (count, px, px)."""
    generator = np.random.default_rng(number)
    dtype = np.uint8 if bits == 8 else np.uint16
    return generator.integers(0, 2**bits, (count, px, px)).astype(dtype)


def clip(number: int, count: int, split: str = "train", **form: int) -> Sample:
    """Clip `number` of `count` frames, two clips a patient, the third finding unknown of some."""
    pixels = frames(number, count, **form)
    labels: dict[str, int | None] = {
        "abnormal": int(number % 2 == 0),
        "acl": int(number % 4 == 0),
        "meniscus": None if number % 3 == 0 else 0,
    }
    return Sample(
        key=f"source{number}",
        image=pixels,
        label="acl" if labels["acl"] else "abnormal" if labels["abnormal"] else None,
        labels=labels,
        patient=f"{split}-p{number // 2}",
        split=split,
        mask=(pixels > 99).astype(np.uint8) * np.uint8(255),
        source_sha256=f"{number:064d}",
        spacing_mm=(0.5, 0.5),
        frames=count,
        slice_mm=3.0,
    )


def make_clips(
    url: str | Path,
    lengths: Sequence[int] = (1, 3, 5, 2, 7, 4, 4, 1, 6, 3),
    *,
    encoding: str = "raw",
    per_shard: int = 3,
    **form: int,
) -> ShardIndex:
    """Writes a set of clips of so many frames each, over three splits."""
    samples = (
        clip(number, count, SPLITS[number // 2 % len(SPLITS)], **form)
        for number, count in enumerate(lengths)
    )
    return write_set(
        url,
        samples,
        name="clips",
        classes=FINDINGS,
        size_px=form.get("px", 16),
        encoding=encoding,
        samples_per_shard=per_shard,
    )
