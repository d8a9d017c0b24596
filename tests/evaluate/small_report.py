"""A small report for tests of faults: two sections with pictures, a page, a summary."""

from __future__ import annotations

import json
import os
from pathlib import Path

from medray.evaluate.resample import Figure
from medray.evaluate.sections import Section, kept
from medray.store import Store

NAMES = ("first", "second")


def make(name: str) -> Section:
    """A section as it is made when there is none."""
    section = Section(f"The {name}", {name: 1.5})
    section.text("<words>")
    section.table(["a", "b"], [[Figure(1.0, 0.5, 1.5), None]])
    section.picture(f"{name}.png", name.encode() * 9, "a picture")
    return section


def leave(folder: Path, summary_first: bool = False, durable: bool = True) -> int:
    """Leaves the report; how many sections had to be made."""
    if not durable:
        os.fsync = lambda handle: None
    store, made = Store(folder / "out"), []

    def fresh(name: str) -> Section:
        made.append(name)
        return make(name)

    summary = json.dumps({"first": 1.5}).encode()
    if summary_first:
        store.write_bytes("summary.json", summary)
    sections = [kept(store, name, {"seed": 0}, lambda n=name: fresh(n)) for name in NAMES]  # type: ignore[misc]
    store.write_bytes("report.html", "\n".join(s.html() for s in sections).encode())
    store.write_bytes("summary.json", summary)
    return len(made)
