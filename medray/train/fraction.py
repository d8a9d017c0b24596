"""Which patients' labels an experiment may use, and which patients validate: by class, by patient.

A place is a function of (patient, seed) alone and the choice one of (patients, labels, share,
seed): the order of files does not matter, and a smaller fraction lies within a larger one.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping

from medray import rng
from medray.errors import UsageError
from medray.store import Store
from medray.train.targets import Labelled, patient_of

FRACTION_STREAM, VALIDATION_STREAM = "train.fraction", "train.validation"
# Findings none of which is present make a class of their own.
NOTHING = ""

Labels = Mapping[str, Collection[str]]


def in_fraction(patients_labels: Labels, fraction: float, seed: int) -> set[str]:
    """The patients whose labels a run at `fraction` may use, at least one of each class.

    `patients_labels` has each patient's labels, all samples together. Patients are drawn in strata
    of their rarest label. UsageError unless 0 < fraction <= 1.
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"a fraction must be above 0 and at most 1, got {fraction}")
    strata = _strata(patients_labels, seed, FRACTION_STREAM)
    chosen = set(_first_of_each_class(patients_labels, strata))
    for patients in strata.values():
        chosen.update(patients[: max(1, _share(fraction, len(patients)))])
    return chosen


def held_for_validation(patients_labels: Labels, share: float, seed: int) -> set[str]:
    """Patients who validate instead of being trained on: `share` of each stratum, at least one.

    A class keeps a patient to train on: the only patient of a class is never held. UsageError
    unless 0 < share < 1.
    """
    if not 0 < share < 1:
        raise UsageError(f"a share of patients must lie between 0 and 1, got {share}")
    strata = _strata(patients_labels, seed, VALIDATION_STREAM)
    kept = set(_first_of_each_class(patients_labels, strata))
    held: set[str] = set()
    for patients in strata.values():
        count = min(max(1, _share(share, len(patients))), len(patients) - 1)
        held.update(patients[len(patients) - count :])
    return held - kept


def labels_by_patient(facts: Iterable[Labelled]) -> dict[str, set[str]]:
    """Each patient's labels: findings present, or the class; patients without a label left out."""
    found: dict[str, set[str]] = defaultdict(set)
    for fact in facts:
        if names := labels_of(fact):
            found[patient_of(fact)].update(names)
    # Nothing present in one image says nothing beside what another shows.
    return {patient: (names - {NOTHING}) or names for patient, names in found.items()}


def labels_of(fact: Labelled) -> set[str]:
    """A sample's findings present and its class; {""} where all findings are absent."""
    names = {name for name, value in fact.labels.items() if value == 1}
    if fact.label is not None:
        names.add(fact.label)
    known = any(value is not None for value in fact.labels.values())
    return names or ({NOTHING} if known else set())


def rarest(names: Collection[str], patients: Mapping[str, int]) -> str:
    """The label among `names` that the fewest have; of equals the first by name."""
    return min(names, key=lambda name: (patients[name], name))


def _strata(patients_labels: Labels, seed: int, stream: str) -> dict[str, list[str]]:
    """Patients by their rarest label, each stratum in the order of their addresses."""
    counts = Counter(name for names in patients_labels.values() for name in set(names))
    place = _places(sorted(patients_labels), seed, stream)
    strata: dict[str, list[str]] = defaultdict(list)
    for patient in sorted(patients_labels, key=lambda name: (place[name], name)):
        if names := patients_labels[patient]:
            strata[rarest(names, counts)].append(patient)
    return dict(strata)


def _places(patients: list[str], seed: int, stream: str) -> dict[str, int]:
    digests = (hashlib.sha256(patient.encode()).digest() for patient in patients)
    return {
        patient: int.from_bytes(rng.bits(seed, stream, int.from_bytes(digest[:8]), 2).tobytes())
        for patient, digest in zip(patients, digests, strict=True)
    }


def _first_of_each_class(patients_labels: Labels, strata: dict[str, list[str]]) -> list[str]:
    """A patient of each class whatever the fraction, so that fractions stay nested.

    The first of its stratum; a class that is nobody's rarest takes the first who has it.
    """
    ordered = [patient for stratum in strata.values() for patient in stratum]
    classes = sorted({name for names in patients_labels.values() for name in names})
    return [
        strata[name][0]
        if name in strata
        else next(patient for patient in ordered if name in patients_labels[patient])
        for name in classes
    ]


def _share(share: float, count: int) -> int:
    """`share` of `count`, rounded; halves go up whatever the last bit of the product is."""
    return math.floor(share * count + 0.5 + 1e-9)


def read_patients(url: str) -> frozenset[str]:
    """Patients by their keyed hashes, one a line (# begins a comment); UsageError for none."""
    folder, _, name = url.rpartition("/")
    try:
        text = Store(folder or ".").read_bytes(name).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--exclude-patients {url} cannot be read: {error}",
            hint="give a text file with the keyed hash of a patient on each line",
        ) from None
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    patients = frozenset(line for line in lines if line)
    if not patients:
        raise UsageError(f"--exclude-patients {url} names no patient", hint="leave it out")
    return patients
