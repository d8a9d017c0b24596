"""What a search may see, and the test rows, which come out once: two objects that share nothing.

`SearchData` is made without test rows, so that nothing which chooses can touch them. `TestOnce`
gives them to weights that are fixed already, writes down beforehand to which, and to no others.

Shape letters: N rows, D features, K classes, P parts (inner splits).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from medray.errors import DataError
from medray.store import Store

Features = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True)
class Rows:
    """Labelled rows: features (N, D), class numbers (N,), and whose they are."""

    features_ND: Features
    labels_N: Numbers
    patients: tuple[str, ...]
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, numbers: Sequence[int] | Numbers) -> Rows:
        """The rows of these numbers, in their order."""
        rows = np.asarray(numbers, np.int64)
        return Rows(
            self.features_ND[rows],
            self.labels_N[rows],
            tuple(self.patients[n] for n in rows),
            tuple(self.keys[n] for n in rows),
        )

    @property
    def sha256(self) -> str:
        """A digest of keys, labels and features."""
        digest = hashlib.sha256(json.dumps([self.keys, self.patients]).encode())
        digest.update(np.ascontiguousarray(self.labels_N).tobytes())
        digest.update(np.ascontiguousarray(self.features_ND).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Part:
    """Row numbers to train on and to choose by: no patient is on both sides."""

    train: Numbers
    val: Numbers


@dataclass(frozen=True)
class SearchData:
    """The rows of one fraction and fold that training and choosing may use; no test row is here.

    DataError where a patient stands on both sides of a part, or where `held_out` (patients of the
    test rows) has one of them.
    """

    rows: Rows
    parts: tuple[Part, ...]
    classes: tuple[str, ...]
    synthetic: Rows | None = None

    def check(self, held_out: frozenset[str], where: str = "") -> SearchData:
        """Itself."""
        if met := held_out.intersection(self.rows.patients):
            raise _leak(
                f"{len(met)} patient(s) of the test rows are among those to choose by", where
            )
        for part in self.parts:
            sides = [{self.rows.patients[n] for n in side} for side in (part.train, part.val)]
            if both := sides[0] & sides[1]:
                raise _leak(f"{len(both)} patient(s) are on both sides of a validation", where)
        if not np.isfinite(self.rows.features_ND).all():
            raise DataError("features are not finite", code="MR-D410", where=where)
        return self


def _leak(what: str, where: str) -> DataError:
    return DataError(what, code="MR-D411", where=where, hint="pack the set with a split by patient")


class TestOnce(Generic[T]):
    """The test rows, given once to each set of weights, which must be fixed before.

    What they were given to is written down first (`touched/NAME.json`). A second request with other
    weights is refused; with the same weights it is a start that was cut short, and goes on. Where
    predictions are stored already, no row is given at all.
    """

    # Not a class of tests.
    __test__ = False

    def __init__(self, store: Store, rows_of: Callable[[int | None], T]) -> None:
        self._store, self._rows_of = store, rows_of
        self._given: set[str] = set()

    def open(self, name: str, fold: int | None, weights: bytes) -> T:
        """The test rows of a fold for the weights called `name`; DataError the second time."""
        sha256 = hashlib.sha256(weights).hexdigest()
        before = self._touched(name)
        if name in self._given or before not in (None, sha256):
            raise DataError(
                f"{name} has touched the test split already, with "
                f"{'these' if before == sha256 else 'other'} weights",
                code="MR-D412",
                where=self._store.url,
                hint="each arm touches it once; a new question needs a new --out, said so in print",
            )
        text = json.dumps({"name": name, "fold": fold, "weights_sha256": sha256}, sort_keys=True)
        if before is None:
            self._store.write_bytes(_touch(name), (text + "\n").encode())
        self._given.add(name)
        return self._rows_of(fold)

    def _touched(self, name: str) -> str | None:
        try:
            found: dict[str, Any] = json.loads(self._store.read_bytes(_touch(name)))
        except FileNotFoundError:
            return None
        return str(found["weights_sha256"])


def _touch(name: str) -> str:
    return f"touched/{name}.json"
