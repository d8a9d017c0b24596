"""Scores of a classifier: discrimination, per class, calibration.

What is not defined (the AUROC of one class alone, the recall of a class without samples) is an
`UndefinedMetricError` where one number is asked for, and None in a table of classes; never 0.

Shape letters: N samples, K classes, B bins, V different values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medray.metrics._checks import UndefinedMetricError

Numbers = NDArray[np.generic]
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

# A probability of the truth below this counts as this in the log loss.
LEAST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class ClassScore:
    """One class of a confusion matrix; None is undefined."""

    samples: int
    predicted: int
    hits: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class Reliability:
    """Bins that hold samples: mean probability said, share that was so, number of samples."""

    said_B: Floats
    seen_B: Floats
    counts_B: Counts


def auroc(scores_N: Numbers, truth_N: Numbers) -> float:
    """Area under the ROC curve: how often a positive scores higher than a negative, ties half.

    Hanley and McNeil 1982. `truth_N` holds 0 and 1 (or bool). UndefinedMetricError where there are
    only positives or only negatives.
    """
    scores, positive_N = _floats("scores", scores_N, 1), _binary(truth_N, len(scores_N))
    positives = int(positive_N.sum())
    negatives = len(positive_N) - positives
    if not positives or not negatives:
        raise UndefinedMetricError(
            f"AUROC needs both classes, got {positives} positives and {negatives} negatives"
        )
    values_V, value_N = np.unique(scores, return_inverse=True)
    positives_V, negatives_V = (
        np.bincount(value_N[chosen_N], minlength=len(values_V))
        for chosen_N in (positive_N, ~positive_N)
    )
    below_V = np.cumsum(negatives_V) - negatives_V
    wins = (positives_V * (below_V + negatives_V / 2)).sum()
    return float(wins / (positives * negatives))


def auroc_by_class(scores_NK: Numbers, truth_N: Numbers) -> list[float | None]:
    """AUROC of each class against the rest; None where it is undefined."""
    scores, labels_N = _floats("scores", scores_NK, 2), _labels(truth_N, scores_NK)
    found: list[float | None] = []
    for k in range(scores.shape[1]):
        here = labels_N == k
        found.append(None if here.all() or not here.any() else auroc(scores[:, k], here))
    return found


def confusion(predicted_N: Numbers, truth_N: Numbers, classes: int) -> Counts:
    """How many samples of the true class (row) were taken for which class (column): (K, K)."""
    predicted, truth = (_integers(array, classes) for array in (predicted_N, truth_N))
    if len(predicted) != len(truth):
        raise ValueError(f"{len(predicted)} predictions for {len(truth)} truths")
    pairs_KK = np.bincount(classes * truth + predicted, minlength=classes**2)
    return pairs_KK.reshape(classes, classes).astype(np.int64)


def by_class(confusion_KK: Counts) -> list[ClassScore]:
    """Precision, recall and F1 of each class of a confusion matrix."""
    return [
        _class_score(int(confusion_KK[k].sum()), int(confusion_KK[:, k].sum()), int(hits))
        for k, hits in enumerate(np.diag(confusion_KK))
    ]


def _class_score(samples: int, predicted: int, hits: int) -> ClassScore:
    # F1 is undefined only where the class is neither there nor predicted.
    return ClassScore(
        samples,
        predicted,
        hits,
        precision=hits / predicted if predicted else None,
        recall=hits / samples if samples else None,
        f1=2 * hits / (samples + predicted) if samples + predicted else None,
    )


def accuracy(predicted_N: Numbers, truth_N: Numbers) -> float:
    """Share of samples that were taken for what they are."""
    if not len(truth_N) or len(predicted_N) != len(truth_N):
        raise UndefinedMetricError(
            f"accuracy needs as many predictions as truths, at least one, "
            f"got {len(predicted_N)} and {len(truth_N)}"
        )
    return float(np.mean(np.asarray(predicted_N) == np.asarray(truth_N)))


def balanced_accuracy(predicted_N: Numbers, truth_N: Numbers, classes: int) -> float:
    """Mean recall over all classes; UndefinedMetricError where one has no samples."""
    recalls = [score.recall for score in by_class(confusion(predicted_N, truth_N, classes))]
    missing = [k for k, recall in enumerate(recalls) if recall is None]
    if missing:
        raise UndefinedMetricError(f"balanced accuracy: no samples of classes {missing}")
    return float(np.mean([recall for recall in recalls if recall is not None]))


def brier(probabilities: Numbers, truth_N: Numbers) -> float:
    """Mean squared error of probabilities, summed over the classes (Brier 1950); 0 is best.

    Probabilities are (N, K) with the truth as class numbers, or (N,) of the positive class with the
    truth as 0 and 1: then the square of the one number (a half of what two columns give).
    """
    probabilities = _probabilities(probabilities)
    if probabilities.ndim == 1:
        return float(np.mean((probabilities - _binary(truth_N, len(probabilities))) ** 2))
    labels_N = _labels(truth_N, probabilities)
    wanted_NK = np.eye(probabilities.shape[1])[labels_N]
    return float(np.mean(((probabilities - wanted_NK) ** 2).sum(axis=1)))


def log_loss(probabilities: Numbers, truth_N: Numbers) -> float:
    """Mean of -log of the truth's probability (at least 1e-12); shapes as in `brier`."""
    probabilities = _probabilities(probabilities)
    if probabilities.ndim == 1:
        positive_N = _binary(truth_N, len(probabilities))
        of_truth_N = np.where(positive_N, probabilities, 1 - probabilities)
    else:
        labels_N = _labels(truth_N, probabilities)
        of_truth_N = probabilities[np.arange(len(labels_N)), labels_N]
    return float(-np.log(np.maximum(of_truth_N, LEAST_PROBABILITY)).mean())


def reliability(probabilities: Numbers, truth_N: Numbers, bins: int = 15) -> Reliability:
    """What was said and what was so, in equal bins of probability; shapes as in `brier`.

    With (N, K) the probability is that of the likeliest class, and it was so if that is the truth.
    """
    probabilities = _probabilities(probabilities)
    if probabilities.ndim == 1:
        said_N, so_N = probabilities, _binary(truth_N, len(probabilities))
    else:
        said_N = probabilities.max(axis=1)
        so_N = probabilities.argmax(axis=1) == _labels(truth_N, probabilities)
    bin_N = np.minimum((said_N * bins).astype(np.int64), bins - 1)
    counts_B = np.bincount(bin_N, minlength=bins)
    some_B = counts_B > 0
    said_B, seen_B = (
        np.bincount(bin_N, values, bins)[some_B] / counts_B[some_B] for values in (said_N, so_N)
    )
    return Reliability(said_B, seen_B, counts_B[some_B].astype(np.int64))


def ece(probabilities: Numbers, truth_N: Numbers, bins: int = 15) -> float:
    """Expected calibration error: mean gap of said and seen over the samples (Guo et al. 2017)."""
    found = reliability(probabilities, truth_N, bins)
    gaps_B = np.abs(found.said_B - found.seen_B)
    return float((gaps_B * found.counts_B).sum() / found.counts_B.sum())


# --- checks -------------------------------------------------------------------------------------


def _floats(name: str, array: Numbers, ndim: int) -> Floats:
    numbers = np.asarray(array, np.float64)
    if numbers.ndim != ndim or not len(numbers) or not np.isfinite(numbers).all():
        shape = ("(N,)", "(N, K)")[ndim - 1]
        raise ValueError(
            f"{name} must be finite, {shape}, at least one row, got shape {numbers.shape}"
        )
    return numbers


def _probabilities(array: Numbers) -> Floats:
    numbers = _floats("probabilities", array, 2 if np.ndim(array) == 2 else 1)
    if numbers.min() < 0 or numbers.max() > 1:
        raise ValueError(
            f"probabilities must be 0 to 1, got {numbers.min():g} to {numbers.max():g}"
        )
    if numbers.ndim == 2 and np.abs(numbers.sum(axis=1) - 1).max() > 1e-3:
        raise ValueError("the probabilities of a sample must add up to 1")
    return numbers


def _integers(array: Numbers | Sequence[int], classes: int) -> Counts:
    numbers = np.asarray(array)
    whole = numbers.ndim == 1 and numbers.dtype.kind in "iu"
    if not whole or not len(numbers) or numbers.min() < 0 or numbers.max() >= classes:
        raise ValueError(
            f"class numbers must be integers 0 to {classes - 1}, (N,), at least one, "
            f"got {numbers.dtype} of shape {numbers.shape}"
        )
    return numbers.astype(np.int64)


def _labels(truth_N: Numbers, scores_NK: Numbers) -> Counts:
    labels_N = _integers(truth_N, scores_NK.shape[1])
    if len(labels_N) != len(scores_NK):
        raise ValueError(f"{len(scores_NK)} rows of scores for {len(labels_N)} truths")
    return labels_N


def _binary(truth_N: Numbers, count: int) -> NDArray[np.bool_]:
    truth = np.asarray(truth_N)
    if truth.shape != (count,) or not np.isin(truth, (0, 1)).all():
        raise ValueError(f"truth must hold 0 and 1, shape ({count},), got shape {truth.shape}")
    return truth.astype(bool)
