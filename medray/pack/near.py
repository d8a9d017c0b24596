"""Pictures that are nearly the same though they are in different splits or of different patients.

The same film exported twice, in another format, size or grey curve, in training and in test makes a
test worth less. Every pair of thumbnails (`thumbs`) is compared, a block at a time.

A picture takes 2.3 kB here (a clip four times that), a block 8 MiB for each of its two products.

Shape letters: N pictures, D numbers of a thumbnail.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medray import log
from medray.pack import thumbs
from medray.pack.plan import Plan
from medray.pack.worker import Result
from medray.records import SPLITS

ROWS, COLUMNS = 512, 4096
MOST_LISTED = 100_000

Array = npt.NDArray[Any]
Forms = list[npt.NDArray[np.int16]]


@dataclass(frozen=True, slots=True)
class Near:
    """The pairs: `listed` (key, key, similarity), the likest first, and how many there are."""

    similarity: float
    across_splits: int
    across_patients: int
    listed: tuple[tuple[str, str, float], ...]

    def summary(self) -> dict[str, Any]:
        """What stands of them in `summary.json`."""
        return {
            "similarity": self.similarity,
            "across_splits": self.across_splits,
            "across_patients": self.across_patients,
        }


def near_words(summary: dict[str, Any]) -> str:
    """The counts of a summary as part of a sentence."""
    return (
        f"{summary.get('across_splits', 0):,} pairs are nearly the same in different splits, "
        f"{summary.get('across_patients', 0):,} of different patients in one split"
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """What decides whether a pair counts, a row a picture."""

    keys: list[str]
    split_N: Array
    patient_N: Array
    pixels_N: Array

    def counts(self, i: Array, j: Array) -> tuple[Array, Array]:
        """Which pairs are in two splits, and which of two known patients in one.

        Pixel for pixel equal ones in two splits are left out: they have a report of their own.
        """
        across = self.split_N[i] != self.split_N[j]
        mine, other = self.patient_N[i], self.patient_N[j]
        patients = ~across & (mine != other) & (mine >= 0) & (other >= 0)
        return across & (self.pixels_N[i] != self.pixels_N[j]), patients


def near_duplicates(plan: Plan, results: Sequence[Result], similarity: float) -> Near:
    """Every pair of pictures at least so alike, in different splits or of different patients.

    Takes the thumbnails out of the results, so that they are held once.
    """
    known, forms = _known(plan, results), _thumbs(results)
    splits = patients = 0
    listed: list[tuple[str, str, float]] = []
    with log.Progress("comparing", len(known.keys)) as progress:
        for done, i, j, alike in _pairs(forms, similarity):
            across, other = known.counts(i, j)
            splits, patients = splits + int(across.sum()), patients + int(other.sum())
            for n in np.flatnonzero(across | other)[: MOST_LISTED - len(listed)]:
                listed.append((known.keys[i[n]], known.keys[j[n]], round(float(alike[n]), 4)))
            progress.update(done)
    listed.sort(key=lambda pair: (-pair[2], pair))
    return Near(similarity, splits, patients, tuple(listed))


def _known(plan: Plan, results: Sequence[Result]) -> _Known:
    keys: list[str] = []
    split, patient, pixels = [], [], []
    numbers: dict[str, int] = {}
    for shard, result in zip(plan.shards, results, strict=True):
        for number, digest in result.pixels:
            name = shard.entries[number].patient
            keys.append(f"{shard.split}-{shard.first + number:08d}")
            split.append(SPLITS.index(shard.split))
            patient.append(-1 if name is None else numbers.setdefault(name, len(numbers)))
            pixels.append(digest)
    equal = np.unique(np.array(pixels), return_inverse=True)[1] if pixels else np.zeros(0)
    return _Known(keys, np.array(split), np.array(patient), equal)


def _thumbs(results: Sequence[Result]) -> Forms:
    """All thumbnails in both forms, (N, D) each."""
    every = np.zeros((0, thumbs.FORMS, 1), np.int16)
    done, count = 0, sum(len(result.pixels) for result in results)
    for result in results:
        if not result.pixels:
            continue
        part = thumbs.unpacked(result.thumbs, len(result.pixels))
        result.thumbs = ""
        if not done:
            every = np.empty((count, *part.shape[1:]), np.int16)
        every[done : done + len(part)] = part
        done += len(part)
    return [every[:, form] for form in range(thumbs.FORMS)]


def _pairs(forms: Forms, similarity: float) -> Iterator[tuple[int, Array, Array, Array]]:
    """(rows done, i, j, similarity) of all pairs i < j at least so alike, a block at a time.

    Of several forms of a thumbnail the likest counts.
    """
    count = len(forms[0])
    squares = [_squares(form) for form in forms]
    # Blank ones are like no other. Lengths differ by rounding: the exact test comes after.
    least = np.float32(
        similarity
        * min(square_N.min(initial=thumbs.NORM**2, where=square_N > 0) for square_N in squares)
    )
    for first in range(0, count, ROWS):
        for start in range(first, count, COLUMNS):
            products = [
                _floats(form[first : first + ROWS]) @ _floats(form[start : start + COLUMNS]).T
                for form in forms
            ]
            i, j = np.nonzero(np.logical_or.reduce([product >= least for product in products]))
            alike = np.zeros(len(i))
            for product, square_N in zip(products, squares, strict=True):
                lengths = np.sqrt(square_N[i + first] * square_N[j + start])
                lengths[lengths == 0] = np.inf
                alike = np.maximum(alike, product[i, j].astype(np.float64) / lengths)
            i, j = i + first, j + start
            kept = (i < j) & (alike >= similarity)
            yield first, i[kept], j[kept], alike[kept]


def _floats(rows: Array) -> npt.NDArray[np.float32]:
    return rows.astype(np.float32)


def _squares(form: Array) -> npt.NDArray[np.float64]:
    """The squared length of each row, (N,): exact in float32, as the products are."""
    blocks = [_floats(form[first : first + ROWS]) for first in range(0, len(form), ROWS)]
    squares = [np.einsum("nd,nd->n", block, block) for block in blocks]
    return np.concatenate(squares or [np.zeros(0)]).astype(np.float64)
