"""What a fault cost, measured: a line of JSON in the file that $MEDRAY_OUTCOMES names.

A test of a fault calls `record` once it knows; without the variable nothing is written. The table of
the README is made of these lines: `python -m tests.outcomes FILE` prints it.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FILE = "MEDRAY_OUTCOMES"


def record(
    *,
    part: str,
    fault: str,
    trials: int,
    lost: float,
    unit: str,
    recovered_s: float | None,
    wrong: int,
    note: str = "",
) -> dict[str, Any]:
    """Appends what `trials` faults of one kind did to one part; gives the line.

    `lost` is the work that was done twice, the most of all trials, in `unit` (images, shards,
    requests); `recovered_s` the longest time in seconds until it ran again, None where that was not
    measured; `wrong` counts results that were wrong or missing.
    """
    found: dict[str, Any] = {
        "part": part,
        "fault": fault,
        "trials": trials,
        "lost": lost,
        "unit": unit,
        "recovered_s": None if recovered_s is None else round(recovered_s, 1),
        "wrong": wrong,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    if note:
        found["note"] = note
    if path := os.environ.get(FILE):
        # One write of a file opened to append: tests side by side do not mix their lines.
        line = (json.dumps(found) + "\n").encode()
        opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(opened, line)
        finally:
            os.close(opened)
    return found


def table(lines: Iterable[str]) -> str:
    """The rows as a Markdown table, one for each (part, fault); trials are added up."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for line in lines:
        new = json.loads(line)
        old = rows.setdefault((new["part"], new["fault"]), {**new, "trials": 0, "wrong": 0})
        times_s = [row["recovered_s"] for row in (old, new) if row["recovered_s"] is not None]
        rows[new["part"], new["fault"]] = {
            **new,
            "trials": old["trials"] + new["trials"],
            "wrong": old["wrong"] + new["wrong"],
            "lost": max(old["lost"], new["lost"]),
            "recovered_s": max(times_s, default=None),
        }
    head = [
        "| part | fault | trials | lost at most | runs again after | wrong or missing |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(_row(rows[key]) for key in sorted(rows))])


def _row(row: dict[str, Any]) -> str:
    after = "-" if row["recovered_s"] is None else f"{row['recovered_s']:g} s"
    lost = f"{row['lost']:g} {row['unit']}"
    cells = (row["part"], row["fault"], row["trials"], lost, after, row["wrong"])
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


if __name__ == "__main__":
    print(table(Path(sys.argv[1]).read_text().splitlines()))
