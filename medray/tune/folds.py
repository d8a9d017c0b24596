"""Patients in folds: each in one, classes spread evenly, a function of (patients, labels, seed)."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from medray import rng
from medray.errors import DataError, UsageError
from medray.tune.data import Numbers, Part

OUTER, INNER = "tune.folds.outer", "tune.folds.inner"


def label_by_patient(patients: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """Each patient's label: of several the one that the fewest rows of the set have."""
    counts = Counter(labels)
    found: dict[str, str] = {}
    for patient, label in zip(patients, labels, strict=True):
        kept = found.get(patient, label)
        found[patient] = min(kept, label, key=lambda name: (counts[name], name))
    return found


def folds_of(
    labels: Mapping[str, str], folds: int, seed: int, stream: str = OUTER
) -> dict[str, int]:
    """The fold (0 to folds - 1) of each patient, stratified by label.

    Within a label, patients go round the folds in the order of their addresses, and the next label
    goes on where the last one ended. UsageError below two folds; DataError where a label has one
    patient, who could be trained on or tested and not both, or where a fold would stay empty.
    """
    if folds < 2:
        raise UsageError(f"folds must be 2 or more, got {folds}")
    by_label: dict[str, list[str]] = defaultdict(list)
    for patient in sorted(labels, key=lambda name: (_place(name, seed, stream), name)):
        by_label[labels[patient]].append(patient)
    alone = [name for name, patients in sorted(by_label.items()) if len(patients) == 1]
    if alone or len(labels) < folds:
        what = f"class {', '.join(alone)} has one patient" if alone else f"{len(labels)} patients"
        raise DataError(
            f"{what}: too few for {folds} folds, which share no patient",
            code="MR-D413",
            hint="leave the class out (--classes), or pack more patients of it",
        )
    ordered = [patient for name in sorted(by_label) for patient in by_label[name]]
    return {patient: place % folds for place, patient in enumerate(ordered)}


def parts_of(patients: Sequence[str], labels: Sequence[str], inner: int, seed: int) -> list[Part]:
    """`inner` splits of rows into training and validation, by patient."""
    fold = folds_of(label_by_patient(patients, labels), inner, seed, INNER)
    fold_N = np.asarray([fold[patient] for patient in patients])
    return [Part(_where(fold_N != k), _where(fold_N == k)) for k in range(inner)]


def _where(chosen_N: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Numbers:
    return np.flatnonzero(chosen_N).astype(np.int64)


def _place(patient: str, seed: int, stream: str) -> int:
    index = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big")
    return int.from_bytes(rng.bits(seed, stream, index, 2).tobytes(), "big")
