"""Small reader studies for tests: a real and a synthetic set of shards, and a study of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from jobs.reader_study import main
from medray.evaluate.reader_set import ReaderSet
from medray.records import Provenance, Sample
from medray.shards import write_set
from tests.shard_sets import CLASSES, image


def samples(count: int, synthetic: bool, bits: int, px: int) -> Iterator[Sample]:
    """Samples of three classes; synthetic ones have provenance and are darker."""
    for number in range(count):
        pixels = image(1000 * synthetic + number, px, bits) >> (5 if synthetic else 0)
        plain = Sample(
            key=f"source{number}",
            image=pixels,
            label=CLASSES[number % 3],
            split="train" if synthetic else "test",
            patient=f"p{number // 2}",
        )
        about = Provenance(f"mr1:g:prior:0:{number}", "g", None, 0, number, {}, {}, None, {})
        yield replace(plain, provenance=about) if synthetic else plain


def make_sets(folder: Path, count: int = 40, px: int = 16, bits: tuple[int, int] = (8, 8)) -> None:
    """`real` and `synthetic` below a folder."""
    for synthetic, name in enumerate(("real", "synthetic")):
        write_set(
            folder / name,
            samples(count, bool(synthetic), bits[synthetic], px),
            name=name,
            classes=CLASSES,
            size_px=px,
            samples_per_shard=16,
        )


def run(folder: Path, out: str, *more: str, images: int = 20, mode: str = "rating") -> int:
    """The job over the sets of a folder."""
    sets = ("--real", f"{folder}/real", "--synthetic", f"{folder}/synthetic")
    flags = ("--out", f"{folder}/{out}", "--images", str(images), "--mode", mode)
    return main([*sets, *flags, *more])


def make_study(
    folder: Path, *more: str, images: int = 20, mode: str = "rating", px: int = 16, name: str = "s"
) -> ReaderSet:
    """A study below `folder`, made with its sets."""
    if not (folder / "real").exists():
        make_sets(folder, max(40, images), px)
    assert run(folder, name, *more, images=images, mode=mode) == 0
    return ReaderSet.open(str(folder / name))
