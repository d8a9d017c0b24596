"""Plots of the report: figures with intervals side by side, curves over strengths, histograms."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medray.evaluate.resample import Figure


def bars_png(groups: Mapping[str, Mapping[str, Figure | None]], title: str) -> bytes:
    """Groups of points with intervals: {group: {series: figure}}; None is left out."""
    series = list(dict.fromkeys(name for group in groups.values() for name in group))
    figure = _figure(max(4.0, 1.1 * len(groups) + 2), 3.0)
    axes = figure.add_subplot()
    for number, name in enumerate(series):
        offset = (number - (len(series) - 1) / 2) * 0.18
        points = [(x + offset, g[name]) for x, g in enumerate(groups.values()) if g.get(name)]
        if points:
            _with_error_bars(axes, points, name)
    axes.set_xticks(range(len(groups)), list(groups), fontsize=8)
    _dressed(axes, title)
    return _png(figure)


def _with_error_bars(axes: Any, points: Sequence[tuple[float, Any]], name: str) -> None:
    values = np.array([[p.value, p.ci_low, p.ci_high] for _, p in points])
    below, above = values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]
    places = [x for x, _ in points]
    axes.errorbar(
        places, values[:, 0], np.maximum([below, above], 0), fmt="o", capsize=3, markersize=4,
        label=name,
    )  # fmt: skip


def curves_png(curves: Mapping[str, Sequence[float]], x_name: str, title: str) -> bytes:
    """One line each over 0, 1, 2 ..."""
    figure = _figure(4.8, 3.0)
    axes = figure.add_subplot()
    for name, values in curves.items():
        axes.plot(range(len(values)), values, marker="o", markersize=3, linewidth=1, label=name)
    axes.set_xlabel(x_name, fontsize=8)
    _dressed(axes, title)
    return _png(figure)


def histograms_png(
    sets: Mapping[str, npt.NDArray[np.floating[Any]]], thresholds: Sequence[float], title: str
) -> bytes:
    """Shares of each set over the same bins, with thresholds as lines."""
    figure = _figure(4.8, 3.0)
    axes = figure.add_subplot()
    everything = np.concatenate(list(sets.values()))
    bins = np.linspace(float(everything.min()), max(float(everything.max()), *thresholds), 41)
    for name, values in sets.items():
        weights = np.full(len(values), 1 / max(1, len(values)))
        axes.hist(values, bins, weights=weights, histtype="step", label=name)
    for threshold in thresholds:
        axes.axvline(threshold, color="black", linewidth=0.8, linestyle="--")
    _dressed(axes, title)
    return _png(figure)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure as Canvas

    return Canvas(figsize=(width, height), layout="constrained")


def _dressed(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    # Without the version that wrote it, the same figures give the same bytes.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
