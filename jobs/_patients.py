"""Whose images and labels a job takes: patients left out, a fraction of labels, who validates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medray import log
from medray.errors import DataError

if TYPE_CHECKING:
    from medray.stream import Fact, Roster


def without(url: str | None, roster: Roster, facts: list[Fact]) -> list[Fact]:
    """Those of `facts` whose patient the file at `url` does not name; warns where it names none."""
    from medray import lineage
    from medray.train import fraction, targets

    if url is None:
        return facts
    patients = fraction.read_patients(url)
    kept = []
    for name, some in roster.by_source(facts):
        for fact in some:
            names = {targets.patient_of(fact), lineage.patient_of(name, fact)}
            if not names & patients:
                kept.append(fact)
    if len(kept) == len(facts):
        log.warn(
            "nobody_excluded",
            f"split {roster.split} has none of the {len(patients):,} patients of "
            f"--exclude-patients {url}",
            split=roster.split,
        )
    return kept


def in_fraction(facts: list[Fact], share: float, seed: int) -> list[Fact]:
    """Samples of the patients whose labels may be used; all where `share` is 1."""
    from medray.train import fraction, targets

    if share == 1:
        return facts
    patients = fraction.in_fraction(fraction.labels_by_patient(facts), share, seed)
    return [fact for fact in facts if targets.patient_of(fact) in patients]


def parted(facts: list[Fact], share: float | None, seed: int) -> tuple[list[Fact], list[Fact]]:
    """Samples to train on, and those of the `share` of patients who validate instead."""
    from medray.train import fraction, targets

    if share is None:
        return facts, []
    patients = fraction.held_for_validation(fraction.labels_by_patient(facts), share, seed)
    if not patients:
        raise DataError(
            f"too few patients for --validation-patients {share:g}: every class has one at most, "
            "which trains",
            code="MR-D072",
            hint="leave --validation-patients out, or give a set with more patients",
        )
    held = [fact for fact in facts if targets.patient_of(fact) in patients]
    return [fact for fact in facts if targets.patient_of(fact) not in patients], held
