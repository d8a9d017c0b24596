"""What a job left in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def summary(folder: Path | str) -> dict[str, Any]:
    """The figures of a run or of a set that was made."""
    found: dict[str, Any] = json.loads((Path(folder) / "summary.json").read_text())
    return found
