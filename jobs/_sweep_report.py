"""What a sweep leaves to look at: verdict.png, ratios.png, fractions.png, results.csv, a page."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter, defaultdict
from typing import Any

from jobs._sweep_plan import Plan, comparisons
from jobs.sweep import SweepJob
from medray import log, report
from medray.store import Store
from medray.tune import plots
from medray.tune.search import Record, Searches, mean
from medray.tune.verdict import BASELINE, PRIMARY, Figure, Verdict

CORRECTION = (
    "Differences are to the baseline 'none' on the same test rows and seeds: paired bootstrap over "
    "patients and seeds, percentile intervals, Bonferroni for {count} comparison(s): each holds "
    "with {each:.2f}%, all together with 95%. Other figures: 95%."
)


def write(
    store: Store,
    config: SweepJob,
    plan: Plan,
    searches: Searches,
    verdicts: list[Verdict],
    missing: dict[str, str],
) -> dict[str, Any]:
    """Writes everything but the summary, which it returns."""
    ratios, fractions = _ratios(searches), _fractions(verdicts)
    pictures = {
        "verdict.png": plots.forest_png(verdicts, config.margin),
        "ratios.png": plots.curves_png(
            ratios, "synthetic samples per real one", f"best validation {config.select}"
        ),
        "fractions.png": plots.curves_png(
            fractions, "share of the labels", "balanced accuracy on the test split", log=True
        ),
    }
    for name, png in pictures.items():
        store.write_bytes(name, png)
    summary = _summary(config, plan, searches, verdicts, missing)
    store.write_bytes("results.csv", _csv(verdicts).encode())
    store.write_bytes("report.html", _page(summary, pictures, verdicts).encode())
    return summary


def as_json(summary: dict[str, Any]) -> bytes:
    """The same summary the same bytes."""
    return (json.dumps(summary, indent=1, sort_keys=True) + "\n").encode()


def say(store: Store, summary: dict[str, Any]) -> None:
    """The verdict, in the log."""
    log.event(
        "done",
        "\n".join([*summary["verdict"], f"  report    {store.url}/report.html"]),
        verdict=summary["verdict"],
    )


# --- figures ------------------------------------------------------------------------------------


def _summary(
    config: SweepJob,
    plan: Plan,
    searches: Searches,
    verdicts: list[Verdict],
    missing: dict[str, str],
) -> dict[str, Any]:
    compared = [v for v in verdicts if v.arm != BASELINE]
    words = [_words(v, len(config.fractions) > 1) for v in compared]
    words += [f"{what} is not measured: {why}" for what, why in missing.items()]
    count = comparisons(config, plan.arms)
    return {
        "plan": plan.hash,
        "verdict": words or ["nothing was compared with the baseline"],
        "correction": CORRECTION.format(count=count, each=100 * (1 - 0.05 / count)),
        "comparisons": count,
        "margin": config.margin,
        "seeds": config.seeds,
        "arms": [
            {
                "arm": v.arm,
                "fraction": v.fraction,
                "said": v.said if v.arm != BASELINE else "baseline",
                "level": v.level,
                "figures": {name: f.to_dict() for name, f in v.figures.items()},
                "differences": {name: f.to_dict() for name, f in v.differences.items()},
            }
            for v in verdicts
        ],
        "searches": [
            {
                "cell": search.cell.name,
                "trials": dict(Counter(r.state for r in search.records.values())),
                "best": _best(search.best()),
                "errors": sorted({r.error for r in search.records.values() if r.error}),
            }
            for search in searches
        ],
        "not_measured": missing,
    }


def _words(verdict: Verdict, many: bool) -> str:
    return f"at {verdict.fraction:.0%} of the labels, {verdict.words}" if many else verdict.words


def _best(record: Record | None) -> dict[str, Any] | None:
    if record is None:
        return None
    return {
        "number": record.number,
        "settings": record.settings,
        "validation": mean(record.scores),
    }


def _ratios(searches: Searches) -> dict[str, list[tuple[float, float]]]:
    """Best mean validation score of complete trials by ratio, mean over the folds; none at 0."""
    best: dict[tuple[str, float], dict[str, float]] = defaultdict(dict)
    for search in searches:
        for record in search.records.values():
            none = {"ratio": 0.0} if search.cell.arm == BASELINE else {}
            ratio = {**none, **record.settings}.get("ratio")
            if record.state == "complete" and ratio is not None:
                name = f"{search.cell.arm}, {search.cell.fraction:.0%}"
                by_cell = best[name, ratio]
                score = mean(record.scores)
                by_cell[search.cell.name] = max(score, by_cell.get(search.cell.name, score))
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (name, ratio), scores in sorted(best.items()):
        curves[name].append((ratio, mean(list(scores.values()))))
    return curves


def _fractions(verdicts: list[Verdict]) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for verdict in verdicts:
        if (found := verdict.figures[PRIMARY].estimate) is not None:
            curves[verdict.arm].append((verdict.fraction, found))
    return curves


# --- page and table -----------------------------------------------------------------------------

HEADS = (
    "fraction arm metric estimate ci_low ci_high difference difference_low difference_high "
    "half_width level said"
).split()


def _csv(verdicts: list[Verdict]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADS)
    for v in verdicts:
        for name, figure in v.figures.items():
            apart = v.differences[name]
            numbers = [
                *(figure.estimate, figure.low, figure.high),
                *(apart.estimate, apart.low, apart.high, apart.half_width),
            ]
            said = v.said if name == PRIMARY and v.arm != BASELINE else ""
            shown = ["" if n is None else f"{n:.6f}" for n in numbers]
            writer.writerow([f"{v.fraction:g}", v.arm, name, *shown, f"{v.level:.6f}", said])
    return text.getvalue()


def _page(summary: dict[str, Any], pictures: dict[str, bytes], verdicts: list[Verdict]) -> str:
    failed = [s for s in summary["searches"] if s["errors"]]
    names = list(verdicts[0].figures) if verdicts else []
    heads = ["labels", "arm", *names]
    rows = [[f"{v.fraction:.0%}", v.arm, *(_cell(v.figures[n]) for n in names)] for v in verdicts]
    apart = [
        [f"{v.fraction:.0%}", v.arm, *(_cell(v.differences[n], "+.3f") for n in names)]
        for v in verdicts
        if v.arm != BASELINE
    ]
    parts = [
        ("Verdict", report.preformatted("\n".join(summary["verdict"]))),
        ("Differences", report.picture(pictures["verdict.png"], "differences to the baseline")),
        ("", f"<p>{report.preformatted(summary['correction'])}</p>"),
        ("Each arm minus none, test split", report.columns(heads, apart)),
        ("Each arm, test split", report.columns(heads, rows)),
        ("Ratio", report.picture(pictures["ratios.png"], "validation score by ratio")),
        ("Labels", report.picture(pictures["fractions.png"], "test score by label fraction")),
        ("Chosen on validation", report.columns(["search", "trials", "best"], _chosen(summary))),
    ]
    if failed:
        text = "\n".join(f"{s['cell']}: {error}" for s in failed for error in s["errors"])
        parts.append(("Trials that failed", report.preformatted(text)))
    return report.page("medray sweep", parts)


def _chosen(summary: dict[str, Any]) -> list[list[str]]:
    rows = []
    for search in summary["searches"]:
        best = search["best"]
        trials = ", ".join(f"{n} {state}" for state, n in sorted(search["trials"].items()))
        said = "none"
        if best is not None:
            settings = ", ".join(f"{n} {v:.3g}" for n, v in sorted(best["settings"].items()))
            said = f"{best['validation']:.4f} with {settings}"
        rows.append([search["cell"], trials, said])
    return rows


def _cell(figure: Figure, form: str = ".3f") -> str:
    if figure.estimate is None:
        return "not defined"
    if figure.low is None or figure.high is None:
        return format(figure.estimate, form)
    return f"{figure.estimate:{form}} ({figure.low:{form}} to {figure.high:{form}})"
