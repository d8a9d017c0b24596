"""Small made-up tables with known truth, and trials that need no training."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from medray.tune import folds
from medray.tune.cells import Cell
from medray.tune.data import Rows, SearchData
from medray.tune.features import FeatureTrials
from medray.tune.head import HeadConfig
from medray.tune.search import Search, Searches
from medray.tune.spaces import space_of

CLASSES = ("a", "b", "c")
WHOLE = Cell("none", 1.0)


def table(count=120, dims=6, seed=0, share=(0.6, 0.25, 0.15), apart=1.5, prefix="p") -> Rows:
    """Gaussian classes around fixed centres; two rows a patient, of one class."""
    draw = np.random.default_rng(seed)
    patients = [f"{prefix}{n // 2}" for n in range(count)]
    labels_N = np.repeat(draw.choice(len(share), count // 2, p=share), 2).astype(np.int64)
    centres_KD = np.random.default_rng(77).standard_normal((len(share), dims)) * apart
    rows_ND = centres_KD[labels_N] + draw.standard_normal((count, dims))
    keys = tuple(f"{prefix}-{n:04d}" for n in range(count))
    return Rows(rows_ND.astype(np.float32), labels_N, tuple(patients), keys)


def search_data(rows: Rows | None = None, inner=2, synthetic=None) -> SearchData:
    rows = table() if rows is None else rows
    parts = folds.parts_of(rows.patients, [CLASSES[k] for k in rows.labels_N], inner, 0)
    return SearchData(rows, tuple(parts), CLASSES, synthetic).check(frozenset())


def feature_trials(rows=None, seeds=1, steps=40, synthetic=None, inner=2, **more) -> FeatureTrials:
    data = {(1.0, None): search_data(rows, inner, synthetic)}
    return FeatureTrials(data, seeds=seeds, head=HeadConfig(steps=steps, look=10), **more)


def searches(trials, arms=("none", "smote"), count=6, **more) -> Searches:
    found = []
    for arm in arms:
        cell = Cell(arm, 1.0)
        space = space_of(arm, (1, 2, 4))
        found.append(Search(cell, space, trials.steps(cell), trials=count, width=2, **more))
    return Searches(found)


def records(found: Searches) -> dict:
    return {search.cell: dict(search.records) for search in found}


@dataclass
class Formula:
    """Trials whose score is a formula of the settings; `broken` raises, `calls` counts."""

    length: int = 4
    broken: tuple[str, ...] = ()
    calls: list = field(default_factory=list)

    def steps(self, cell):
        return self.length

    def score(self, cell, settings, step):
        self.calls.append((cell.arm, step))
        if cell.arm in self.broken and step == 1:
            raise RuntimeError("planted")
        return 0.5 - abs(np.log(settings["lr"] / 0.004)) / 10 + 0.01 * step

    def fit(self, cell, settings, seed):
        return f"{cell.name} {seed}".encode()
