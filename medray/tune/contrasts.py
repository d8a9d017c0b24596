"""One way of beginning against others, on findings: AUC of each, their mean, differences in pairs.

Patients and seeds are drawn again together, the same ones for both arms (`verdict.Resamples`). The
mean is over the findings that have both kinds of row; a resample that lacks a kind of one of them
says nothing of that figure. Positives are compared with negatives of their own outer fold: each
fold has classifiers of its own, and one that was trained on fewer positives, because more of them
are in its test fold, says lower probabilities there: over all folds chance would be below 0.5.

Shape letters: S seeds, N test clips, K findings, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medray.metrics import weighted
from medray.tune.verdict import (
    FAMILY_LEVEL,
    Figure,
    Floats,
    Numbers,
    Resamples,
    Scores,
    figure_of,
    values_of,
)

MACRO = "macro"


@dataclass(frozen=True)
class Asked:
    """The test clips: truth (N, K) of 1, 0 or -1 (unknown), patients, the findings."""

    truth_NK: NDArray[np.int8]
    patients: tuple[str, ...]
    findings: tuple[str, ...]
    # Of each clip the outer fold: clips are compared within a fold alone (none: all in one).
    folds: tuple[int, ...] = ()

    @property
    def defined_K(self) -> Numbers:
        """Numbers of the findings that some clips have and some lack."""
        present = (self.truth_NK == 1).any(0) & (self.truth_NK == 0).any(0)
        found: Numbers = np.flatnonzero(present).astype(np.int64)
        return found

    @property
    def rarest(self) -> str | None:
        """The defined finding that the fewest clips have."""
        positive_K = (self.truth_NK == 1).sum(0)
        defined = self.defined_K.tolist()
        return self.findings[min(defined, key=lambda k: int(positive_K[k]))] if defined else None


@dataclass(frozen=True)
class Contrast:
    """`arm` minus `other` at one fraction: differences by finding, the words on the mean."""

    arm: str
    other: str
    words: str
    differences: dict[str, Figure]
    corrected: Figure
    level: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "arm": self.arm,
            "other": self.other,
            "words": self.words,
            "differences": {name: f.to_dict() for name, f in self.differences.items()},
            "corrected": {**self.corrected.to_dict(), "level": self.level},
        }


class Judge:
    """Figures of arms on the same test clips, seeds and resamples."""

    def __init__(self, asked: Asked, seeds: int, *, draws: int, seed: int) -> None:
        self.asked = asked
        fold_N = np.asarray(asked.folds or (0,) * len(asked.patients))
        self._parts = [np.flatnonzero(fold_N == fold) for fold in np.unique(fold_N)]
        self._drawn = Resamples.of(asked.patients, seeds, draws, seed)

    def values(self, scores_SNK: Floats) -> dict[str, Floats]:
        """AUC of every finding and their mean on each resample, the data itself first, (B,)."""
        truth_NK, names = self.asked.truth_NK, self.asked.findings
        found = {}
        for k, name in enumerate(names):
            score = _auroc_of(k, truth_NK[:, k : k + 1], self._parts)
            found[name] = values_of(score, scores_SNK, self._drawn)
        defined = [found[names[k]] for k in self.asked.defined_K.tolist()]
        nothing = np.full(len(next(iter(found.values()))), np.nan)
        found[MACRO] = np.mean(defined, axis=0) if defined else nothing
        return found

    def figures(self, values: Mapping[str, Floats]) -> dict[str, Figure]:
        """Each with its 95% interval; None where it is not defined."""
        return {name: figure_of(of_name, FAMILY_LEVEL) for name, of_name in values.items()}

    def contrast(
        self,
        names: tuple[str, str],
        arm: Mapping[str, Floats],
        other: Mapping[str, Floats],
        comparisons: int,
    ) -> Contrast:
        """The first minus the second; corrected for so many `comparisons` (Bonferroni) too."""
        apart = {name: figure_of(arm[name] - other[name], FAMILY_LEVEL) for name in arm}
        level = 1 - (1 - FAMILY_LEVEL) / max(1, comparisons)
        corrected = figure_of(arm[MACRO] - other[MACRO], level)
        return Contrast(*names, say(names, apart[MACRO], corrected), apart, corrected, level)


def _auroc_of(k: int, truth_N1: NDArray[np.int8], parts: Sequence[Numbers]) -> Scores:
    """The share of pairs of a fold, over all folds, that are in the right order; ties half."""

    def score(counts_BN: Floats, scores_NK: Floats) -> Floats:
        wins_B, pairs_B = np.zeros(len(counts_BN)), np.zeros(len(counts_BN))
        for rows in parts:
            counts, truth = counts_BN[:, rows], truth_N1[rows]
            found_B = weighted.finding_aurocs(counts, scores_NK[rows, k : k + 1], truth)[:, 0]
            of_fold_B = (counts * (truth[:, 0] == 1)).sum(1) * (counts * (truth[:, 0] == 0)).sum(1)
            wins_B += np.where(of_fold_B > 0, found_B * of_fold_B, 0)
            pairs_B += of_fold_B
        with np.errstate(invalid="ignore", divide="ignore"):
            auroc_B: Floats = np.where(pairs_B > 0, wins_B / pairs_B, np.nan)
        return auroc_B

    return score


def say(names: Sequence[str], difference: Figure, corrected: Figure) -> str:
    """What the interval of a difference of macro AUC lets be said."""
    arm, other = names
    low, high, estimate = difference.low, difference.high, difference.estimate
    if low is None or high is None or estimate is None:
        return f"{arm} against {other}: no interval, too few patients of a finding"
    between = f"macro AUC {estimate:+.3f} ({low:+.3f} to {high:+.3f})"
    resolves = f"this test resolves about {(high - low) / 2:.3f}"
    if low <= 0 <= high:
        return f"{arm} and {other} are not told apart: {between}; {resolves}"
    verb = "is better than" if low > 0 else "is worse than"
    c_low, c_high = corrected.low, corrected.high
    holds = c_low is not None and c_high is not None and not c_low <= 0 <= c_high
    also = "holds" if holds else "does not hold"
    return f"{arm} {verb} {other}: {between}; {also} when corrected for all comparisons; {resolves}"
