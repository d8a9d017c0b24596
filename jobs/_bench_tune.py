"""The row `tune_overhead` of `bench.py --suite small`: what Ray Tune itself takes of a sweep.

Ours is the time of two CPUs, while trials run, that no trial used (actors that start, results on
their way, decisions, waiting at the end); the other is the summed time of the trials. The trials
are real ones on features: 1,000 rows of 512 dimensions, four arms of 24 trials, nine fits each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from medray.tune import folds
from medray.tune.cells import Cell
from medray.tune.data import Rows, SearchData
from medray.tune.features import FeatureTrials
from medray.tune.on_ray import Spent, run_on_ray
from medray.tune.search import Search, Searches
from medray.tune.spaces import space_of
from medray.tune.trial import run_here

ROWS = ("tune_overhead",)
COUNT, DIMS, CLASSES = 1000, 512, ("a", "b", "c")
ARMS = ("none", "class-weights", "smote", "gaussian")
TRIALS, SEEDS, INNER, SIDE_BY_SIDE = 24, 3, 3, 2

Case = tuple[str, str, float, Callable[[], float], Callable[[], float], Callable[[], None]]


def rows(rounds: int) -> Iterator[Case]:
    """The row: name, against what, target, a sweep's time beside trials, the trials', the check."""
    sweep = _Sweep(feature_trials())
    yield (
        "tune_overhead",
        f"the trials' summed time, {SIDE_BY_SIDE} side by side",
        0.1,
        sweep.unused_s,
        lambda: sweep.spent.trials_s,
        functools.partial(check, feature_trials()),
    )


@dataclass
class _Sweep:
    """A sweep a round; what the last one took."""

    trials: FeatureTrials
    spent: Spent = field(default_factory=Spent)

    def unused_s(self) -> float:
        """Runs a sweep; seconds of its CPUs that no trial used."""
        self.spent = run_on_ray(
            self.trials, searches(self.trials, TRIALS), lambda t, r: None, workers=SIDE_BY_SIDE
        )
        return self.spent.wall_s * self.spent.side_by_side - self.spent.trials_s


def feature_trials() -> FeatureTrials:
    """Trials on three classes of features, 70, 20 and 10 percent."""
    draw = np.random.default_rng(0)
    labels_N = draw.choice(len(CLASSES), COUNT, p=(0.7, 0.2, 0.1)).astype(np.int64)
    centres_KD = draw.standard_normal((len(CLASSES), DIMS)) * 0.1
    rows_ND = (centres_KD[labels_N] + draw.standard_normal((COUNT, DIMS))).astype(np.float32)
    names = tuple(f"p{n}" for n in range(COUNT))
    table = Rows(rows_ND, labels_N, names, names)
    parts = folds.parts_of(names, [CLASSES[k] for k in labels_N], INNER, 0)
    return FeatureTrials({(1.0, None): SearchData(table, tuple(parts), CLASSES)}, seeds=SEEDS)


def searches(trials: FeatureTrials, count: int) -> Searches:
    """A search for each arm."""
    return Searches(
        [
            Search(cell, space_of(cell.arm, (1, 2, 4, 8)), trials.steps(cell), trials=count)
            for cell in (Cell(arm, 1.0) for arm in ARMS)
        ]
    )


def check(trials: FeatureTrials) -> None:
    """On Tune and in this process the same is found."""
    here, there = searches(trials, 2), searches(trials, 2)
    run_here(trials, here, lambda t, r: None)
    run_on_ray(trials, there, lambda t, r: None, workers=SIDE_BY_SIDE)
    for one, other in zip(here, there, strict=True):
        assert one.records == other.records, f"{one.cell.name}: Tune found something else"
