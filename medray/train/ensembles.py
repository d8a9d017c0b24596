"""Members of an ensemble weighed by what they were worth on validation, finding by finding.

Shape letters: M members, N exams, K findings. Probabilities are NaN where a member did not see an
exam (a plane that is not there): the others' weights then add up to 1 without it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from medray import rng

Floats = npt.NDArray[np.float64]
Truth = npt.NDArray[np.int8]
Weigh = Callable[[Floats, Truth, Floats], Floats]

LEAST = 1e-6
ROUNDS = 200


def combined(said_MNK: Floats, weights_MK: Floats) -> Floats:
    """The weighted mean of those members that saw an exam, (N, K); NaN where none did."""
    seen_MNK = np.isfinite(said_MNK)
    each_MNK = weights_MK[:, None] * seen_MNK
    # Where the only member that saw an exam has weight 0, those that saw it count alike.
    none_NK = each_MNK.sum(0) <= 0
    each_MNK = np.where(none_NK, seen_MNK, each_MNK)
    total_NK = each_MNK.sum(0)
    above_NK = (np.where(seen_MNK, said_MNK, 0) * each_MNK).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found_NK: Floats = np.where(total_NK > 0, above_NK / total_NK, np.nan)
    return found_NK


def equal(said_MNK: Floats, truth_NK: Truth, thresholds_MK: Floats) -> Floats:
    """All alike, (M, K)."""
    return np.full(thresholds_MK.shape, 1 / len(said_MNK))


def by_accuracy(said_MNK: Floats, truth_NK: Truth, thresholds_MK: Floats) -> Floats:
    """log(accuracy / (1 - accuracy)) of each member, (M, K), as published (arXiv 2104.10481).

    Half an exam is added to right and to wrong, so that it is finite; a member that is right no
    more often than not has 0.
    """
    known_MNK = np.isfinite(said_MNK) & (truth_NK >= 0)
    right_MNK = (said_MNK >= thresholds_MK[:, None]) == (truth_NK == 1)
    right_MK = (right_MNK & known_MNK).sum(1) + 0.5
    wrong_MK = (~right_MNK & known_MNK).sum(1) + 0.5
    return _normal(np.maximum(np.log(right_MK / wrong_MK), 0))


def by_log_loss(said_MNK: Floats, truth_NK: Truth, thresholds_MK: Floats) -> Floats:
    """The weights whose mixture makes the truth likeliest, (M, K), found by expectation and
    maximisation (Dempster, Laird and Rubin 1977); exams that all members saw count."""
    weights_MK = equal(said_MNK, truth_NK, thresholds_MK)
    for k in range(truth_NK.shape[1]):
        known_N = np.isfinite(said_MNK[:, :, k]).all(0) & (truth_NK[:, k] >= 0)
        if known_N.any():
            positive_N = truth_NK[known_N, k] == 1
            said_MN = said_MNK[:, known_N, k]
            likely_MN = np.maximum(np.where(positive_N, said_MN, 1 - said_MN), LEAST)
            for _ in range(ROUNDS):
                share_MN = weights_MK[:, k, None] * likely_MN
                weights_MK[:, k] = (share_MN / share_MN.sum(0)).mean(1)
    return weights_MK


def _normal(weights_MK: Floats) -> Floats:
    total_K = weights_MK.sum(0)
    found_MK: Floats = np.where(
        total_K > 0, weights_MK / np.maximum(total_K, LEAST), 1 / len(weights_MK)
    )
    return found_MK


WAYS: dict[str, Weigh] = {"accuracy": by_accuracy, "log-loss": by_log_loss, "equal": equal}


def log_loss(said_NK: Floats, truth_NK: Truth) -> float:
    """Mean over findings of the log loss of what is known of each."""
    known_NK = np.isfinite(said_NK) & (truth_NK >= 0)
    likely_NK = np.where(truth_NK == 1, said_NK, 1 - said_NK)
    surprise_NK = -np.log(np.maximum(np.where(known_NK, likely_NK, 1), LEAST))
    counts_K = known_NK.sum(0)
    return float((surprise_NK.sum(0)[counts_K > 0] / counts_K[counts_K > 0]).mean())


def chosen(
    said_MNK: Floats, truth_NK: Truth, thresholds_MK: Floats, seed: int
) -> tuple[str, Floats, dict[str, float]]:
    """(the way, its weights on all exams, the log loss of each way).

    A way is scored on the half of the exams that its weights were not made of, and the other way
    round: made of and scored on the same, the one that minimises the log loss would always win.
    """
    order_N = rng.permutation(seed, "train.ensembles", 0, truth_NK.shape[0])
    halves = (order_N[::2], order_N[1::2])
    losses = {}
    for name, weigh in WAYS.items():
        said_NK = np.full(truth_NK.shape, np.nan)
        for here, there in (halves, halves[::-1]):
            weights_MK = weigh(said_MNK[:, here], truth_NK[here], thresholds_MK)
            said_NK[there] = combined(said_MNK[:, there], weights_MK)
        losses[name] = log_loss(said_NK, truth_NK)
    best = min(losses, key=lambda name: losses[name])
    return best, WAYS[best](said_MNK, truth_NK, thresholds_MK), losses
