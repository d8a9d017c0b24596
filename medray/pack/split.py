"""Splits by patient: checked where they are given, drawn where they are not.

A patient's place is a keyed hash, so it does not depend on the order of files.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from medray.errors import DataError
from medray.pack.deidentify import Keyed
from medray.pack.sources import Entry, label_counts, with_split
from medray.records import SPLITS


def patients_in_two_splits(entries: list[Entry]) -> Iterator[DataError]:
    """One finding per patient whose images are in more than one split, naming all the places."""
    seen: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        if entry.patient and entry.split:
            seen[entry.patient][entry.split].append(entry.where)
    for patient, by_split in sorted(seen.items()):
        if len(by_split) > 1:
            places = ", ".join(
                _place(split, by_split[split]) for split in SPLITS if split in by_split
            )
            yield DataError(
                f"patient {patient} (hashed) is in {len(by_split)} splits: {places}",
                code="MR-D208",
                hint="keep all images of a patient in one split, or empty the column",
            )


def _place(split: str, rows: list[str]) -> str:
    named = [row for row in rows if row]
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return f"{split} ({', '.join(named[:3])}{more})" if named else f"{split} ({len(rows)} images)"


def drawn_splits(
    entries: list[Entry], keyed: Keyed, seed: int, fractions: Mapping[str, float]
) -> list[Entry]:
    """Entries with a split each: whole patients, val and test with `fractions` of the images.

    Patients are drawn in strata of their rarest label, so that each class is spread as evenly as
    whole patients allow. An entry without a patient counts as a patient of its own.
    """
    rarity = label_counts(entries)
    labels: dict[str, set[str]] = defaultdict(set)
    images: Counter[str] = Counter()
    for entry in entries:
        labels[unit_of(entry)].update(entry.labels or ())
        images[unit_of(entry)] += 1
    strata: dict[str, list[str]] = defaultdict(list)
    for unit, names in labels.items():
        strata[min(names, key=lambda name: (rarity[name], name), default="")].append(unit)
    shares = {"train": 1 - sum(fractions.values()), **fractions}
    place: dict[str, str] = {}
    wanting = dict.fromkeys(shares, 0.0)
    for stratum in sorted(strata, key=lambda name: (rarity[name], name)):
        units = sorted(strata[stratum], key=lambda unit: keyed.uniform(f"split {seed}", unit))
        _share_out(units, images, shares, wanting, place)
    return [with_split(entry, place[unit_of(entry)]) for entry in entries]


def unit_of(entry: Entry) -> str:
    """What must stay in one split: the patient, or the file where no patient is known."""
    return entry.patient or f"file {entry.file}"


def _share_out(
    units: list[str],
    images: Mapping[str, int],
    shares: Mapping[str, float],
    wanting: dict[str, float],
    place: dict[str, str],
) -> None:
    """Each unit to the split that wants most; what is left wanting goes to the next stratum."""
    total = sum(images[unit] for unit in units)
    for split, share in shares.items():
        wanting[split] += share * total
    for unit in units:
        most = max((split for split in shares if shares[split] > 0), key=lambda name: wanting[name])
        place[unit] = most
        wanting[most] -= images[unit]
