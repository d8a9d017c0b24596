"""What a fault cost, measured: a line of JSON in the file that $MEDRAY_OUTCOMES names.

A test of a fault calls `record` once it knows; without the variable nothing is written.
"""

from __future__ import annotations

import datetime
import json
import os
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
    if test := os.environ.get("PYTEST_CURRENT_TEST"):
        # So that of a test that was run again the newer line counts.
        found["test"] = test.rpartition(" ")[0]
    if path := os.environ.get(FILE):
        # One write of a file opened to append: tests side by side do not mix their lines.
        line = (json.dumps(found) + "\n").encode()
        opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(opened, line)
        finally:
            os.close(opened)
    return found
