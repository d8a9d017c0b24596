"""Counts and latencies in Prometheus' text form; never a patient, reader, case or key in a label.

Each process counts for itself and says what it counted in the background; what is shown is the sum
of all replicas, of what was said, so that a counter never goes back whichever replica answers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
TABLE: dict[str, tuple[str, str, tuple[str, ...], tuple[float, ...]]] = {
    "medray_http_requests_total": (COUNTER, "Requests.", ("route", "method", "status"), ()),
    "medray_http_seconds": (HISTOGRAM, "Time to the end of an answer.", ("route",), SECONDS),
    "medray_images_total": (COUNTER, "Images made or read.", ("model", "op"), ()),
    "medray_inference_seconds": (HISTOGRAM, "Time of a batch.", ("model", "op"), SECONDS),
    "medray_inference_errors_total": (COUNTER, "Requests a model could not serve.", ("code",), ()),
    "medray_batch_images": (HISTOGRAM, "Images of a batch.", ("model", "op"), SIZES),
    "medray_queue_images": (GAUGE, "Images that wait for a model.", ("model", "op"), ()),
    "medray_models_loaded_total": (COUNTER, "Models loaded.", ("kind",), ()),
}
Labels = tuple[str, ...]


class Metrics:
    """What one process counted. Not for several threads at once, but none of it can crash them."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, Labels], float] = {}
        # counts per bucket (the last: above all bounds), then the sum
        self._spread: dict[tuple[str, Labels], list[float]] = {}

    def count(self, name: str, *labels: str, by: float = 1.0) -> None:
        """Adds to a counter; labels in the table's order."""
        key = (name, labels)
        self._values[key] = self._values.get(key, 0.0) + by

    def gauge(self, name: str, value: float, *labels: str) -> None:
        """Sets a gauge; the replicas' are added up."""
        self._values[name, labels] = value

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Adds a value to a histogram."""
        bounds = TABLE[name][3]
        counts = self._spread.get((name, labels))
        if counts is None:
            counts = self._spread[name, labels] = [0.0] * (len(bounds) + 2)
        counts[bisect_left(bounds, value)] += 1
        counts[-1] += value

    def snapshot(self) -> dict[str, Any]:
        """All of it, as plain lists."""
        return {
            "values": [[name, list(labels), v] for (name, labels), v in self._values.items()],
            "spread": [[name, list(labels), list(c)] for (name, labels), c in self._spread.items()],
        }


def total(snapshots: Iterable[Mapping[str, Any]]) -> Metrics:
    """The sum of what several processes counted."""
    summed = Metrics()
    for each in snapshots:
        for name, labels, value in each["values"]:
            summed.count(name, *labels, by=value)
        for name, labels, counts in each["spread"]:
            key = (name, tuple(labels))
            before = summed._spread.get(key, [0.0] * len(counts))
            summed._spread[key] = [a + b for a, b in zip(before, counts, strict=True)]
    return summed


def without_gauges(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a replica that is gone: its counters, not its state."""
    kept = [row for row in snapshot["values"] if TABLE[row[0]][0] != GAUGE]
    return {"values": kept, "spread": snapshot["spread"]}


def text(metrics: Metrics) -> str:
    """Prometheus' text form, sorted."""
    lines = []
    for name, (kind, about, labels, bounds) in TABLE.items():
        lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
        for (other, values), value in sorted(metrics._values.items()):
            if other == name:
                lines.append(f"{name}{_braces(labels, values)} {value:.15g}")
        for (other, values), counts in sorted(metrics._spread.items()):
            if other == name:
                lines += _histogram(name, labels, values, bounds, counts)
    return "\n".join(lines) + "\n"


def _histogram(
    name: str, labels: Labels, values: Labels, bounds: tuple[float, ...], counts: list[float]
) -> list[str]:
    lines, below = [], 0.0
    for bound, count in zip((*map(str, bounds), "+Inf"), counts, strict=False):
        below += count
        braces = _braces((*labels, "le"), (*values, bound))
        lines.append(f"{name}_bucket{braces} {below:.0f}")
    lines.append(f"{name}_sum{_braces(labels, values)} {counts[-1]:.12g}")
    lines.append(f"{name}_count{_braces(labels, values)} {below:.0f}")
    return lines


def _braces(labels: Labels, values: Labels) -> str:
    pairs = (f'{k}="{_escaped(v)}"' for k, v in zip(labels, values, strict=True))
    inner = ",".join(pairs)
    return f"{{{inner}}}" if inner else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
