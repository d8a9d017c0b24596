"""A whole set against the gate: its rate of near-copies of training and of hold-out images.

A set passes when rate(train) - rate(hold-out) has a 95% interval that includes 0, or that ends at
0.1% at most. Both rates are against sets of one size: the hold-out, and 100 training subsets as
large as it. A small hold-out makes small subsets, which a generator that replays everything could
slip past; so there the plain share of near-copies, against all training images, must not lie
above what a threshold from so few images lets through by chance.

Shape letters: N images, M training images, A draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medray import rng
from medray.evaluate.memorisation import (
    DRAWS,
    RESOLVED_HOLDOUT,
    Facts,
    Gate,
    nearest_of,
    subsets,
)
from medray.evaluate.resample import TAILS
from medray.evaluate.similarity import Pixels, training_of
from medray.metrics import intervals
from medray.store import Store

Arrays = dict[str, npt.NDArray[Any]]
TRAIN, HOLDOUT = "train", "holdout"
ALLOWED_EXCESS = 0.001


@dataclass(frozen=True)
class Pair:
    """The gate, and its counterpart: the hold-out's images at the same thresholds."""

    gate: Gate
    holdout: Gate

    @classmethod
    def of(cls, gate: Gate, holdout: Iterable[Pixels]) -> Pair:
        """A gate with the images it was held against."""
        scale = (gate.training.mean_E, gate.training.deviation_E)
        return cls(
            gate, Gate(gate.facts, training_of(holdout, gate.extractor, scale), gate.extractor)
        )

    def save(self, store: Store) -> None:
        """Writes both."""
        self.gate.save(store.child(TRAIN))
        self.holdout.save(store.child(HOLDOUT))

    @classmethod
    def load(cls, url: str) -> Pair:
        """What `save` wrote."""
        return cls(*(Gate.load(f"{url}/{name}") for name in (TRAIN, HOLDOUT)))

    @property
    def sha256(self) -> str:
        """A digest of both."""
        return hashlib.sha256((self.gate.sha256 + self.holdout.sha256).encode()).hexdigest()

    def judge(self, images: Pixels) -> Arrays:
        """Per image: the gate's verdict, and whether it is a copy at equal sizes of both sets.

        `copy`, `similarity`, `cosine`, `nearest`; `in_subsets` for each subset (N, A), as bits;
        `in_holdout`.
        """
        facts, gate = self.gate.facts, self.gate
        size = min(len(gate.training), len(self.holdout.training))
        inside_AM = subsets(len(gate.training), size, facts.seed)
        # A hold-out larger than the training set is cut to its size, as the first subset of it.
        kept_H = subsets(len(self.holdout.training), size, facts.seed)[0]
        rows = []
        both = zip(gate.similarities(images), self.holdout.similarities(images), strict=True)
        for of_train, of_holdout in both:
            hits_M, held_H = gate.too_like(*of_train), gate.too_like(*of_holdout)
            bits = np.packbits(inside_AM[:, hits_M].any(axis=1))
            rows.append((*nearest_of(*of_train, facts), bits, bool((held_H & kept_H).any())))
        columns = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
        return {
            name: np.array(column, kind)
            for (name, kind), column in zip(COLUMNS.items(), columns, strict=True)
        }


COLUMNS: dict[str, Any] = {
    "copy": np.bool_,
    "similarity": np.float32,
    "cosine": np.float32,
    "nearest": np.int64,
    "in_subsets": np.uint8,
    "in_holdout": np.bool_,
}


@dataclass(frozen=True)
class Audit:
    """What the gate found in a whole set."""

    images: int
    near_copies: int
    near_copies_ci: tuple[float, float]
    train_rate: float
    holdout_rate: float
    excess: float
    excess_ci: tuple[float, float]
    by_chance: float

    @property
    def passes(self) -> bool:
        """Whether training images are met no more often than hold-out images are."""
        low, high = self.excess_ci
        alike = low <= 0 <= high or high <= ALLOWED_EXCESS
        return alike and self.near_copies_ci[0] <= self.by_chance


def share_by_chance(facts: Facts) -> float:
    """The share of images that copy nobody and are flagged all the same, at most (97.5%).

    A threshold at the highest of n scores is passed by a share of 1 - U^(1/n) of others, U uniform;
    there are two. At the resolved percentile the rates decide alone: 1.
    """
    if facts.holdout_images >= RESOLVED_HOLDOUT:
        return 1.0
    return float(min(1.0, 2 * (1 - TAILS[0] ** (1 / facts.holdout_images))))


def audit(found: Arrays, facts: Facts, *, seed: int, draws: int) -> Audit:
    """The verdict on a set from what `Pair.judge` gave for its images; ValueError for none.

    The interval of the difference has both chances in it: which images were drawn (bootstrap), and
    which training images a subset holds, as the hold-out too is one draw of patients.
    """
    in_subsets_NA = np.unpackbits(found["in_subsets"], axis=1)[:, :DRAWS].astype(np.float64)
    in_holdout_N = found["in_holdout"].astype(np.float64)
    count, copies = len(in_holdout_N), int(found["copy"].sum())
    rows_BN = rng.integers(seed, "evaluate.audit", np.arange(draws), count, 0, count)
    excess_B = [
        (in_subsets_NA[rows_N, draw % DRAWS] - in_holdout_N[rows_N]).mean()
        for draw, rows_N in enumerate(rows_BN)
    ]
    low, high = np.quantile(excess_B, TAILS)
    return Audit(
        count,
        copies,
        intervals.binomial_interval(copies, count),
        float(in_subsets_NA.mean()),
        float(in_holdout_N.mean()),
        float(in_subsets_NA.mean() - in_holdout_N.mean()),
        (float(low), float(high)),
        share_by_chance(facts),
    )


def closest(found: Arrays, count: int) -> npt.NDArray[np.int64]:
    """The numbers of those most like a training image: copies first, then by the higher measure."""
    likeness_N = np.maximum(found["similarity"], found["cosine"])
    order_N = np.lexsort((np.arange(len(likeness_N)), -likeness_N, ~found["copy"]))
    return order_N[:count].astype(np.int64)
