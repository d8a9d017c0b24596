"""What an artefact saw: the samples, patients and labels that its weights are a function of.

Written as `seen.json` beside what is made (a model, latents, a set of shards), and handed on: what
is made with several parts saw what all of them saw. So what must not have seen a patient, or a
label, can be refused. What only reports figures (a judge, the test split at the end) or sets a
threshold that drops copies (the privacy gate) moves no weight and is not in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import astuple, dataclass
from typing import Protocol

from medray import log
from medray.errors import DataError
from medray.store import Store

SEEN = "seen.json"
SCHEMA = "medray.seen/1"
MODEL = "model"
# Patients that a message names; the others are counted.
NAMED = 3


class Fact(Protocol):
    """What is known of a sample without its pixels (`medray.stream.Fact`)."""

    @property
    def key(self) -> str: ...
    @property
    def label(self) -> str | None: ...
    @property
    def labels(self) -> dict[str, int | None]: ...
    @property
    def patient(self) -> str | None: ...
    @property
    def source_sha256(self) -> str | None: ...


@dataclass(frozen=True, order=True)
class Saw:
    """One image that was used: as training (`train`) or to choose and calibrate (`val`).

    `sample` is the digest of its source or "<set>/<key>", `patient` the keyed hash, or the sample
    where the patient is not known; `label` what was used of its labels ("a|b" for findings present,
    "" for none present), None where the image was used without them.
    """

    sample: str
    patient: str
    split: str
    label: str | None


class Lineage:
    """A set of `Saw`, sorted."""

    def __init__(self, entries: Iterable[Saw] = ()) -> None:
        # None does not compare with text: the same image may be seen with and without its label.
        self.entries = tuple(sorted(set(entries), key=_order))

    def __or__(self, other: Lineage) -> Lineage:
        return Lineage((*self.entries, *other.entries))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lineage) and self.entries == other.entries

    def __hash__(self) -> int:
        return hash(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"Lineage({len(self.entries)} entries)"

    @property
    def patients(self) -> set[str]:
        """All patients that were seen."""
        return {saw.patient for saw in self.entries}

    def refusals(self, *, patients: Collection[str], labels: Collection[str] | None) -> list[str]:
        """Why this may not be used, in words; empty where it may.

        `patients` are those that may not have been seen, and samples too: a set packed with another
        key names the same patient otherwise, and the same image alike. `labels` are the samples
        whose labels may have been used (None: any).
        """
        found = []
        held_out = frozenset(patients)
        held = {saw.patient for saw in self.entries if {saw.patient, saw.sample} & held_out}
        if held:
            found.append(f"it saw {_patients(held)} that are held out")
        if labels is not None:
            allowed = frozenset(labels)
            used = {saw.sample for saw in self.entries if saw.label is not None} - allowed
            if used:
                found.append(f"it used the labels of {len(used):,} sample(s) outside the fraction")
        return found

    def to_bytes(self) -> bytes:
        """`seen.json`: an entry a line, the same entries the same bytes."""
        lines = _lines(self.entries)
        head = json.dumps({"schema": SCHEMA, "sha256": _sha256(lines)})[:-1]
        return f'{head}, "entries": [\n{lines}\n]}}\n'.encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str = SEEN) -> Lineage:
        """What `to_bytes` gave; DataError where it is damaged or of another schema."""
        try:
            body = json.loads(data)
            found = cls(Saw(*entry) for entry in body["entries"])
            schema, stated = body["schema"], body["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(f"it cannot be read: {error}", where) from error
        if schema != SCHEMA:
            raise _damaged(f"schema {schema!r}, this version reads {SCHEMA}", where)
        if stated != _sha256(_lines(found.entries)):
            raise _damaged("it does not have the digest that it names", where)
        return found


def _order(saw: Saw) -> tuple[str, str, str, bool, str]:
    return saw.sample, saw.patient, saw.split, saw.label is not None, saw.label or ""


def _patients(held: set[str]) -> str:
    named = ", ".join(sorted(held)[:NAMED])
    more = f" and {len(held) - NAMED:,} more" if len(held) > NAMED else ""
    return f"{len(held):,} patient(s) ({named}{more})"


def _lines(entries: Iterable[Saw]) -> str:
    return ",\n".join(json.dumps(astuple(saw)) for saw in entries)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _damaged(what: str, where: str) -> DataError:
    return DataError(
        f"what an artefact saw: {what}",
        code="MR-D090",
        where=where,
        hint="copy it back, or make the artefact again",
    )


# --- of samples ---------------------------------------------------------------------------------


def sample_of(set_name: str, fact: Fact) -> str:
    """What a sample is called: the digest of its source, or the set's name and its key."""
    return fact.source_sha256 or f"{set_name}/{fact.key}"


def patient_of(set_name: str, fact: Fact) -> str:
    """The sample's patient, or the sample itself where that is not known."""
    return fact.patient or sample_of(set_name, fact)


def label_of(fact: Fact) -> str | None:
    """A sample's labels as text: findings present, or the one class; None where it has none."""
    present = [name for name, value in sorted(fact.labels.items()) if value == 1]
    if present:
        return "|".join(present)
    known = any(value is not None for value in fact.labels.values())
    return fact.label if fact.label is not None else "" if known else None


def of_facts(set_name: str, facts: Iterable[Fact], *, labels: bool, split: str) -> Lineage:
    """Samples of the set called `set_name`, used with or without their `labels`, as `split`."""
    return Lineage(
        Saw(
            sample_of(set_name, fact),
            patient_of(set_name, fact),
            split,
            label_of(fact) if labels else None,
        )
        for fact in facts
    )


# --- beside what was made -----------------------------------------------------------------------


def read(url: str) -> Lineage | None:
    """What the artefact at `url` saw: a run, its model folder, latents or a set of shards.

    None where it does not say; DataError where it says it unreadably.
    """
    for store in (Store(url), Store(url).child(MODEL)):
        if store.exists(SEEN):
            return Lineage.from_bytes(store.read_bytes(SEEN), f"{store.url}/{SEEN}")
    return None


def write(store: Store, lineage: Lineage) -> None:
    """Writes `seen.json` into a model's or a set's folder."""
    store.write_bytes(SEEN, lineage.to_bytes())


def write_known(store: Store, lineage: Lineage | None, where: str = "") -> None:
    """Writes what was seen, where that is known; else warns that `where` does not say it."""
    if lineage is not None:
        write(store, lineage)
    else:
        log.warn(
            "unseen",
            f"{where or store.url} does not say what it saw: something that it is made of does "
            "not (pre-training and sweeps refuse it)",
        )


def united(urls: Iterable[str | None]) -> Lineage | None:
    """What the artefacts at `urls` saw together; None where one of them does not say."""
    found = Lineage()
    for url in urls:
        if url is None:
            continue
        saw = read(url)
        if saw is None:
            return None
        found |= saw
    return found


def refuse(url: str, *, patients: Collection[str], labels: Collection[str] | None) -> Lineage:
    """What the artefact at `url` saw; DataError where it may not be used, or does not say.

    `patients` and `labels` as in `Lineage.refusals`.
    """
    saw = read(url)
    if saw is None:
        raise DataError(
            f"it does not say what it saw (no {SEEN})",
            code="MR-D091",
            where=url,
            hint="make it again, from parts that say it too",
        )
    if found := saw.refusals(patients=patients, labels=labels):
        raise DataError(
            "; ".join(found),
            code="MR-D092",
            where=url,
            hint="make it with the same --fraction, --fraction-seed and --exclude-patients, of "
            "the training split alone (a classifier: --validation-patients)",
        )
    return saw
