"""Small sets of clips whose findings can be seen, and runs of jobs/classify.py on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from jobs import classify
from medray import log
from medray.records import Sample
from medray.shards import write_set

FINDINGS = ("left", "right", "rare")
PX = 32
SMALL = (
    *("--clips", "--size-px", "32", "--width", "8", "--frames", "4", "--units", "4"),
    *("--batch", "8", "--total-images", "320", "--snapshot-images", "80", "--lr", "0.01"),
    *("--ema-half-life-images", "20", "--backend", "local", "--threads-per-worker", "1"),
    *("--interval-draws", "40"),
)


def clips(
    split: str, count: int, *, unknown: Mapping[str, object] | None = None, frames: int = 6
) -> Iterator[Sample]:
    """Noise with a bright square in some frames, left or right or both; one clip a patient.

    `unknown` replaces labels. Of twelve clips one has the rare finding: two squares in one frame.
    """
    for number in range(count):
        generator = np.random.default_rng([number, len(split)])
        pixels_THW = generator.integers(0, 60, (frames, PX, PX))
        left, right, rare = number % 2, number // 2 % 2, int(number % 12 == 5)
        for there, column in ((left, 4), (right, 20)):
            if there:
                pixels_THW[frames // 2 :, 8 : 16 + 8 * rare, column : column + 8] += 150
        labels = {"left": left, "right": right, "rare": rare, **(unknown or {})}
        yield Sample(
            key=f"{split}{number}",
            image=pixels_THW.astype(np.uint8),
            labels=labels,  # type: ignore[arg-type]
            patient=f"{split}-p{number}",
            split=split,
            frames=frames,
            slice_mm=3.0,
        )


def made(url: Path, *parts: Iterator[Sample]) -> str:
    """A set of clips of these parts."""
    samples = (sample for part in parts for sample in part)
    write_set(url, samples, name="clips", classes=FINDINGS, size_px=PX, encoding="raw")
    return str(url)


def run(folder: Path, *more: str) -> int:
    """Trains in `folder`; the exit code."""
    code = classify.main([*SMALL, "--run-dir", str(folder), "--json", *more])
    log.setup()
    return code
