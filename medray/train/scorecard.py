"""What a classifier said of a split, in figures: per class, calibration, intervals over patients.

Shape letters: N samples, K classes. Truth is 1, 0, or -1 where it is not known.

Whole patients are drawn again for the intervals: images of one patient are not independent. What is
not defined on these samples is None, never 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medray.metrics import UndefinedMetricError, classification
from medray.metrics.intervals import bootstrap

Rows = npt.NDArray[np.int64]
Figure = dict[str, float | None] | None
DRAWS = 1000


@dataclass(frozen=True)
class Judged:
    """Samples with truth known, and what was said of them.

    `decisions_N` is a class number, or (N, K) 0 and 1 for findings; `groups_N` names patients.
    """

    classes: tuple[str, ...]
    multi_label: bool
    probabilities_NK: npt.NDArray[np.float64]
    decisions: Rows
    truth_NK: npt.NDArray[np.int8]
    groups_N: npt.NDArray[np.str_]

    @property
    def truth_N(self) -> Rows:
        """The true class's number, where there is one an image."""
        numbers_N: Rows = self.truth_NK.argmax(1)
        return numbers_N

    def finding(self, k: int) -> Judged:
        """The samples in which finding `k` is known, as a task of that finding alone."""
        known = self.truth_NK[:, k] >= 0
        return replace(
            self,
            classes=(self.classes[k],),
            probabilities_NK=self.probabilities_NK[known, k : k + 1],
            decisions=self.decisions[known, k : k + 1],
            truth_NK=self.truth_NK[known, k : k + 1],
            groups_N=self.groups_N[known],
        )


def figures(judged: Judged, seed: int, draws: int = DRAWS) -> dict[str, Any]:
    """All figures as JSON: {estimate, low, high} each (95%), None where undefined."""
    found = (
        _of_findings(judged, seed, draws)
        if judged.multi_label
        else _of_classes(judged, seed, draws)
    )
    patients = len(np.unique(judged.groups_N))
    return {"samples": len(judged.truth_NK), "patients": patients, "draws": draws, **found}


def balanced_accuracy(judged: Judged) -> float | None:
    """Mean recall over the classes that occur; of findings the mean of (sensitivity +
    specificity) / 2."""
    if not judged.multi_label:
        return _or_none(lambda: _mean_recall(judged, np.arange(len(judged.truth_NK))))
    each = [balanced_of_finding(judged.finding(k)) for k in range(len(judged.classes))]
    defined = [value for value in each if value is not None]
    return float(np.mean(defined)) if defined else None


def balanced_of_finding(one: Judged) -> float | None:
    """(sensitivity + specificity) / 2 of one finding."""
    return _or_none(lambda: _halves(one, np.arange(len(one.truth_NK))))


def mean_auroc(judged: Judged) -> float | None:
    """Mean over classes, each against the rest, or over findings, where defined."""
    each = [_auroc_of(judged, k) for k in range(len(judged.classes))]
    defined = [value for value in each if value is not None]
    return float(np.mean(defined)) if defined else None


def macro_auroc(judged: Judged, seed: int, draws: int = DRAWS) -> Figure:
    """Mean AUC of the classes that have both kinds of sample, with its interval over patients.

    None where no class has; a draw that lacks a kind of one of them says nothing.
    """
    defined = [k for k in range(len(judged.classes)) if _auroc_of(judged, k) is not None]
    if not defined:
        return None

    def mean(rows: Rows) -> float:
        each = []
        for k in defined:
            known = rows[judged.truth_NK[rows, k] >= 0]
            p_N, is_N = judged.probabilities_NK[known, k], judged.truth_NK[known, k] == 1
            if not len(known):
                raise UndefinedMetricError("AUC of no samples")
            each.append(classification.auroc(p_N, is_N))
        return float(np.mean(each))

    return _interval(judged, mean, seed, draws)


def rarest_finding(judged: Judged) -> str | None:
    """The finding that the fewest of the samples have, of those that both have and lack it."""
    positive_K, known_K = (judged.truth_NK == 1).sum(0), (judged.truth_NK >= 0).sum(0)
    both = [k for k in range(len(judged.classes)) if 0 < positive_K[k] < known_K[k]]
    return judged.classes[min(both, key=lambda k: int(positive_K[k]))] if both else None


def _auroc_of(judged: Judged, k: int) -> float | None:
    known = judged.truth_NK[:, k] >= 0
    return _or_none(
        lambda: classification.auroc(
            judged.probabilities_NK[known, k], judged.truth_NK[known, k] == 1
        )
    )


def _or_none(statistic: Callable[[], float]) -> float | None:
    try:
        return statistic()
    except UndefinedMetricError:
        return None


def _interval(judged: Judged, statistic: Callable[[Rows], float], seed: int, draws: int) -> Figure:
    """Estimate with its interval; without one where too many draws leave it undefined."""
    estimate = _or_none(lambda: statistic(np.arange(len(judged.truth_NK))))
    if estimate is None:
        return None
    try:
        _, low, high = bootstrap(statistic, judged.groups_N, seed=seed, draws=draws)
    except UndefinedMetricError:
        return {"estimate": estimate, "low": None, "high": None}
    return {"estimate": estimate, "low": low, "high": high}


# --- one class an image -------------------------------------------------------------------------


def _of_classes(judged: Judged, seed: int, draws: int) -> dict[str, Any]:
    p, said, truth = judged.probabilities_NK, judged.decisions, judged.truth_N

    def interval(statistic: Callable[[Rows], float]) -> Figure:
        return _interval(judged, statistic, seed, draws)

    matrix_KK = classification.confusion(said, truth, len(judged.classes))
    return {
        "balanced_accuracy": interval(lambda rows: _mean_recall(judged, rows)),
        "accuracy": interval(lambda rows: classification.accuracy(said[rows], truth[rows])),
        "log_loss": interval(lambda rows: classification.log_loss(p[rows], truth[rows])),
        "brier": interval(lambda rows: classification.brier(p[rows], truth[rows])),
        "ece": classification.ece(p, truth),
        "classes": {name: _of_class(judged, k, interval) for k, name in enumerate(judged.classes)},
        "confusion": matrix_KK.tolist(),
    }


def _mean_recall(judged: Judged, rows: Rows) -> float:
    present = np.flatnonzero((judged.truth_NK == 1).any(0))
    said, truth = judged.decisions[rows], judged.truth_N[rows]
    matrix_KK = classification.confusion(said, truth, len(judged.classes))
    samples_K = matrix_KK.sum(1)[present]
    if not len(present) or (samples_K == 0).any():
        raise UndefinedMetricError("balanced accuracy: a class has no samples")
    return float((np.diag(matrix_KK)[present] / samples_K).mean())


def _of_class(
    judged: Judged, k: int, interval: Callable[[Callable[[Rows], float]], Figure]
) -> dict[str, Any]:
    is_k, said_k = judged.truth_N == k, judged.decisions == k
    scores = judged.probabilities_NK[:, k]
    return {
        "samples": int(is_k.sum()),
        "recall": interval(lambda rows: _share(said_k[rows], is_k[rows])),
        "precision": interval(lambda rows: _share(is_k[rows], said_k[rows])),
        "f1": interval(lambda rows: _f1(said_k[rows], is_k[rows])),
        "auroc": interval(lambda rows: classification.auroc(scores[rows], is_k[rows])),
    }


def _share(hits_N: npt.NDArray[np.bool_], among_N: npt.NDArray[np.bool_]) -> float:
    if not among_N.any():
        raise UndefinedMetricError("a share of no samples")
    return float(hits_N[among_N].mean())


def _f1(said_N: npt.NDArray[np.bool_], is_N: npt.NDArray[np.bool_]) -> float:
    total = int(said_N.sum() + is_N.sum())
    if not is_N.any():
        raise UndefinedMetricError("F1 of a class without samples")
    return float(2 * (said_N & is_N).sum() / total)


# --- findings -----------------------------------------------------------------------------------


def _of_findings(judged: Judged, seed: int, draws: int) -> dict[str, Any]:
    each = {
        name: _of_finding(judged.finding(k), seed, draws) for k, name in enumerate(judged.classes)
    }

    def mean(name: str) -> float | None:
        values = [it[name]["estimate"] for it in each.values() if it[name]]
        return float(np.mean(values)) if values else None

    return {
        "balanced_accuracy": {"estimate": mean("balanced_accuracy"), "low": None, "high": None},
        "auroc": {"estimate": mean("auroc"), "low": None, "high": None},
        "classes": each,
    }


def _of_finding(one: Judged, seed: int, draws: int) -> dict[str, Any]:
    p, said, is_N = one.probabilities_NK[:, 0], one.decisions[:, 0] == 1, one.truth_NK[:, 0] == 1

    def interval(statistic: Callable[[Rows], float]) -> Figure:
        return _interval(one, statistic, seed, draws) if len(p) else None

    return {
        "samples": len(p),
        "positives": int(is_N.sum()),
        "auroc": interval(lambda rows: classification.auroc(p[rows], is_N[rows])),
        "balanced_accuracy": interval(lambda rows: _halves(one, rows)),
        "recall": interval(lambda rows: _share(said[rows], is_N[rows])),
        "specificity": interval(lambda rows: _share(~said[rows], ~is_N[rows])),
        "precision": interval(lambda rows: _share(is_N[rows], said[rows])),
        "f1": interval(lambda rows: _f1(said[rows], is_N[rows])),
        "log_loss": interval(lambda rows: classification.log_loss(p[rows], is_N[rows])),
        "brier": interval(lambda rows: classification.brier(p[rows], is_N[rows])),
        "ece": classification.ece(p, is_N) if len(p) else None,
    }


def _halves(one: Judged, rows: Rows) -> float:
    said, is_N = one.decisions[rows, 0] == 1, one.truth_NK[rows, 0] == 1
    return (_share(said, is_N) + _share(~said, ~is_N)) / 2
