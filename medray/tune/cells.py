"""One search: an arm at a label fraction on an outer fold. Its name is its place on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """An arm at a label fraction; `fold` is None where the set's own splits are used."""

    arm: str
    fraction: float
    fold: int | None = None

    @property
    def name(self) -> str:
        """Such as smote-0.25-fold2."""
        fold = "" if self.fold is None else f"-fold{self.fold}"
        return f"{self.arm}-{self.fraction:g}{fold}"


def cells_of(arms: Sequence[str], fractions: Sequence[float], folds: int) -> list[Cell]:
    """All searches, arms within folds within fractions, so that a stop leaves whole comparisons."""
    numbers: list[int | None] = [*range(folds)] or [None]
    return [Cell(arm, fraction, fold) for fraction in fractions for fold in numbers for arm in arms]
