"""Statistics of a reader study: how well people tell synthetic images from real ones.

Arrays in, numbers out. A reading is one answer of one reader to one case; 1 is synthetic, 0 real.
The second showing of a repeated case counts for self-agreement alone. An image is called synthetic
where the score lies above the middle of the scale, so "cannot tell" is not called synthetic.

Published rates to compare with: PGGAN CT slices, 59.4% right of 3,000 readings; lung nodules from a
GAN, 56.7% of them called real.

Shape letters: N readings, R readers, C cases, K categories.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from medray.metrics import UndefinedMetricError
from medray.metrics.classification import auroc
from medray.metrics.intervals import binomial_interval, bootstrap

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

PUBLISHED = {
    "accuracy": ("PGGAN CT slices, 3,000 readings", 0.594),
    "fakes_called_real": ("lung nodules from a GAN", 0.567),
}
DRAWS = 500
# At an area of 0 or 1 the error is 0 too: the interval's other end lies a little away from there.
TINY = 1e-9


@dataclass(frozen=True)
class Share:
    """`hits` of `count`, with its exact interval (Clopper and Pearson 1934)."""

    hits: int
    count: int
    share: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether the interval contains `value`."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Readings:
    """N readings; `reader_N` and `case_N` are numbers into `readers` and `cases`.

    `truth_N` 1 where synthetic (of a pair: where the right one is); `score_N` the higher the surer
    that it is; `middle` of the scale; `repeat_N` where a case was shown before; `flagged_N` where
    the page was hidden or nobody moved; `position_N` counts a reader's cases from 0.
    """

    readers: tuple[str, ...]
    cases: tuple[str, ...]
    reader_N: Integers
    case_N: Integers
    truth_N: Integers
    score_N: Floats
    seconds_N: Floats
    position_N: Integers
    repeat_N: Flags
    flagged_N: Flags
    middle: float = 3.0
    said_N: tuple[str | None, ...] = ()
    label_N: tuple[str | None, ...] = ()

    def __post_init__(self) -> None:
        arrays = (self.case_N, self.truth_N, self.score_N, self.seconds_N, self.position_N)
        sizes = {len(a) for a in (self.reader_N, *arrays, self.repeat_N, self.flagged_N)}
        if len(sizes) != 1 or not np.isin(self.truth_N, (0, 1)).all():
            raise ValueError(f"readings need arrays of one length, truth 0 or 1, got {sizes}")
        if not np.isfinite(self.score_N).all():
            raise ValueError("scores must be finite")

    def __len__(self) -> int:
        return len(self.reader_N)

    @property
    def called_N(self) -> Integers:
        """1 where the reading calls the image synthetic."""
        return (self.score_N > self.middle).astype(np.int64)

    def where(self, chosen_N: Flags) -> Readings:
        """Some of the readings."""
        rows = np.flatnonzero(chosen_N)
        arrays: dict[str, Any] = {
            name: getattr(self, name)[rows]
            for name in (
                *("reader_N", "case_N", "truth_N", "score_N", "seconds_N", "position_N"),
                *("repeat_N", "flagged_N"),
            )
        }
        words: dict[str, Any] = {
            name: tuple(getattr(self, name)[row] for row in rows) if getattr(self, name) else ()
            for name in ("said_N", "label_N")
        }
        return Readings(self.readers, self.cases, **arrays, middle=self.middle, **words)

    @property
    def first(self) -> Readings:
        """Without the second showings of repeated cases."""
        return self.where(~self.repeat_N)


def share(hits_N: npt.NDArray[Any]) -> Share:
    """How many of N are true; UndefinedMetricError for none at all."""
    hits, count = int(np.sum(hits_N)), len(hits_N)
    if not count:
        raise UndefinedMetricError("a share of no readings is not defined")
    return Share(hits, count, hits / count, *binomial_interval(hits, count))


def accuracy(readings: Readings) -> Share:
    """Share of readings that are right."""
    return share(readings.called_N == readings.truth_N)


def sensitivity(readings: Readings) -> Share:
    """Share of synthetic images that were called synthetic."""
    return share(readings.called_N[readings.truth_N == 1] == 1)


def specificity(readings: Readings) -> Share:
    """Share of real images that were called real."""
    return share(readings.called_N[readings.truth_N == 0] == 0)


def fakes_called_real(readings: Readings) -> Share:
    """Share of synthetic images that were not called synthetic."""
    return share(readings.called_N[readings.truth_N == 1] == 0)


def undecided(readings: Readings) -> Share:
    """Share of readings at the very middle of the scale."""
    return share(readings.score_N == readings.middle)


def auc(scores_N: Floats, truth_N: Integers, level: float = 0.95) -> Estimate:
    """Area under the ROC curve of one reader with a score interval.

    Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic",
    Statistics in Medicine 25 (2006), method 5: the areas whose distance from what was seen is at
    most z standard errors, at their own standard error; so it has a width at 0 and 1 too.
    """
    seen = auroc(scores_N, truth_N)
    positives = int(np.sum(truth_N))
    negatives = len(truth_N) - positives
    z = float(special.ndtri(0.5 + level / 2))

    def beyond(area: float) -> float:
        return abs(seen - area) - z * _auc_error(area, positives, negatives)

    low = optimize.brentq(beyond, 0.0, seen * (1 - TINY)) if seen > 0 else 0.0
    high = optimize.brentq(beyond, seen + TINY * (1 - seen), 1.0) if seen < 1 else 1.0
    return Estimate(seen, float(low), float(high))


def _auc_error(area: float, positives: int, negatives: int) -> float:
    """Standard error of an area, with (positives + negatives) / 2 in place of either number."""
    half = (positives + negatives) / 2 - 1
    spread = 1 + half * ((1 - area) / (2 - area) + area / (1 + area))
    return math.sqrt(max(area * (1 - area) * spread, 0.0) / (positives * negatives))


def roc(scores_N: Floats, truth_N: Integers) -> tuple[list[float], list[float]]:
    """Points of the ROC curve: (false positive rates, true positive rates), from 0, 0 to 1, 1."""
    positive_N = truth_N == 1
    if positive_N.all() or not positive_N.any():
        raise UndefinedMetricError("a ROC curve needs both real and synthetic images")
    cuts = np.unique(scores_N)[::-1]
    false = [0.0, *(float((scores_N[~positive_N] >= cut).mean()) for cut in cuts)]
    true = [0.0, *(float((scores_N[positive_N] >= cut).mean()) for cut in cuts)]
    return false, true


def mean_auc(readings: Readings, *, seed: int = 0, draws: int = DRAWS) -> Estimate:
    """Mean of the readers' areas; the interval is a bootstrap over cases, all readers of each."""

    def mean(rows_N: Integers) -> float:
        areas = []
        for reader in np.unique(readings.reader_N):
            own = rows_N[readings.reader_N[rows_N] == reader]
            areas.append(auroc(readings.score_N[own], readings.truth_N[own]))
        return float(np.mean(areas))

    return Estimate(*bootstrap(mean, readings.case_N, seed=seed, draws=draws))


def accuracy_over_cases(readings: Readings, *, seed: int = 0, draws: int = DRAWS) -> Estimate:
    """Pooled accuracy; the interval is a bootstrap over cases, all readings of each.

    Readings of one image are alike, which the exact interval of pooled readings does not know.
    """
    right_N = (readings.called_N == readings.truth_N).astype(np.float64)

    def mean(rows_N: Integers) -> float:
        if not len(rows_N):
            raise UndefinedMetricError("the accuracy of no readings is not defined")
        return float(right_N[rows_N].mean())

    return Estimate(*bootstrap(mean, readings.case_N, seed=seed, draws=draws))


def fleiss_kappa(counts_CK: npt.NDArray[Any]) -> float:
    """Agreement beyond chance of several readers (Fleiss 1971), 1 is perfect.

    `counts_CK[c, k]` readers put case c into category k; each row has the same sum, at least 2.
    UndefinedMetricError where everybody used one category for everything.
    """
    counts = np.asarray(counts_CK, np.float64)
    if counts.ndim != 2 or not len(counts):
        raise UndefinedMetricError(f"kappa needs counts (C, K), got shape {counts.shape}")
    readers = counts[0].sum()
    if readers < 2 or not (counts.sum(1) == readers).all():
        raise UndefinedMetricError("kappa needs the same readers, at least 2, for every case")
    agreed_C = ((counts**2).sum(1) - readers) / (readers * (readers - 1))
    by_chance = float(((counts.sum(0) / counts.sum()) ** 2).sum())
    if by_chance == 1:
        raise UndefinedMetricError("kappa is undefined where only one category was used")
    return float((agreed_C.mean() - by_chance) / (1 - by_chance))


def agreement(readings: Readings) -> tuple[float, int]:
    """Fleiss' kappa of real against synthetic, and of how many cases: those that all have read."""
    latest: dict[tuple[int, int], int] = {}
    for reader, case, called in zip(
        readings.reader_N, readings.case_N, readings.called_N, strict=True
    ):
        latest[int(case), int(reader)] = int(called)
    readers = sorted({reader for _, reader in latest})
    rows = []
    for case in sorted({case for case, _ in latest}):
        calls = [latest.get((case, reader)) for reader in readers]
        if None not in calls:
            rows.append([calls.count(0), calls.count(1)])
    return fleiss_kappa(np.array(rows)), len(rows)


def self_agreement(readings: Readings) -> Share:
    """Of the cases that a reader saw twice, how many he called the same both times."""
    first = {
        (int(r), int(c)): int(called) for r, c, called, repeat in _rows(readings) if not repeat
    }
    same = [
        first[int(r), int(c)] == called
        for r, c, called, repeat in _rows(readings)
        if repeat and (int(r), int(c)) in first
    ]
    return share(np.array(same, bool))


def _rows(readings: Readings) -> list[tuple[int, int, int, bool]]:
    columns = (readings.reader_N, readings.case_N, readings.called_N, readings.repeat_N)
    return [(int(a), int(b), int(c), bool(d)) for a, b, c, d in zip(*columns, strict=True)]


@dataclass(frozen=True)
class Times:
    """Seconds for an image: quartiles; of readings that are not flagged."""

    count: int
    lower: float
    median: float
    upper: float
    flagged: int


def times(readings: Readings) -> Times:
    """Seconds for an image; UndefinedMetricError where every reading is flagged."""
    clean = readings.seconds_N[~readings.flagged_N & np.isfinite(readings.seconds_N)]
    if not len(clean):
        raise UndefinedMetricError("the time of no readings is not defined")
    lower, median, upper = (float(q) for q in np.quantile(clean, (0.25, 0.5, 0.75)))
    return Times(len(clean), lower, median, upper, int(readings.flagged_N.sum()))


@dataclass(frozen=True)
class Mistaken:
    """A case, and how many of its readings were wrong."""

    case: str
    truth: int
    wrong: int
    readings: int


def most_mistaken(readings: Readings, most: int = 20) -> list[Mistaken]:
    """The cases that most readers got wrong, the worst first (equal ones by name)."""
    found = []
    for case, name in enumerate(readings.cases):
        own = readings.case_N == case
        if own.any():
            wrong = int((readings.called_N[own] != readings.truth_N[own]).sum())
            truth = int(readings.truth_N[own][0])
            found.append(Mistaken(name, truth, wrong, int(own.sum())))
    worst = sorted(found, key=lambda m: (-m.wrong / m.readings, -m.wrong, m.case))
    return [m for m in worst if m.wrong][:most]


def learning_curve(readings: Readings, parts: int = 4) -> list[Share]:
    """Accuracy in equal parts of each reader's sequence; parts without readings are left out."""
    last = int(readings.position_N.max(initial=0)) + 1
    part_N = readings.position_N * parts // last
    return [
        accuracy(readings.where(part_N == part)) for part in range(parts) if (part_N == part).any()
    ]


def class_accuracy(readings: Readings) -> Share:
    """Of real images with a known class that a reader named one for, how many were right."""
    pairs = [
        (said, label)
        for said, label, truth in zip(
            readings.said_N, readings.label_N, readings.truth_N, strict=bool(readings.said_N)
        )
        if said is not None and label is not None and truth == 0
    ]
    return share(np.array([said == label for said, label in pairs], bool))


def or_none(work: Callable[[], Any]) -> Any:
    """What `work` gives, None where it is undefined."""
    try:
        return work()
    except UndefinedMetricError:
        return None


def imrmc(readings: Readings, *, title: str, modality: str = "images") -> str:
    """The text that iMRMC reads: front matter, `BEGIN DATA:`, truths, then readings.

    Rows are `truth,<case>,truth,0|1` and `<reader>,<case>,<modality>,<score>`. ValueError for a
    name with a comma or a line break, which the form cannot hold.
    """
    names = (*readings.readers, *readings.cases, modality)
    bad = [name for name in names if set(name) & set(",\r\n")]
    if bad:
        raise ValueError(f"names may hold no comma or line break, got {bad[0]!r}")
    truth: dict[int, int] = {}
    for case, known in zip(readings.case_N, readings.truth_N, strict=True):
        truth.setdefault(int(case), int(known))
    count = len(np.unique(readings.reader_N))
    synthetic = sum(truth.values())
    lines = [
        " ".join(title.split()),
        f"NR: {count}",
        f"N0: {len(truth) - synthetic}",
        f"N1: {synthetic}",
        "NM: 1",
        "",
        "BEGIN DATA:",
        *(f"truth,{readings.cases[case]},truth,{truth[case]}" for case in sorted(truth)),
        *_scores(readings, modality),
    ]
    return "\n".join(lines) + "\n"


def _scores(readings: Readings, modality: str) -> Sequence[str]:
    rows = zip(readings.reader_N, readings.case_N, readings.score_N, strict=True)
    return [f"{readings.readers[r]},{readings.cases[c]},{modality},{s:g}" for r, c, s in rows]
