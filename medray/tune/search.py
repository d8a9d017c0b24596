"""The search of one cell, in rounds: what is tried next, and what is given up, follow from what the
finished rounds found, and from nothing else.

So two workers side by side, one after the other, or a start after a kill find the same: a round is
proposed when the round before it has ended, and a trial is compared at a rung with the trials of
finished rounds (asynchronous successive halving, Li et al., MLSys 2020, with its peers fixed when
the trial starts instead of when it gets there).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from medray.tune.cells import Cell
from medray.tune.spaces import Space, Tried, propose

State = Literal["complete", "stopped", "failed"]
COMPLETE: Literal["complete"] = "complete"
STOPPED: Literal["stopped"] = "stopped"
FAILED: Literal["failed"] = "failed"
MOST_TRIALS = 24


@dataclass(frozen=True)
class Record:
    """What came of a trial: its scores step by step (higher is better), and how it ended."""

    number: int
    settings: dict[str, float]
    scores: tuple[float, ...]
    state: State
    error: str = ""

    @property
    def score(self) -> float | None:
        """The mean so far; None where the trial failed."""
        return None if self.state == FAILED or not self.scores else mean(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "scores": list(self.scores)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Record:
        """What `to_dict` gave."""
        return cls(**{**fields, "scores": tuple(fields["scores"])})


@dataclass(frozen=True)
class Trial:
    """A trial to run: where, with what, how many steps, and what it must reach at a rung."""

    cell: Cell
    number: int
    settings: dict[str, float]
    steps: int
    cutoffs: dict[int, float]

    @property
    def name(self) -> str:
        """Its place on disk."""
        return f"{self.cell.name}/{self.number:03d}"

    def given_up(self, scores: Sequence[float]) -> bool:
        """Whether it is stopped after these scores."""
        cutoff = self.cutoffs.get(len(scores))
        return cutoff is not None and len(scores) < self.steps and mean(scores) < cutoff


def mean(scores: Sequence[float]) -> float:
    """Of scores so far; exact in its order, whoever adds."""
    return math.fsum(scores) / len(scores)


@dataclass
class Search:
    """One cell's search; `records` are its finished trials, by number."""

    cell: Cell
    space: Space
    steps: int
    trials: int = MOST_TRIALS
    width: int = 4
    eta: int = 3
    seed: int = 0
    records: dict[int, Record] = field(default_factory=dict)
    _issued: set[int] = field(default_factory=set)
    _rounds: dict[int, list[Trial]] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether every trial has ended."""
        return len(self.records) >= self.trials

    def next(self) -> Trial | None:
        """A trial to start now; None where the round under way must end first, or all is done."""
        for number in range(self.trials):
            if number in self.records or number in self._issued:
                continue
            if len(self._known(number // self.width)) < self._before(number // self.width):
                return None
            self._issued.add(number)
            return self._round(number // self.width)[number % self.width]
        return None

    def take(self, record: Record) -> None:
        """What came of a trial."""
        self.records[record.number] = record

    def best(self) -> Record | None:
        """The complete trial with the highest mean; of equals the first. None where all failed."""
        complete = [r for _, r in sorted(self.records.items()) if r.state == COMPLETE]
        return max(complete, key=lambda r: mean(r.scores), default=None)

    def _before(self, number: int) -> int:
        return number * self.width

    def _known(self, round_number: int) -> list[Record]:
        """Finished trials of the rounds before."""
        return [r for n, r in sorted(self.records.items()) if n < self._before(round_number)]

    def _round(self, number: int) -> list[Trial]:
        if number not in self._rounds:
            known = self._known(number)
            count = min(self.width, self.trials - self._before(number))
            tried = [Tried(r.settings, r.score) for r in known]
            settings = propose(self.space, tried, count, self._address())
            cutoffs = cutoffs_of(known, self.steps, self.eta)
            self._rounds[number] = [
                Trial(self.cell, self._before(number) + n, made, self.steps, cutoffs)
                for n, made in enumerate(settings)
            ]
        return self._rounds[number]

    def _address(self) -> int:
        digest = hashlib.sha256(f"{self.seed} {self.cell.name}".encode()).digest()
        return int.from_bytes(digest[:7], "big")


def rungs_of(steps: int, eta: int) -> list[int]:
    """After how many steps trials are compared: 1, eta, eta squared ... below all of them."""
    found = []
    rung = 1
    while rung < steps:
        found.append(rung)
        rung *= eta
    return found


def cutoffs_of(known: Sequence[Record], steps: int, eta: int) -> dict[int, float]:
    """The mean score that puts a trial into the best 1/eta of those known at each rung."""
    found = {}
    for rung in rungs_of(steps, eta):
        there = [
            mean(r.scores[:rung]) for r in known if r.score is not None and len(r.scores) >= rung
        ]
        if there:
            found[rung] = float(np.quantile(there, 1 - 1 / eta))
    return found


class Searches:
    """All searches: gives out trials, those of cells in their order first, and takes records."""

    def __init__(self, searches: Sequence[Search]) -> None:
        self._by_cell = {search.cell: search for search in searches}

    def __iter__(self) -> Iterator[Search]:
        return iter(self._by_cell.values())

    def __getitem__(self, cell: Cell) -> Search:
        return self._by_cell[cell]

    @property
    def done(self) -> bool:
        """Whether every trial of every search has ended."""
        return all(search.done for search in self)

    def next(self) -> Trial | None:
        """A trial to start now; None where one that runs must end first, or all are done."""
        for search in self:
            if not search.done and (trial := search.next()) is not None:
                return trial
        return None

    def take(self, cell: Cell, record: Record) -> None:
        """What came of a trial."""
        self._by_cell[cell].take(record)
