"""Scores of a classifier on many resamples at once: each a vector of how often every row counts.

The same definitions as `classification` with every row repeated by its count; a score that is not
defined on a resample (a class without rows) is NaN there.

Shape letters: B resamples, N rows, K classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]


def recalls(counts_BN: Floats, said_N: Numbers, truth_N: Numbers, classes: int) -> Floats:
    """Recall of each class, (B, K)."""
    own_NK = np.eye(classes)[truth_N]
    hits_BK = counts_BN @ (own_NK * (said_N == truth_N)[:, None])
    return _ratio(hits_BK, counts_BN @ own_NK)


def f1s(counts_BN: Floats, said_N: Numbers, truth_N: Numbers, classes: int) -> Floats:
    """F1 of each class, (B, K)."""
    own_NK, said_NK = np.eye(classes)[truth_N], np.eye(classes)[said_N]
    hits_BK = counts_BN @ (own_NK * said_NK)
    return _ratio(2 * hits_BK, counts_BN @ own_NK + counts_BN @ said_NK)


def aurocs(counts_BN: Floats, scores_N: Floats, positive_N: NDArray[np.bool_]) -> Floats:
    """Area under the ROC curve, ties half, (B,)."""
    _, value_N = np.unique(scores_N, return_inverse=True)
    order = np.argsort(value_N, kind="stable")
    starts_V = np.flatnonzero(np.diff(value_N[order], prepend=-1))
    positive_BV, negative_BV = (
        np.add.reduceat((counts_BN * chosen_N)[:, order], starts_V, axis=1)
        for chosen_N in (positive_N, ~positive_N)
    )
    below_BV = np.cumsum(negative_BV, axis=1) - negative_BV
    wins_B = (positive_BV * (below_BV + negative_BV / 2)).sum(axis=1)
    return _ratio(wins_B, positive_BV.sum(axis=1) * negative_BV.sum(axis=1))


def macro_aurocs(
    counts_BN: Floats, scores_NK: Floats, truth_N: Numbers, present_K: Numbers
) -> Floats:
    """Mean over the classes `present_K` of the AUROC of each against the rest, (B,)."""
    found = [aurocs(counts_BN, scores_NK[:, k], truth_N == k) for k in present_K.tolist()]
    mean_B: Floats = np.mean(found, axis=0)
    return mean_B


def briers(counts_BN: Floats, scores_NK: Floats, truth_N: Numbers) -> Floats:
    """Squared error of probabilities, summed over the classes, (B,)."""
    wanted_NK = np.eye(scores_NK.shape[1])[truth_N]
    errors_N = ((scores_NK - wanted_NK) ** 2).sum(axis=1)
    return _ratio(counts_BN @ errors_N, counts_BN.sum(axis=1))


def eces(counts_BN: Floats, scores_NK: Floats, truth_N: Numbers, bins: int = 15) -> Floats:
    """Expected calibration error of the likeliest class in equal bins, (B,)."""
    said_N = scores_NK.max(axis=1)
    right_N = (scores_NK.argmax(axis=1) == truth_N).astype(np.float64)
    bin_N = np.minimum((said_N * bins).astype(np.int64), bins - 1)
    in_NB = np.eye(bins)[bin_N]
    gaps = np.abs(counts_BN @ (in_NB * (said_N - right_N)[:, None])).sum(axis=1)
    return _ratio(gaps, counts_BN.sum(axis=1))


def _ratio(above: Floats, below: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = np.where(below > 0, above / np.maximum(below, 1e-300), np.nan)
    return found


def finding_aurocs(counts_BN: Floats, scores_NK: Floats, truth_NK: NDArray[np.int8]) -> Floats:
    """AUROC of each finding on the rows that say whether it is there (1 or 0, not -1), (B, K)."""
    found = []
    for k in range(truth_NK.shape[1]):
        known_N = truth_NK[:, k] >= 0
        if known_N.any():
            positive_N = truth_NK[known_N, k] == 1
            found.append(aurocs(counts_BN[:, known_N], scores_NK[known_N, k], positive_N))
        else:
            found.append(np.full(len(counts_BN), np.nan))
    return np.stack(found, axis=1)
