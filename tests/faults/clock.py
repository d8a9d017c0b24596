"""Commands whose clock is wrong: the time of day off by hours, or set back and forth meanwhile."""

from __future__ import annotations

from pathlib import Path

from tests.faults import preload

SOURCE = Path(__file__).with_name("clock.c")
HOUR_S = 3600


def environment(offset_s: int, *, turn: int = 0) -> dict[str, str]:
    """Variables that put a command's time of day off by `offset_s`.

    `turn` changes the sign of the error each time that the clock was asked so often.
    """
    return {
        "LD_PRELOAD": str(preload.library(SOURCE)),
        "CLOCK_OFFSET_S": str(offset_s),
        "CLOCK_TURN": str(turn),
    }
