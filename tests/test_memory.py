"""Memory is no matter of how many images there are: ten times as many take no more."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medray import phantoms
from medray.images.png import encode_png
from medray.records import Array, Sample
from medray.shards import write_set
from tests import outcomes
from tests.archive.made_parts import make_generator
from tests.memory import peak_mb

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]
TIMES, GROWTH = 10, 1.05


def fresh(folder: Path) -> str:
    """A new folder below it: a second run must not find what the first one left."""
    return tempfile.mkdtemp(dir=folder)


def noise(number: int, px: int) -> Array:
    return np.random.default_rng(number).integers(0, 255, (px, px), np.uint8)


def smaller(peak: Callable[[int], float], count: int) -> float:
    """The peak of the better of two runs: what else the machine does can only add to it."""
    return min(peak(count), peak(count))


def told(part: str, few_mb: float, many_mb: float) -> None:
    note = f"{many_mb:.0f} MB, {few_mb:.0f} for a tenth of the images"
    more = {"lost": 0, "unit": "files", "recovered_s": None, "wrong": 0, "note": note}
    outcomes.record(part=part, fault="ten times the images", trials=1, **more)


def test_ten_times_the_images_are_packed_in_the_same_memory(tmp_path: Path) -> None:
    few, size_px = 60, 256

    def peak(count: int) -> float:
        source = tmp_path / f"source{count}"
        source.mkdir(exist_ok=True)
        for number in range(count):
            (source / f"{number:05d}.png").write_bytes(encode_png(noise(number, 2 * size_px)))
        flags = ("--size-px", size_px, "--samples-per-shard", 20, "--workers", 0)
        return peak_mb("pack", "--source", source, "--out", fresh(tmp_path), *flags)

    few_mb, many_mb = peak(few), smaller(peak, TIMES * few)
    told("pack", few_mb, many_mb)
    # Of each image a row, a digest and thumbnails stay: under a quarter of its own packed bytes.
    assert many_mb - few_mb <= (TIMES - 1) * few * size_px**2 / 4 / 1e6


def test_ten_times_the_images_are_generated_in_the_same_memory(tmp_path: Path) -> None:
    few, generator = 60, tmp_path / "generator"
    make_generator(generator, final_px=128)

    def peak(count: int) -> float:
        flags = ("--labels", "natural", "--samples-per-shard", 30, "--workers", 0)
        given = ("--generator", generator, "--out", fresh(tmp_path), "--count", count)
        return peak_mb("archive", *given, *flags)

    few_mb, many_mb = peak(few), smaller(peak, TIMES * few)
    told("archive", few_mb, many_mb)
    assert many_mb <= GROWTH * few_mb


def test_ten_times_the_images_are_judged_in_the_same_memory(tmp_path: Path) -> None:
    """As many as --max-images are looked at of any set: the others are not held either."""
    few, px, classes = 400, 128, phantoms.CLASSES["chest"]
    real = [phantoms.chest(0, number, px) for number in range(300)]
    write_set(tmp_path / "real", real, name="real", classes=classes, size_px=px)

    def made(count: int) -> Iterator[Sample]:
        for number in range(count):
            sample = real[number % len(real)]
            yield replace(sample, key=f"k{number}", image=noise(number, px), split="train")

    def peak(count: int) -> float:
        url = fresh(tmp_path)
        write_set(url, made(count), name="made", classes=classes, size_px=px, samples_per_shard=50)
        given = ("--real", tmp_path / "real", "--synthetic", url, "--out", fresh(tmp_path))
        return peak_mb("evaluate", *given, "--bootstrap", 20, "--max-images", 200)

    few_mb, many_mb = peak(few), smaller(peak, TIMES * few)
    told("evaluate", few_mb, many_mb)
    assert many_mb <= GROWTH * few_mb
