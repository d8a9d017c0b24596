"""The privacy gate: which images are near-copies of training images (the project's one definition).

An image's score is its best pixel correlation and its best embedding cosine with any training
image, over mirroring and small shifts. The thresholds come from a patient-disjoint hold-out, which
shows how alike images of different people are: the 99.9th percentile of the hold-out's scores
against training subsets of its own size (100 draws), or, with fewer than 2,000 hold-out images,
the highest score of any against the whole training set, at a resolution of 1/n. An image above
either threshold is a near-copy.

A gate that lets planted copies pass says nothing, so `fit` plants some (mirrored, shifted, noisy,
of another contrast) and counts those it catches: below 90% the gate `audits` nothing.

Shape letters: N images, M training images, A draws.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from medray import rng
from medray.errors import DataError, UsageError
from medray.evaluate import control
from medray.evaluate.similarity import Floats, Pixels, Training, similarities, training_of
from medray.models.extract import Extractor
from medray.store import Store

SCHEMA = "medray.gate/1"
TENSORS, FACTS = "gate.safetensors", "gate.json"
DEFAULT_EXTRACTOR = "random:0"
QUANTILE, DRAWS = 0.999, 100
# From here on the percentile is resolved; below, the hold-out's highest similarity is taken.
RESOLVED_HOLDOUT = 2000
FEWEST_HOLDOUT = 10
CAUGHT_AT_LEAST = 0.9
PLANTED = 100
SMALLEST_PX = 8
AT_ONCE = 256


@dataclass(frozen=True)
class Verdict:
    """What the gate says of N images; `similarity_N` is the best pixel correlation.

    `nearest_N` numbers the training image of that correlation (of the cosine, where only the cosine
    is above its threshold): it names a training image, so it stays out of what is given away.
    """

    copies_N: npt.NDArray[np.bool_]
    similarity_N: Floats
    cosine_N: Floats
    nearest_N: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Facts:
    """What a gate is, but for the training images it compares with."""

    size_px: int
    channels: int
    train_images: int
    holdout_images: int
    pixel_threshold: float
    cosine_threshold: float
    rule: str
    resolution: float
    seed: int
    planted: int
    caught: dict[str, float]
    extractor: dict[str, Any]


class Gate:
    """Judges images against a training set; made once, the same in every worker."""

    def __init__(self, facts: Facts, training: Training, extractor: Extractor) -> None:
        self.facts, self.training, self.extractor = facts, training, extractor

    # --- making one ---------------------------------------------------------------------------

    @classmethod
    def fit(
        cls, train: Pixels, holdout: Pixels, *, extractor: Extractor | None = None, seed: int = 0
    ) -> Gate:
        """A gate from uint8 images (N, H, W) or (N, H, W, 3) of training and hold-out patients.

        Without an extractor the embedding is that of an untrained network. DataError where the two
        differ in size, or the hold-out has fewer than 10 images.
        """
        return cls.of_batches(
            _pieces(train), _pieces(holdout), len(holdout), extractor=extractor, seed=seed
        )

    @classmethod
    def of_batches(
        cls,
        train: Iterable[Pixels],
        holdout: Iterable[Pixels],
        holdout_images: int,
        *,
        extractor: Extractor | None = None,
        seed: int = 0,
    ) -> Gate:
        """As `fit`, with one batch of images in memory at a time (and 100 training images)."""
        extractor = extractor or Extractor.load(DEFAULT_EXTRACTOR)
        sample = control.Sample(PLANTED, seed)
        training = training_of(sample.watching(map(_checked, train)), extractor)
        best = _Best(len(training), holdout_images, seed)
        for images in map(_checked, holdout):
            if images.shape[1:] != sample.shape:
                raise _different(images.shape[1:], sample.shape, "the hold-out's images")
            for pixel_M, cosine_M in similarities(images, training, extractor):
                best.add(pixel_M, cosine_M)
        facts = Facts(
            size_px=sample.shape[0],
            channels=3 if len(sample.shape) == 3 else 1,
            train_images=len(training),
            seed=seed,
            planted=0,
            caught={},
            extractor=extractor.record(),
            **best.thresholds(),
        )
        return cls(facts, training, extractor)._controlled(sample)

    def _controlled(self, sample: control.Sample) -> Gate:
        """This gate with what it caught of the planted copies."""
        caught, planted = {}, 0
        for kind in control.KINDS:
            copies = control.near_copies(sample.images(), kind, self.facts.seed)
            caught[kind] = float(self.judge(copies).copies_N.mean())
            planted = len(copies)
        facts = Facts(**{**asdict(self.facts), "planted": planted, "caught": caught})
        return Gate(facts, self.training, self.extractor)

    # --- judging ------------------------------------------------------------------------------

    @property
    def audits(self) -> bool:
        """Whether it caught at least 90% of the planted copies: else nothing is audited by it."""
        return self.facts.caught.get("all", 0.0) >= CAUGHT_AT_LEAST

    def judge(self, images: Pixels) -> Verdict:
        """The verdict on uint8 images (N, H, W) or (N, H, W, 3), each by itself.

        DataError for images of another size or channels than the training images.
        """
        found = [nearest_of(*rows, self.facts) for rows in self.similarities(images)]
        copies, pixel, cosine, nearest = zip(*found, strict=True) if found else ((), (), (), ())
        return Verdict(
            np.array(copies, np.bool_),
            np.array(pixel, np.float32),
            np.array(cosine, np.float32),
            np.array(nearest, np.int64),
        )

    def similarities(self, images: Pixels) -> Iterator[tuple[Floats, Floats]]:
        """Of each image: correlation and cosine with every training image, (M,) each."""
        self._check(images)
        return similarities(images, self.training, self.extractor)

    def too_like(self, pixel_M: Floats, cosine_M: Floats) -> npt.NDArray[np.bool_]:
        """Which training images an image with these similarities is too much like, (M,)."""
        found_M: npt.NDArray[np.bool_] = pixel_M > self.facts.pixel_threshold
        return found_M | (cosine_M > self.facts.cosine_threshold)

    def _check(self, images: Pixels) -> None:
        _checked(images)
        px = self.facts.size_px
        wanted = (px, px) if self.facts.channels == 1 else (px, px, 3)
        if images.shape[1:] != wanted:
            raise _different(images.shape[1:], wanted, "the images to judge")

    # --- on disk ------------------------------------------------------------------------------

    @property
    def sha256(self) -> str:
        """A digest of everything that decides a verdict: goes into an archive's plan."""
        tensors = save_tensors({n: t.contiguous() for n, t in self.training.tensors().items()})
        return _digest(self.facts, tensors)

    def save(self, store: Store) -> str:
        """Writes the gate, the facts last; its `sha256`.

        The file holds what it needs of the training images, so it is as private as they are: it
        belongs into a run folder, never into an archive.
        """
        tensors = save_tensors({n: t.contiguous() for n, t in self.training.tensors().items()})
        sha256 = _digest(self.facts, tensors)
        store.write_bytes(TENSORS, tensors)
        body = {
            "schema": SCHEMA,
            "sha256": sha256,
            "extractor_spec": self.extractor.spec,
            **asdict(self.facts),
        }
        store.write_bytes(FACTS, (json.dumps(body, indent=1) + "\n").encode())
        return sha256

    @classmethod
    def load(cls, url: str) -> Gate:
        """The gate that `save` wrote; UsageError where there is none, DataError if damaged."""
        store = Store(url)
        if not store.exists(FACTS):
            raise UsageError(
                f"{store.url} holds no gate (no {FACTS})",
                hint="make one from the training set: medray evaluate --make-gate",
            )
        try:
            body = json.loads(store.read_bytes(FACTS))
            schema, sha256 = body.pop("schema"), body.pop("sha256")
            spec = body.pop("extractor_spec")
            if schema != SCHEMA:
                raise ValueError(f"schema {schema!r}, this version reads {SCHEMA}")
            facts = Facts(**body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(store, f"the gate cannot be read: {error}") from error
        tensors = store.read_bytes(TENSORS)
        if _digest(facts, tensors) != sha256:
            raise _damaged(store, "the gate is not the one that was written (sha256 differs)")
        extractor = Extractor.load(spec)
        if extractor.sha256 != facts.extractor["sha256"]:
            raise _damaged(store, f"the extractor {spec} is not the one the gate was made with")
        return cls(facts, Training.of_tensors(load_tensors(tensors)), extractor)


class _Best:
    """The hold-out's best similarities, to everything or to training subsets of its own size."""

    def __init__(self, train_images: int, holdout_images: int, seed: int) -> None:
        if holdout_images < FEWEST_HOLDOUT:
            raise DataError(
                f"a hold-out of {holdout_images} images sets no threshold; it takes "
                f"{FEWEST_HOLDOUT}, and {RESOLVED_HOLDOUT:,} to resolve the 99.9th percentile",
                code="MR-D304",
                hint="pack the set with a larger validation split (--val)",
            )
        self._count, self._resolved = holdout_images, holdout_images >= RESOLVED_HOLDOUT
        everything_1M = np.ones((1, train_images), np.bool_)
        drawn = subsets(train_images, holdout_images, seed) if self._resolved else everything_1M
        self._inside_AM = drawn
        self._best: list[tuple[Floats, Floats]] = []

    def add(self, pixel_M: Floats, cosine_M: Floats) -> None:
        """One hold-out image."""
        self._best.append(
            (best_inside(pixel_M, self._inside_AM), best_inside(cosine_M, self._inside_AM))
        )

    def thresholds(self) -> dict[str, Any]:
        """The thresholds and how they came about."""
        if len(self._best) != self._count:
            raise ValueError(
                f"{self._count} hold-out images were announced, {len(self._best)} came"
            )
        pixel_NA, cosine_NA = (np.stack(side) for side in zip(*self._best, strict=True))
        level = QUANTILE if self._resolved else 1.0
        size = f"{DRAWS} training subsets of the hold-out's size"
        rule = (
            f"99.9th percentile against {size}"
            if self._resolved
            else "the hold-out's highest similarity to the training set"
        )
        return {
            "holdout_images": self._count,
            "pixel_threshold": float(np.quantile(pixel_NA, level)),
            "cosine_threshold": float(np.quantile(cosine_NA, level)),
            "rule": rule,
            "resolution": 1 / self._count,
        }


def subsets(train_images: int, size: int, seed: int) -> npt.NDArray[np.bool_]:
    """Which training images are in each of 100 random subsets of `size`: (A, M)."""
    inside_AM = np.zeros((DRAWS, train_images), np.bool_)
    for draw in range(DRAWS):
        order_M = rng.permutation(seed, "evaluate.gate.subsets", draw, train_images)
        inside_AM[draw, order_M[:size]] = True
    return inside_AM


def best_inside(row_M: Floats, inside_AM: npt.NDArray[np.bool_]) -> Floats:
    """The highest value of a row within each subset, (A,)."""
    best_A: Floats = np.where(inside_AM, row_M, -np.inf).max(axis=1).astype(np.float32)
    return best_A


def nearest_of(pixel_M: Floats, cosine_M: Floats, facts: Facts) -> tuple[bool, float, float, int]:
    """Copy or not, both similarities, the number of the nearest training image."""
    pixel, cosine = float(pixel_M.max()), float(cosine_M.max())
    by_pixel, by_cosine = pixel > facts.pixel_threshold, cosine > facts.cosine_threshold
    row_M = cosine_M if by_cosine and not by_pixel else pixel_M
    return by_pixel or by_cosine, pixel, cosine, int(row_M.argmax())


def _digest(facts: Facts, tensors: bytes) -> str:
    """Without the extractor's path, which says nothing about it that its digest does not."""
    text = json.dumps(asdict(facts), sort_keys=True).encode()
    return hashlib.sha256(text + hashlib.sha256(tensors).digest()).hexdigest()


def _pieces(images: Pixels) -> Iterator[Pixels]:
    return (images[first : first + AT_ONCE] for first in range(0, len(images), AT_ONCE))


def _checked(images: Pixels) -> Pixels:
    square = images.ndim in (3, 4) and images.shape[1] == images.shape[2] >= SMALLEST_PX
    colour = images.ndim == 3 or images.shape[-1] == 3
    if images.dtype != np.uint8 or not square or not colour:
        raise ValueError(
            f"images must be uint8 of shape (N, px, px) or (N, px, px, 3), px at least "
            f"{SMALLEST_PX}, got {images.dtype} of shape {images.shape}"
        )
    return images


def _different(got: tuple[int, ...], wanted: tuple[int, ...], what: str) -> DataError:
    return DataError(
        f"{what} are {_words(got)}, the training images {_words(wanted)}",
        code="MR-D307",
        hint="pack both sets with the same --size-px and --channels",
    )


def _words(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} px {'colour' if len(shape) == 3 else 'grey'}"


def _damaged(store: Store, what: str) -> DataError:
    return DataError(what, code="MR-D308", where=store.url, hint="make the gate again")
