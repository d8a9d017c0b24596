"""What the report is made of: sets, what is known of their images, what was computed of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from medray.evaluate.audit import Pair
from medray.evaluate.distribution import Side
from medray.evaluate.extraction import Arrays, Judge
from medray.evaluate.resample import Numbers, groups_of
from medray.evaluate.sets import ImageSet, Rows
from medray.models.extract import Extractor

TRAIN, HOLDOUT, TEST = "train", "holdout", "test"
SYNTHETIC, PLAIN = "synthetic", "plain"


@dataclass(frozen=True)
class Material:
    """Everything by the names above; `test` and `plain` (unconditional generates) may be absent."""

    sets: dict[str, ImageSet]
    rows: dict[str, Rows]
    arrays: dict[str, Arrays]
    extractor: Extractor
    judge: Judge | None
    pair: Pair
    seed: int
    draws: int

    @property
    def classes(self) -> tuple[str, ...]:
        """The real set's classes."""
        return self.sets[TRAIN].classes

    def has(self, name: str) -> bool:
        """Whether there is such a set."""
        return name in self.sets

    def side(self, name: str) -> Side:
        """Features and patients of a set."""
        return Side(self.arrays[name]["features"], groups_of(self.rows[name].patients))

    def of_class(self, name: str, label: str) -> Numbers:
        """The rows of a set with this label."""
        return np.flatnonzero([found == label for found in self.rows[name].labels])

    def by_class(self, name: str) -> Iterator[tuple[str, Numbers]]:
        """Every class with its rows, none perhaps."""
        for label in self.classes:
            yield label, self.of_class(name, label)

    def facts(self) -> dict[str, Any]:
        """What decides every section: the sets read, the extractor, the judge, the gate."""
        return {
            "sets": {name: images.sha256 for name, images in sorted(self.sets.items())},
            "extractor": self.extractor.record(),
            "judge": None if self.judge is None else self.judge.sha256,
            "gate": self.pair.sha256,
            "seed": self.seed,
            "draws": self.draws,
        }
