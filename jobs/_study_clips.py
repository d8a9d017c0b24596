"""Tables of clips for the studies: what a set's patients have, as findings of 1, 0 or unknown."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path

from medray.store import Store

# Findings of the LGG set: the column of patients.csv, and the value that counts as present. Its
# integers are codes; 1 and 2 of the grade are WHO grades II and III.
LGG_FINDINGS: dict[str, tuple[str, str]] = {
    "grade_3": ("neoplasm_histologic_grade", "2"),
    "astrocytoma": ("histological_type", "1"),
    "oligoastrocytoma": ("histological_type", "2"),
    "oligodendroglioma": ("histological_type", "3"),
    "right": ("laterality", "3"),
    "frontal": ("tumor_location", "2"),
    "temporal": ("tumor_location", "6"),
    "parietal": ("tumor_location", "5"),
}
# Of the sides only left and right are told apart: a tumour of the midline is unknown.
LGG_KNOWN: dict[str, frozenset[str]] = {"laterality": frozenset("13")}


def lgg_clips(folder_of_unpacked_tar: str, out_csv: str) -> dict[str, dict[str, int]]:
    """Writes the LGG set's table of clips: a patient a clip, with mask, split and findings.

    Paths in it are relative to the table. Returns how many clips have each finding (`present`), do
    not (`absent`) or do not say, the rarest finding first.
    """
    folder, out = Path(folder_of_unpacked_tar), Path(out_csv)
    rows = list(csv.DictReader(io.StringIO((folder / "patients.csv").read_text("utf-8"))))
    relative = Path(_relative(folder, out.parent))
    table = [["clip", "patient", "split", "mask", *LGG_FINDINGS]]
    found = {name: {"present": 0, "absent": 0, "unknown": 0} for name in LGG_FINDINGS}
    for row in rows:
        values = {name: lgg_finding(row, name) for name in LGG_FINDINGS}
        for name, value in values.items():
            found[name][{"1": "present", "0": "absent", "": "unknown"}[value]] += 1
        places = [str(relative / kind / row["patient"]) for kind in ("images", "masks")]
        table.append([places[0], row["patient"], row["split"], places[1], *values.values()])
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(table)
    Store(str(out.parent)).write_bytes(out.name, text.getvalue().encode())
    return dict(sorted(found.items(), key=lambda item: (item[1]["present"], item[0])))


def lgg_finding(row: Mapping[str, str], name: str) -> str:
    """ "1", "0" or "" (not known) of one finding of a patient."""
    column, present = LGG_FINDINGS[name]
    value = row[column].strip()
    if not value or value not in LGG_KNOWN.get(column, (value,)):
        return ""
    return str(int(value == present))


def _relative(folder: Path, base: Path) -> str:
    return os.path.relpath(folder.resolve(), base.resolve())
