"""`medray top RUN ...`: how runs stand, live in a terminal, from status.json and metrics.jsonl.

It only reads, so it works beside a run, on a finished one, and on an object store alike.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from medray.errors import UsageError
from medray.log import duration
from medray.rundir import METRICS, STATUS
from medray.store import Store

if TYPE_CHECKING:
    from rich.table import Table

# Rows that are shown as a curve, and how much of metrics.jsonl is read at most.
CURVE_ROWS, TAIL_BYTES = 32, 1 << 18
BARS = "▁▂▃▄▅▆▇█"
ENDED = ("complete", "stopped", "failed", "interrupted")


@dataclass(frozen=True)
class View:
    """How one run stands."""

    name: str
    state: str
    images: int
    total: int | None
    row: dict[str, float]
    score: float | None
    curve: str
    text: str
    age_s: float | None = None
    losses: dict[str, float] = field(default_factory=dict)

    @property
    def left_s(self) -> float | None:
        """Seconds left at the last row's rate; None where that is not known."""
        rate = self.row.get("perf/images_per_s", 0.0)
        if self.state != "running" or not self.total or rate <= 0:
            return None
        return max(0.0, (self.total - self.images) / rate)


def look(url: str, now_s: float | None = None) -> View:
    """Reads a run folder; UsageError where there is none."""
    store = Store(url)
    status = _json(store, STATUS)
    if status is None:
        raise UsageError(
            f"no run in {store.url}: it has no {STATUS}",
            hint="give the folder that --run-dir named, such as runs/00012-pggan",
        )
    rows = _rows(store)
    trained = [row for row in rows if "perf/images_per_s" in row]
    last = trained[-1] if trained else {}
    names = [name for name in last if name.startswith("train/loss")]
    scores = [row["snapshot/score"] for row in rows if "snapshot/score" in row]
    state = str(status.get("state", "unknown"))
    return View(
        name=store.url.rpartition("/")[2],
        state=state,
        images=int(rows[-1]["images"]) if rows else 0,
        total=_total(store),
        row=last,
        score=scores[-1] if scores else None,
        curve=spark([row[names[0]] for row in trained if names[0] in row]) if names else "",
        text=str(status.get("reason") or status.get("hint") or ""),
        age_s=_age_s(store, now_s) if state == "running" else None,
        losses={name.rpartition("/")[2]: last[name] for name in names},
    )


def spark(values: Sequence[float]) -> str:
    """The last values as a row of bars, lowest to highest."""
    shown = [value for value in values if math.isfinite(value)][-CURVE_ROWS:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[int((value - low) * scale)] for value in shown)


def _json(store: Store, name: str) -> dict[str, Any] | None:
    try:
        found = json.loads(store.read_bytes(name))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return found if isinstance(found, dict) else None


def _rows(store: Store) -> list[dict[str, Any]]:
    """The newest whole rows; a line that is being written is left for the next look."""
    if not store.exists(METRICS):
        return []
    start = max(0, store.size(METRICS) - TAIL_BYTES)
    lines = store.read_range(METRICS, start, TAIL_BYTES).split(b"\n")
    rows = []
    for line in lines[1 if start else 0 :]:
        with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("images"), int | float):
                rows.append(row)
    return rows


def _total(store: Store) -> int | None:
    with contextlib.suppress(FileNotFoundError, yaml.YAMLError):
        config = yaml.safe_load(store.read_bytes("config.yaml"))
        if isinstance(config, dict) and isinstance(config.get("total_images"), int):
            return int(config["total_images"])
    return None


def _age_s(store: Store, now_s: float | None) -> float | None:
    """Seconds since the last row; known of a folder only."""
    if not store.is_local:
        return None
    name = METRICS if store.exists(METRICS) else STATUS
    with contextlib.suppress(FileNotFoundError):
        return max(
            0.0, (time.time() if now_s is None else now_s) - store.path(name).stat().st_mtime
        )
    return None


# --- shown ------------------------------------------------------------------------------------


def table(views: Sequence[View]) -> Table:
    """The views as one table."""
    from rich.table import Table

    made = Table(title=None, expand=False)
    for column in ("run", "state", "images", "images/s", "data wait", "loss", "score", "GiB"):
        made.add_column(column, overflow="fold")
    made.add_column("left", overflow="fold")
    made.add_column("curve", overflow="fold")
    for view in views:
        made.add_row(*cells(view))
    return made


def cells(view: View) -> tuple[str, ...]:
    """One run in words."""
    share = f" {100 * view.images / view.total:.0f}%" if view.total else ""
    rate, wait = view.row.get("perf/images_per_s"), view.row.get("perf/data_wait_share")
    memory = view.row.get("mem/peak_gib")
    loss = " ".join(f"{_short_name(name)}{value:.3g}" for name, value in view.losses.items())
    left = view.left_s
    age = "" if view.age_s is None else f" ({duration(view.age_s)} ago)"
    return (
        view.name,
        view.state + age,
        f"{view.images:,}{share}",
        "" if rate is None else f"{rate:.1f}",
        "" if wait is None else f"{100 * wait:.1f}%",
        loss,
        "" if view.score is None else f"{view.score:.4g}",
        "" if memory is None else f"{memory:.2f}",
        "" if left is None else duration(left),
        view.curve,
    )


def _short_name(name: str) -> str:
    return "" if name == "loss" else f"{name}="


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="medray top", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder or URL")
    parser.add_argument("--once", action="store_true", help="print it once and exit")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between looks (2)")
    return parser


def main(argv: Sequence[str]) -> int:
    """The command; ends by itself when every run has ended."""
    flags = _arguments().parse_args(argv)
    if flags.every <= 0:
        raise UsageError(f"--every must be above 0, got {flags.every:g}")
    from rich.console import Console

    views = [look(url) for url in flags.runs]
    if flags.once or not sys.stdout.isatty():
        # Not cut to a width that a file does not have.
        Console(width=None if sys.stdout.isatty() else 160).print(table(views))
    else:
        views = _live(flags.runs, flags.every)
    for view in views:
        if view.text and view.state in ENDED:
            print(f"{view.name}: {view.state}: {view.text}")
    return 0


def _live(urls: Sequence[str], every_s: float) -> list[View]:
    from rich.live import Live

    views = [look(url) for url in urls]
    with Live(table(views), auto_refresh=False) as live, contextlib.suppress(KeyboardInterrupt):
        while not all(view.state in ENDED for view in views):
            time.sleep(every_s)
            views = [look(url) for url in urls]
            live.update(table(views), refresh=True)
    return views
