"""A trial, whoever runs it: steps one after the other, each a score; the record of what came."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from medray.errors import ResourceError, Stopped, of_machine
from medray.tune.cells import Cell
from medray.tune.search import COMPLETE, FAILED, STOPPED, Record, Searches, State, Trial
from medray.tune.spaces import Settings

Told = Callable[[Trial, Record], None]


class Trials(Protocol):
    """The two kinds of trial behind one interface: on features and on images."""

    def steps(self, cell: Cell) -> int:
        """Steps of one trial."""

    def score(self, cell: Cell, settings: Settings, step: int) -> float:
        """The validation score of one step, higher is better; a function of its arguments."""

    def fit(self, cell: Cell, settings: Settings, seed: int) -> bytes:
        """The weights that the test split is asked with."""

    def predict(self, cell: Cell, weights: bytes, rows: Any) -> Any:
        """Probabilities of test rows, (N, K)."""


class NotFinite(ValueError):
    """A score that is not a number."""


def checked(score: float) -> float:
    """The score; NotFinite where it is none."""
    if not math.isfinite(score):
        raise NotFinite(f"the validation score is {score}")
    return float(score)


def ended(trial: Trial, scores: Sequence[float]) -> Record:
    """The record of a trial that came to its end or was given up."""
    state: State = COMPLETE if len(scores) == trial.steps else STOPPED
    return Record(trial.number, trial.settings, tuple(scores), state)


def crashed(trial: Trial, scores: Sequence[float], error: str) -> Record:
    """The record of a trial that crashed: it fails alone."""
    return Record(trial.number, trial.settings, tuple(scores), FAILED, error)


def short(error: BaseException) -> str:
    """An error in one line, the same wherever it happened."""
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:300]


def of_trial(error: Exception) -> bool:
    """Whether an error says something of the trial: not a stop, nor what machine or store refuse.

    Those pass, and the same command goes on; a trial that is called failed stays so.
    """
    return not isinstance(error, Stopped | ResourceError) and of_machine(error) is None


def run_here(trials: Trials, searches: Searches, told: Told) -> None:
    """Runs all trials in this process, one after the other."""
    while (trial := searches.next()) is not None:
        scores: list[float] = []
        try:
            for score in _steps(trials, trial):
                scores.append(score)
                if trial.given_up(scores):
                    break
            record = ended(trial, scores)
        except Exception as error:
            if not of_trial(error):
                # This trial is not told: the next run begins it again.
                raise
            record = crashed(trial, scores, short(error))
        searches.take(trial.cell, record)
        told(trial, record)


def _steps(trials: Trials, trial: Trial) -> Iterator[float]:
    for step in range(trial.steps):
        yield checked(trials.score(trial.cell, trial.settings, step))
