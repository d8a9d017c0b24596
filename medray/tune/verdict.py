"""Whether an arm helped: each minus the baseline, paired over patients and seeds, and in words.

A resample draws as many patients as there are and as many seeds as there are, both with
replacement, the same ones for both arms; the interval is the percentile one at 1 - 5% divided by
the number of comparisons (Bonferroni), so that all intervals hold at once with 95%.

Shape letters: S seeds, N test rows, K classes, P patients, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medray import rng
from medray.errors import DataError
from medray.metrics import weighted

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]
Scores = Callable[[Floats, Floats], Floats]

FAMILY_LEVEL = 0.95
BASELINE = "none"
PRIMARY = "balanced_accuracy"
AT_ONCE = 250
# Of the resamples that may lack a class before a figure is called undefined.
MOST_UNDEFINED = 0.1
Said = Literal["helped", "hurt", "did not help", "not resolvable"]


@dataclass(frozen=True)
class Test:
    """The test rows: class numbers (N,), patients, the names of the classes."""

    # Not a class of tests.
    __test__ = False

    truth_N: Numbers
    patients: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def present_K(self) -> Numbers:
        """Numbers of the classes that have a test row."""
        present_K: Numbers = np.unique(self.truth_N)
        return present_K


@dataclass(frozen=True)
class Figure:
    """An estimate with its interval; None where it is not defined."""

    estimate: float | None
    low: float | None = None
    high: float | None = None

    @property
    def half_width(self) -> float | None:
        """What the interval can resolve: half of its width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def to_dict(self) -> dict[str, float | None]:
        """For JSON."""
        return {**asdict(self), "half_width": self.half_width}


@dataclass(frozen=True)
class Verdict:
    """An arm against the baseline: figures, differences, what is said of the primary one."""

    arm: str
    fraction: float
    said: Said
    words: str
    figures: dict[str, Figure]
    differences: dict[str, Figure]
    level: float
    extra: dict[str, Any] = field(default_factory=dict)


def metrics_of(test: Test) -> dict[str, Scores]:
    """Every score as a function of (counts (B, N), probabilities (N, K)) -> (B,)."""
    truth_N, present_K, classes = test.truth_N, test.present_K, len(test.classes)

    def said(scores_NK: Floats) -> Numbers:
        said_N: Numbers = scores_NK.argmax(axis=1).astype(np.int64)
        return said_N

    found: dict[str, Scores] = {
        PRIMARY: lambda c, s: weighted.recalls(c, said(s), truth_N, classes)[:, present_K].mean(1),
        "auroc": lambda c, s: weighted.macro_aurocs(c, s, truth_N, present_K),
        "ece": lambda c, s: weighted.eces(c, s, truth_N),
        "brier": lambda c, s: weighted.briers(c, s, truth_N),
    }
    for k in present_K.tolist():
        name = test.classes[k]
        found[f"recall {name}"] = _column(weighted.recalls, said, truth_N, classes, k)
        found[f"f1 {name}"] = _column(weighted.f1s, said, truth_N, classes, k)
    return found


def _column(score: Any, said: Any, truth_N: Numbers, classes: int, k: int) -> Scores:
    return lambda c, s: score(c, said(s), truth_N, classes)[:, k]


@dataclass(frozen=True)
class Resamples:
    """Counts of every test row and every seed in each resample; the first is the data itself."""

    rows_BN: Floats
    seeds_BS: Floats

    @classmethod
    def of(cls, patients: tuple[str, ...], seeds: int, draws: int, seed: int) -> Resamples:
        """Draw d is a function of (seed, d)."""
        _, patient_N = np.unique(np.asarray(patients), return_inverse=True)
        count = int(patient_N.max()) + 1
        numbers = np.arange(draws)
        drawn_BP = rng.integers(seed, "tune.verdict.patients", numbers, count, 0, count)
        drawn_BS = rng.integers(seed, "tune.verdict.seeds", numbers, seeds, 0, seeds)
        counts_BP, counts_BS = _counts(drawn_BP, count), _counts(drawn_BS, seeds)
        rows_BN = np.concatenate([np.ones((1, len(patient_N))), counts_BP[:, patient_N]])
        return cls(rows_BN, np.concatenate([np.ones((1, seeds)), counts_BS]))


def _counts(drawn_BX: Numbers, count: int) -> Floats:
    rows = np.repeat(np.arange(len(drawn_BX)), drawn_BX.shape[1])
    flat = np.bincount(rows * count + drawn_BX.ravel(), minlength=len(drawn_BX) * count)
    return flat.reshape(len(drawn_BX), count).astype(np.float64)


def values_of(score: Scores, scores_SNK: Floats, drawn: Resamples) -> Floats:
    """A score on each resample: mean over the seeds drawn of the score on the rows drawn, (B,)."""
    found = []
    for first in range(0, len(drawn.rows_BN), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        each_BS = np.stack([score(drawn.rows_BN[part], s) for s in scores_SNK], axis=1)
        seeds_BS = drawn.seeds_BS[part]
        found.append((each_BS * seeds_BS).sum(axis=1) / seeds_BS.sum(axis=1))
    return np.concatenate(found)


def figure_of(values_B: Floats, level: float) -> Figure:
    """Estimate (the first value) and the percentile interval of the others."""
    estimate, drawn = float(values_B[0]), values_B[1:]
    defined = drawn[np.isfinite(drawn)]
    if not np.isfinite(estimate) or len(defined) < (1 - MOST_UNDEFINED) * len(drawn):
        return Figure(estimate if np.isfinite(estimate) else None)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Figure(estimate, float(low), float(high))


def judge(
    predictions: Mapping[str, Floats],
    test: Test,
    *,
    fraction: float,
    comparisons: int,
    margin: float,
    seed: int,
    draws: int = 4000,
) -> list[Verdict]:
    """A verdict for each arm of one fraction; `predictions` are (S, N, K) by arm, with "none".

    `comparisons` is by how many the level is corrected; `margin` the smallest difference of
    balanced accuracy that matters. DataError where the baseline is missing.
    """
    if BASELINE not in predictions:
        raise DataError(
            f"the baseline {BASELINE!r} has no predictions: nothing can be compared",
            code="MR-D415",
            hint="the log says why its trials failed",
        )
    level = 1 - (1 - FAMILY_LEVEL) / max(1, comparisons)
    seeds = len(predictions[BASELINE])
    drawn = Resamples.of(test.patients, seeds, draws, seed)
    found: dict[str, Verdict] = {}
    base: dict[str, Floats] = {}
    scores = metrics_of(test)
    for arm in sorted(predictions, key=lambda name: (name != BASELINE, name)):
        values = {
            name: values_of(score, np.asarray(predictions[arm], np.float64), drawn)
            for name, score in scores.items()
        }
        base = values if arm == BASELINE else base
        figures = {name: figure_of(v, FAMILY_LEVEL) for name, v in values.items()}
        differences = {name: figure_of(v - base[name], level) for name, v in values.items()}
        said, words = say(arm, differences[PRIMARY], margin, level)
        found[arm] = Verdict(arm, fraction, said, words, figures, differences, level)
    return [found[arm] for arm in predictions]


def say(arm: str, difference: Figure, margin: float, level: float) -> tuple[Said, str]:
    """What an interval of the difference lets be said, in points of balanced accuracy."""
    if difference.low is None or difference.high is None or difference.estimate is None:
        return (
            "not resolvable",
            f"{arm}: not resolvable, too few patients of a class for an interval",
        )
    low, high = 100 * difference.low, 100 * difference.high
    between = (
        f"{100 * difference.estimate:+.1f} points of balanced accuracy "
        f"({low:+.1f} to {high:+.1f} at {100 * level:.2f}%)"
    )
    if low > 0:
        return "helped", f"{arm} helped: {between}"
    if high < 0:
        return "hurt", f"{arm} hurt: {between}"
    if difference.high < margin:
        return "did not help", (
            f"{arm} did not help: {between}; a gain of {100 * margin:g} points or more is excluded"
        )
    return "not resolvable", (
        f"{arm}: not resolvable: {between}; this test resolves differences of about "
        f"{(high - low) / 2:.1f} points, not smaller ones"
    )
