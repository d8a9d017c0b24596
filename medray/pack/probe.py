"""What planning needs of the files themselves: how many bits they have, and DICOM's patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from medray.errors import DataError
from medray.images import bits_of, format_of
from medray.images.child import shared
from medray.pack.deidentify import Keyed
from medray.pack.sources import Entry, Files

HEAD_BYTES = 132
CHUNK = 200


@dataclass(frozen=True, slots=True)
class Probed:
    """Bits of a file (None: it cannot be read, which packing will say), and its hashed patient."""

    bits: int | None
    patient: str | None = None


def probe(base: str, names: Sequence[str], keyed: Keyed) -> list[Probed]:
    """One answer per file; headers alone are parsed, DICOM's in the limited child."""
    files = Files(base or "/")
    answers: list[Probed] = []
    for start in range(0, len(names), CHUNK):
        answers += _probe_chunk(files, names[start : start + CHUNK], keyed)
    return answers


def _probe_chunk(files: Files, names: Sequence[str], keyed: Keyed) -> list[Probed]:
    answers: dict[str, Probed] = {}
    dicom: list[tuple[str, bytes]] = []
    for name in names:
        try:
            head = files.head(name, HEAD_BYTES)
            if format_of(head) == "dicom":
                dicom.append((name, files.read(name)))
            else:
                whole = head if format_of(head) == "png" else files.read(name)
                answers[name] = Probed(bits_of(whole))
        except (DataError, OSError):
            answers[name] = Probed(None)
    for (name, _), header in zip(dicom, shared().headers(dicom), strict=True):
        if isinstance(header, DataError):
            answers[name] = Probed(None)
        else:
            answers[name] = Probed(header.bits, keyed.patient(header.patient or ""))
    return [answers[name] for name in names]


def with_patients(entries: list[Entry], probed: list[Probed]) -> list[Entry]:
    """Entries with DICOM's patients where the table names none."""
    return [
        entry if entry.patient or not found.patient else replace(entry, patient=found.patient)
        for entry, found in zip(entries, probed, strict=True)
    ]


def common_bits(probed: list[Probed]) -> int:
    """8 where no readable file has more, else 16."""
    return max((found.bits for found in probed if found.bits is not None), default=8)
