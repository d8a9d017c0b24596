"""What a study leaves: tables.md (for a RESULTS page), report.html, summary.json, written last."""

from __future__ import annotations

import csv
import json
import os
import platform
from pathlib import Path
from typing import Any

from jobs._study_steps import Plan, Step
from medray import log, report
from medray.store import Store

METRICS = ("balanced_accuracy", "auroc", "ece")
ARM_HEADS = ("labels", "arm", "balanced accuracy", "minus none", "macro AUC", "ECE", "said")
RUN_HEADS = ("run", "on", "figure", "value")


def leave(made: Plan) -> None:
    """Writes the tables of every sweep and of every run that the test split was read for."""
    store = Store(made.out)
    sweeps = {s.name: s for s in made.steps if s.words[:1] == ("sweep",)}
    runs = [row for step in made.steps for row in run_rows(step)]
    tables = {name: arm_rows(step.done.parent / "results.csv") for name, step in sweeps.items()}
    verdicts = {name: _json(step.done)["verdict"] for name, step in sweeps.items()}
    text = _markdown(made, runs, tables, verdicts)
    store.write_bytes("tables.md", text.encode())
    store.write_bytes("report.html", _page(made, runs, tables, verdicts, sweeps).encode())
    summary = {"name": made.config.name, "verdicts": verdicts, "runs": runs, "arms": tables}
    store.write_bytes("summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    words = [f"{name}: {line}" for name, lines in verdicts.items() for line in lines]
    log.event("done", "\n".join([*words, f"  report    {made.out}/report.html"]))


def arm_rows(results: Path) -> list[list[str]]:
    """A row for each fraction and arm of a sweep's results.csv."""
    with results.open(encoding="utf-8", newline="") as file:
        found = {(r["fraction"], r["arm"], r["metric"]): r for r in csv.DictReader(file)}
    rows = []
    for fraction, arm in dict.fromkeys(key[:2] for key in found):
        of = {name: found.get((fraction, arm, name), {}) for name in METRICS}
        first = of["balanced_accuracy"]
        figures = [_figure(of[name]) for name in METRICS]
        apart = "" if arm == "none" else _difference(first)
        rows.append(
            [f"{float(fraction):.0%}", arm, figures[0], apart, *figures[1:], first.get("said", "")]
        )
    return rows


def _figure(row: dict[str, str]) -> str:
    if not row.get("estimate"):
        return "not defined"
    return (
        f"{float(row['estimate']):.3f} ({float(row['ci_low']):.3f} to {float(row['ci_high']):.3f})"
    )


def _difference(row: dict[str, str]) -> str:
    if not row.get("difference"):
        return "not defined"
    low, high = float(row["difference_low"]), float(row["difference_high"])
    return f"{float(row['difference']):+.3f} ({low:+.3f} to {high:+.3f})"


def run_rows(step: Step) -> list[list[str]]:
    """Figures of a trained network: a classifier's balanced accuracy, a segmenter's Dice."""
    if step.words[:1] not in (("classify",), ("segment",)):
        return []
    summary = _json(step.done.parent / "summary.json")
    wanted = "balanced_accuracy" if step.words[0] == "classify" else "dice"
    rows = []
    for split in ("validation", "test"):
        found = summary.get(split, {}).get(wanted)
        if isinstance(found, dict):
            rows.append([step.name, split, wanted.replace("_", " "), _interval(found)])
    return rows


def _interval(found: dict[str, Any]) -> str:
    """A figure as summaries have it; too few patients leave it without an interval."""
    if found["low"] is None or found["high"] is None:
        return f"{found['estimate']:.3f}"
    return f"{found['estimate']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _markdown(
    made: Plan,
    runs: list[list[str]],
    tables: dict[str, list[list[str]]],
    verdicts: dict[str, list[str]],
) -> str:
    config = made.config
    parts = [f"`medray study {config.name} --scale {config.scale}`, {hardware()}"]
    if runs:
        parts.append(markdown_table(RUN_HEADS, runs))
    for name, rows in tables.items():
        parts += [f"**{name}**: {'; '.join(verdicts[name])}", markdown_table(ARM_HEADS, rows)]
    return "\n\n".join(parts) + "\n"


def hardware() -> str:
    """The processor and how many cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores"


def markdown_table(heads: tuple[str, ...], rows: list[list[str]]) -> str:
    """A table as Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _page(
    made: Plan,
    runs: list[list[str]],
    tables: dict[str, list[list[str]]],
    verdicts: dict[str, list[str]],
    sweeps: dict[str, Step],
) -> str:
    parts = [("What was trained", report.columns(RUN_HEADS, runs))] if runs else []
    for name, rows in tables.items():
        png = (sweeps[name].done.parent / "verdict.png").read_bytes()
        parts += [
            (name, report.preformatted("\n".join(verdicts[name]))),
            ("", report.picture(png, f"{name}: differences to the baseline")),
            ("", report.columns(ARM_HEADS, rows)),
        ]
    return report.page(f"medray study {made.config.name}", parts)
