"""Can it be told who was trained on? Three attacks, scored on training against hold-out images.

Each gives an image a score that is higher for a training image, if the synthetic images give it
away: GAN-Leaks (Chen et al., CCS 2020), how near the nearest synthetic image is; LOGAN (Hayes et
al., PETS 2019), how synthetic a discriminator finds it that was trained to tell synthetic images
from real ones of neither set; DOMIAS (van Breugel et al., AISTATS 2023), how dense synthetic images
are there over how dense real ones are. All on one embedding; the reference is real images of other
patients.

Shape letters: N rows, D features, E kept directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medray.errors import DataError
from medray.kernels import nearest
from medray.metrics import intervals
from medray.metrics.classification import auroc

Features = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]

FALSE_POSITIVES = (0.01, 0.001)
FEWEST = 20
DIRECTIONS = 16
RIDGE = 1.0
NEWTON_STEPS = 30


@dataclass(frozen=True)
class Rate:
    """The share of training images found at a rate of false alarms; None: not resolvable."""

    false_positives: float
    value: float | None
    ci_low: float | None
    ci_high: float | None


@dataclass(frozen=True)
class Attack:
    """One attack: 0.5 is guessing; `rates` at 1% and 0.1% false alarms."""

    name: str
    members: int
    non_members: int
    auroc: float
    ci_low: float
    ci_high: float
    rates: tuple[Rate, ...]


def attacks(
    members: Features,
    non_members: Features,
    synthetic: Features,
    reference: Features,
    *,
    seed: int,
    draws: int,
) -> list[Attack]:
    """All three attacks; rows are features. DataError where a set has fewer than 20 rows."""
    sets = {
        "training": members,
        "hold-out": non_members,
        "synthetic": synthetic,
        "reference": reference,
    }
    for name, rows_ND in sets.items():
        if len(rows_ND) < FEWEST:
            raise DataError(
                f"membership: {len(rows_ND)} {name} images, it takes {FEWEST}", code="MR-D311"
            )
    candidates = np.concatenate([members, non_members])
    scores = {
        "GAN-Leaks": gan_leaks(candidates, synthetic),
        "LOGAN": logan(candidates, synthetic, reference),
        "DOMIAS": domias(candidates, synthetic, reference),
    }
    return [_scored(name, found_N, len(members), seed, draws) for name, found_N in scores.items()]


def gan_leaks(candidates_ND: Features, synthetic_MD: Features) -> Scores:
    """Less the distance to the nearest synthetic image."""
    distances_N1, _ = nearest(candidates_ND, synthetic_MD, 1)
    return -np.asarray(distances_N1, np.float64)[:, 0]


def logan(candidates_ND: Features, synthetic_MD: Features, reference_MD: Features) -> Scores:
    """The log odds of being synthetic, by a ridge logistic regression on leading directions."""
    project = _Directions(np.concatenate([synthetic_MD, reference_MD]))
    rows_NE = np.concatenate([project(synthetic_MD), project(reference_MD)])
    truth_N = np.repeat([1.0, 0.0], [len(synthetic_MD), len(reference_MD)])
    # Both kinds weigh the same, however many there are.
    weight_N = np.where(truth_N == 1, 0.5 / len(synthetic_MD), 0.5 / len(reference_MD))
    weights_E = _logistic(rows_NE, truth_N, weight_N * len(rows_NE))
    return _with_one(project(candidates_ND)) @ weights_E


def domias(candidates_ND: Features, synthetic_MD: Features, reference_MD: Features) -> Scores:
    """Log density of the synthetic images over that of the reference, by Gaussian kernels."""
    project = _Directions(np.concatenate([synthetic_MD, reference_MD]))
    rows_NE = project(candidates_ND)
    return _log_density(rows_NE, project(synthetic_MD)) - _log_density(
        rows_NE, project(reference_MD)
    )


class _Directions:
    """Rows on the leading principal directions of others, each at deviation 1."""

    def __init__(self, rows_ND: Features) -> None:
        rows = rows_ND.astype(np.float64)
        self._mean_D = rows.mean(0)
        values_D, vectors_DD = np.linalg.eigh(np.cov(rows, rowvar=False))
        keep = values_D > 1e-9 * values_D[-1]
        kept = np.flatnonzero(keep)[-DIRECTIONS:]
        self._into_DE = vectors_DD[:, kept] / np.sqrt(values_D[kept])

    def __call__(self, rows_ND: Features) -> Scores:
        found: Scores = (rows_ND.astype(np.float64) - self._mean_D) @ self._into_DE
        return found


def _with_one(rows_NE: Scores) -> Scores:
    return np.concatenate([rows_NE, np.ones((len(rows_NE), 1))], axis=1)


def _logistic(rows_NE: Scores, truth_N: Scores, weight_N: Scores) -> Scores:
    """Weights (E + 1,) by Newton's method; the ridge keeps them finite where sets part cleanly."""
    rows = _with_one(rows_NE)
    ridge_E = np.append(np.full(rows_NE.shape[1], RIDGE), 1e-6)
    weights_E = np.zeros(rows.shape[1])
    for _ in range(NEWTON_STEPS):
        said_N = 1 / (1 + np.exp(-np.clip(rows @ weights_E, -30, 30)))
        slope_E = rows.T @ (weight_N * (said_N - truth_N)) + ridge_E * weights_E
        bend_EE = (rows.T * (weight_N * said_N * (1 - said_N))) @ rows + np.diag(ridge_E)
        step_E = np.linalg.solve(bend_EE, slope_E)
        weights_E -= step_E
        if np.abs(step_E).max() < 1e-8:
            break
    return weights_E


def _log_density(rows_NE: Scores, of_ME: Scores) -> Scores:
    """Gaussian kernels at Scott's width, in the units of the directions (deviation 1)."""
    count, dims = of_ME.shape
    width = count ** (-1 / (dims + 4))
    found = np.empty(len(rows_NE))
    for first in range(0, len(rows_NE), 256):
        some_NE = rows_NE[first : first + 256]
        squares_NM = (some_NE**2).sum(1)[:, None] + (of_ME**2).sum(1)[None] - 2 * some_NE @ of_ME.T
        logs_NM = -0.5 * np.maximum(squares_NM, 0) / width**2
        top_N1 = logs_NM.max(1, keepdims=True)
        found[first : first + 256] = (
            top_N1[:, 0] + np.log(np.exp(logs_NM - top_N1).sum(1)) - np.log(count)
        ) - dims * np.log(width)
    return found


def _scored(name: str, scores_N: Scores, members: int, seed: int, draws: int) -> Attack:
    truth_N = np.arange(len(scores_N)) < members
    estimate, low, high = intervals.bootstrap(
        lambda rows_N: auroc(scores_N[rows_N], truth_N[rows_N]),
        len(scores_N),
        seed=seed,
        draws=draws,
    )
    rates = tuple(
        true_positives(scores_N[truth_N], scores_N[~truth_N], share) for share in FALSE_POSITIVES
    )
    return Attack(name, members, len(scores_N) - members, estimate, low, high, rates)


def true_positives(members_N: Scores, non_members_N: Scores, share: float) -> Rate:
    """The share of members above the threshold that `share` of the others pass, exact interval.

    Not resolvable where `share` of the non-members is less than one of them.
    """
    allowed = int(np.floor(share * len(non_members_N) + 1e-9))
    if allowed < 1:
        return Rate(share, None, None, None)
    threshold = np.sort(non_members_N)[-(allowed + 1)]
    hits = int((members_N > threshold).sum())
    low, high = intervals.binomial_interval(hits, len(members_N))
    return Rate(share, hits / len(members_N), low, high)
