"""Pictures of a sweep: the differences with their intervals, and curves over ratio and fraction."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from medray.tune.verdict import BASELINE, PRIMARY, Figure, Verdict

COLOURS = {
    "helped": "#1a7f37",
    "hurt": "#c0392b",
    "did not help": "#555555",
    "not resolvable": "#b8860b",
}
# Arm and fraction to points (x, y).
Curves = Mapping[str, Sequence[tuple[float, float]]]


def forest_png(verdicts: Sequence[Verdict], margin: float) -> bytes:
    """Each arm minus the baseline: estimate, interval, zero, and the gain that matters."""
    from matplotlib.figure import Figure as Sheet

    shown = [v for v in verdicts if v.arm != BASELINE and v.differences[PRIMARY].low is not None]
    figure = Sheet(figsize=(7.0, 1.4 + 0.36 * max(1, len(shown))), layout="constrained")
    axes = figure.add_subplot()
    fractions = {v.fraction for v in verdicts}
    for row, verdict in enumerate(reversed(shown)):
        found = verdict.differences[PRIMARY]
        low, high, middle = (100 * (x or 0.0) for x in (found.low, found.high, found.estimate))
        colour = COLOURS[verdict.said]
        axes.plot((low, high), (row, row), color=colour, linewidth=2)
        axes.plot(middle, row, marker="o", color=colour, markersize=5)
    names = [v.arm if len(fractions) == 1 else f"{v.arm}, {v.fraction:.0%}" for v in shown]
    axes.set_yticks(range(len(shown)), names[::-1], fontsize=8)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvline(100 * margin, color="grey", linewidth=0.8, linestyle=":")
    level = shown[0].level if shown else 0.95
    axes.set_xlabel(
        f"points of balanced accuracy over {BASELINE!r} on the test split\n"
        f"simultaneous intervals, {100 * level:.2f}% each; dotted: the gain that matters",
        fontsize=7,
    )
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    return _png(figure)


def intervals_png(rows: Sequence[tuple[str, Figure]], x: str) -> bytes:
    """Differences with their intervals, one below the other, beside zero."""
    from matplotlib.figure import Figure as Sheet

    shown = [row for row in rows if row[1].low is not None and row[1].high is not None]
    figure = Sheet(figsize=(7.0, 1.2 + 0.3 * max(1, len(shown))), layout="constrained")
    axes = figure.add_subplot()
    for place, (_, found) in enumerate(reversed(shown)):
        low, high, middle = (x or 0.0 for x in (found.low, found.high, found.estimate))
        colour = "#555555" if low <= 0 <= high else "#1a7f37"
        axes.plot((low, high), (place, place), color=colour, linewidth=2)
        axes.plot(middle, place, marker="o", color=colour, markersize=5)
    axes.set_yticks(range(len(shown)), [name for name, _ in shown][::-1], fontsize=8)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(x, fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    return _png(figure)


def curves_png(curves: Curves, x: str, y: str, *, log: bool = False) -> bytes:
    """One line a name."""
    from matplotlib.figure import Figure as Sheet

    figure = Sheet(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        if points:
            axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=name)
    if log:
        axes.set_xscale("log")
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=7)
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
