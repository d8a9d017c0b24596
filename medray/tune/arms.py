"""What each arm does to the real training rows: nothing, weights, or synthetic rows beside them.

Rows here are standardised by the real training rows, and samplers are fitted on those rows alone:
those of the fraction, without validation, without test.

Shape letters: N rows, M synthetic rows, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medray import rng
from medray.errors import UsageError
from medray.sample import features as samplers
from medray.train import targets
from medray.tune.data import Features, Numbers, Probabilities
from medray.tune.spaces import NEEDS_ARCHIVE, SYNTHETIC, Settings

# Candidates for each synthetic row wanted, where a threshold drops some; the archive has its own.
SURPLUS = 4
NEIGHBOURS = 5
MOST_WEIGHT = 20.0
RANK = 32

Pair = tuple[Features, Numbers]
Judge = Callable[[Features], Probabilities]


@dataclass(frozen=True)
class Real:
    """The real training rows of one part, standardised; how many classes; the part's seed."""

    features_ND: Features
    labels_N: Numbers
    classes: int
    seed: int

    @property
    def counts_K(self) -> Numbers:
        """Rows of each class."""
        return np.bincount(self.labels_N, minlength=self.classes).astype(np.int64)


@dataclass(frozen=True)
class Added:
    """Synthetic rows, and how many were wanted and looked at."""

    features_MD: Features
    labels_M: Numbers
    wanted: int
    looked_at: int


Candidates = Callable[[Numbers], Pair]


def class_weights(labels_N: Numbers, classes: int) -> npt.NDArray[np.float64]:
    """Inverse frequency, (K,), as classifiers of images weigh."""
    truth_NK = np.eye(classes, dtype=np.int8)[labels_N]
    found: npt.NDArray[np.float64] = targets.weights(truth_NK, False, MOST_WEIGHT)[1]
    return found


def wanted_of(counts_K: Numbers, ratio: float, of: str = "minority") -> Numbers:
    """Synthetic rows of each class: `ratio` for each real one of the minority classes (or all).

    A class is of the minority if it has fewer rows than the largest; where all are equal, every
    class is one.
    """
    minority_K = counts_K < counts_K.max()
    if of == "all" or not minority_K.any():
        minority_K = counts_K > 0
    wanted_K: Numbers = np.floor(counts_K * minority_K * ratio + 0.5).astype(np.int64)
    return wanted_K


def add(
    real: Real,
    settings: Settings,
    candidates: Candidates,
    judge: Judge | None,
    ratio_of: str = "minority",
    least: int = 1,
) -> Added:
    """The synthetic rows of an arm: the first of its candidates that `judge` takes for their class.

    With a threshold of 0 every candidate is taken. Fewer than wanted where they run out; none of a
    class with fewer than `least` real rows.
    """
    wanted_K = wanted_of(real.counts_K, settings["ratio"], ratio_of)
    wanted_K = np.where(real.counts_K >= least, wanted_K, 0)
    threshold = settings.get("threshold", 0.0)
    asked_K = wanted_K * (SURPLUS if threshold else 1)
    labels_M = np.repeat(np.arange(len(asked_K)), asked_K).astype(np.int64)
    dims = real.features_ND.shape[1]
    if not len(labels_M):
        return Added(np.empty((0, dims), np.float32), labels_M, 0, 0)
    found_MD, found_M = candidates(labels_M)
    kept_M = np.ones(len(found_M), np.bool_)
    if threshold and judge is not None:
        kept_M = judge(found_MD)[np.arange(len(found_M)), found_M] >= threshold
    for k, wanted in enumerate(wanted_K.tolist()):
        own = np.flatnonzero(kept_M & (found_M == k))
        kept_M[own[wanted:]] = False
    return Added(found_MD[kept_M], found_M[kept_M], int(wanted_K.sum()), len(found_M))


def fitted(arm: str, real: Real, acgan: Mapping[str, Any] | None = None) -> Candidates:
    """What draws an arm's candidates of given classes, fitted on the real rows.

    `acgan` are a GAN's settings (`ACGANConfig`). UsageError where a class has too few rows.
    """
    sampler = _sampler(arm, real, acgan or {})
    fitting_N = np.isin(real.labels_N, np.flatnonzero(real.counts_K >= least_of(arm)))
    sampler.fit(real.features_ND[fitting_N], real.labels_N[fitting_N])

    def draw(labels_M: Numbers) -> Pair:
        made_MD, made_M = sampler.sample(len(labels_M), real.seed, labels=labels_M)
        return np.asarray(made_MD, np.float32), np.asarray(made_M, np.int64)

    return draw


def least_of(arm: str) -> int:
    """Real rows that a class needs for an arm to draw more of it."""
    return 1 if arm in ("mixup", *NEEDS_ARCHIVE) else 2


def _sampler(arm: str, real: Real, acgan: Mapping[str, Any]) -> Any:
    counts = real.counts_K[real.counts_K >= least_of(arm)]
    k = min(NEIGHBOURS, int(counts.min(initial=NEIGHBOURS + 1)) - 1)
    if arm in ("smote", "adasyn"):
        return (samplers.SMOTE if arm == "smote" else samplers.ADASYN)(max(1, k))
    if arm == "mixup":
        return samplers.Mixup()
    if arm in ("gaussian", "shuffled"):
        return samplers.Gaussian("low_rank", rank=min(RANK, real.features_ND.shape[1]))
    if arm == "acgan":
        from medray.sample.acgan import ACGAN

        return ACGAN(seed=real.seed, **acgan)
    raise UsageError(f"arm {arm!r} draws no rows; those that do: {', '.join(SYNTHETIC)}")


def shuffled(pair: Pair, seed: int) -> Pair:
    """The rows under each other's labels: a control that must not help."""
    order_M = rng.permutation(seed, "tune.arms.shuffled", 0, len(pair[1]))
    return pair[0], pair[1][order_M]


def of_archive(archive: Pair, seed: int) -> Candidates:
    """Candidates out of rows that are there: of each class the first by address, none twice."""

    def draw(labels_M: Numbers) -> Pair:
        order = rng.permutation(seed, "tune.arms.archive", 0, len(archive[1]))
        chosen = [
            order[archive[1][order] == k][:count]
            for k, count in enumerate(np.bincount(labels_M).tolist())
        ]
        rows = np.sort(np.concatenate(chosen))
        return archive[0][rows], archive[1][rows]

    return draw
