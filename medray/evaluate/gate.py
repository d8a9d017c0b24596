"""Making the privacy gate of a real set."""

from __future__ import annotations

from collections.abc import Iterator

from medray import log
from medray.evaluate.memorisation import DEFAULT_EXTRACTOR, Gate
from medray.evaluate.sets import ImageSet, Pixels, Rows, patients_apart
from medray.models.extract import Extractor
from medray.store import Store


def make(
    real_url: str,
    store: Store,
    extractor: str = DEFAULT_EXTRACTOR,
    *,
    train_split: str = "train",
    holdout_split: str = "val",
    seed: int = 0,
) -> str:
    """Fits the gate of a real set's training split, with another split held out; its SHA-256.

    The gate is written into `store`, which is as private as the real images. DataError where a
    patient is in both splits, or the hold-out is too small.
    """
    train, holdout = ImageSet(real_url, train_split), ImageSet(real_url, holdout_split)
    seen: dict[str, list[Rows]] = {train_split: [], holdout_split: []}
    gate = Gate.of_batches(
        _watched(train, seen[train_split]),
        _watched(holdout, seen[holdout_split]),
        len(holdout),
        extractor=Extractor.load(extractor),
        seed=seed,
    )
    first, second = (Rows.joined(parts) for parts in seen.values())
    patients_apart(first, second, (train_split, holdout_split))
    return gate.save(store)


def _watched(images: ImageSet, rows: list[Rows]) -> Iterator[Pixels]:
    done = 0
    with log.Progress(f"gate, {images.split}", len(images)) as progress:
        for pixels, about in images.batches():
            rows.append(about)
            yield pixels
            done += len(pixels)
            progress.update(done)
