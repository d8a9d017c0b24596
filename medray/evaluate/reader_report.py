"""The report of a reader study from its answers: HTML, JSON, CSV, and the text that iMRMC reads.

An answer is a mapping: reader, item, position, version (0; corrections count up), and `score` (1
surely real to 5 surely synthetic) or `choice` ("left" or "right", which is synthetic), `label` or
None, `seconds`, `hidden` and `idle` (flags). The newest version counts.

Shape letters: N readings, R readers.
"""

from __future__ import annotations

import csv
import functools
import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from medray import report
from medray.errors import DataError
from medray.evaluate import reader_study as statistics
from medray.evaluate.reader_set import MIDDLE, POINTS, Known, ReaderSet, decode_image
from medray.evaluate.reader_study import Estimate, Readings, Share, or_none
from medray.images import to_bits

Answer = Mapping[str, Any]
SIDES = ("left", "right")
PAGE, FIGURES, TABLE, IMRMC = "report.html", "report.json", "answers.csv", "readings.imrmc"
COLUMNS = (
    *("reader", "item", "case", "repeat", "position", "truth", "score", "called", "right"),
    *("label_said", "label", "seconds", "hidden", "idle", "corrections"),
)


def latest(answers: Sequence[Answer]) -> list[Answer]:
    """The newest version of each reader's answer to each item, in the readers' order."""
    newest: dict[tuple[str, str], Answer] = {}
    for answer in answers:
        at = (str(answer["reader"]), str(answer["item"]))
        if at not in newest or answer["version"] > newest[at]["version"]:
            newest[at] = answer
    return sorted(newest.values(), key=lambda a: (str(a["reader"]), a["position"]))


def readings_of(
    study: ReaderSet, truth: Mapping[str, Known], answers: Sequence[Answer]
) -> Readings:
    """The readings that answers are, with the truth; DataError where one does not fit the study."""
    try:
        rows = latest(answers)
        for row in rows:
            _check(study, row)
        return _readings(study, truth, rows)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"an answer lacks or garbles {error}", code="MR-D173") from None


def _check(study: ReaderSet, row: Answer) -> None:
    if study.item(str(row["item"])) is None:
        raise DataError("an answer is to an item of another study", code="MR-D173")
    if study.mode == "2afc":
        if row["choice"] not in SIDES:
            raise DataError(f"choice must be one of {SIDES}", code="MR-D173")
    elif row["score"] not in range(1, POINTS + 1):
        raise DataError(f"score must be 1 to {POINTS}", code="MR-D173")


def _readings(study: ReaderSet, truth: Mapping[str, Known], rows: Sequence[Answer]) -> Readings:
    readers = tuple(sorted({str(row["reader"]) for row in rows}))
    cases = tuple(sorted(item.id for item in study.items if truth[item.id].repeats is None))
    known = [truth[row["item"]] for row in rows]
    paired = study.mode == "2afc"
    number = {name: n for n, name in enumerate(cases)}
    return Readings(
        readers,
        cases,
        reader_N=_integers(readers.index(str(row["reader"])) for row in rows),
        case_N=_integers(number[k.repeats or r["item"]] for k, r in zip(known, rows, strict=True)),
        truth_N=_integers(of.answer for of in known),
        score_N=np.array(
            [SIDES.index(r["choice"]) if paired else r["score"] for r in rows], np.float64
        ),
        seconds_N=np.array(
            [np.nan if r["seconds"] is None else r["seconds"] for r in rows], np.float64
        ),
        position_N=_integers(row["position"] for row in rows),
        repeat_N=np.array([of.repeats is not None for of in known], bool),
        flagged_N=np.array([bool(row["hidden"] or row["idle"]) for row in rows], bool),
        middle=0.5 if paired else MIDDLE,
        said_N=tuple(row.get("label") for row in rows),
        label_N=tuple(of.label for of in known),
    )


def _integers(values: Any) -> statistics.Integers:
    return np.array(list(values), np.int64)


# --- figures ----------------------------------------------------------------------------------


def figures(study: ReaderSet, readings: Readings, *, seed: int = 0) -> dict[str, Any]:
    """All numbers of the report; None where one is undefined."""
    first = readings.first
    paired = study.mode == "2afc"
    kappa = or_none(lambda: statistics.agreement(first))
    pooled = _shares(readings, paired) | {
        "accuracy_over_cases": _found(lambda: statistics.accuracy_over_cases(first, seed=seed)),
        "auc": None if paired else _found(lambda: statistics.mean_auc(first, seed=seed)),
    }
    return {
        "study": {
            "name": study.name,
            "mode": study.mode,
            "sha256": study.sha256,
            "items": len(study.items),
            "readers": len(readings.readers),
            "readings": len(readings),
        },
        "pooled": pooled,
        "readers": {
            name: _reader(readings.where(readings.reader_N == n), paired)
            for n, name in enumerate(readings.readers)
        },
        "kappa": None if kappa is None else {"value": kappa[0], "cases": kappa[1]},
        "learning_curve": [asdict(s) for s in statistics.learning_curve(first)]
        if len(first)
        else [],
        "most_mistaken": [asdict(m) for m in statistics.most_mistaken(first)],
        "published": {
            name: {"what": what, "rate": rate, "within": _within(pooled, name, rate)}
            for name, (what, rate) in statistics.PUBLISHED.items()
        },
    }


def _shares(readings: Readings, paired: bool) -> dict[str, Any]:
    first = readings.first
    found: dict[str, Any] = {
        "accuracy": _found(lambda: statistics.accuracy(first)),
        "self_agreement": _found(lambda: statistics.self_agreement(readings)),
        "times": _found(lambda: statistics.times(readings)),
        "class_accuracy": _found(lambda: statistics.class_accuracy(first)),
    }
    if not paired:
        found["sensitivity"] = _found(lambda: statistics.sensitivity(first))
        found["specificity"] = _found(lambda: statistics.specificity(first))
        found["undecided"] = _found(lambda: statistics.undecided(first))
        found["fakes_called_real"] = _found(lambda: statistics.fakes_called_real(first))
    return found


def _reader(own: Readings, paired: bool) -> dict[str, Any]:
    first = own.first
    area = None if paired else _found(lambda: statistics.auc(first.score_N, first.truth_N))
    return _shares(own, paired) | {"auc": area, "readings": len(own)}


def _found(work: Callable[[], Any]) -> dict[str, Any] | None:
    found = or_none(work)
    return None if found is None else asdict(found)


def _within(pooled: Mapping[str, Any], name: str, rate: float) -> bool | None:
    found = pooled.get(name)
    return None if found is None else bool(found["low"] <= rate <= found["high"])


# --- files ------------------------------------------------------------------------------------


def files(
    study: ReaderSet,
    truth: Mapping[str, Known],
    answers: Sequence[Answer],
    *,
    seed: int = 0,
    only: str | None = None,
) -> dict[str, bytes]:
    """Every file of the report by name, or `only` one; DataError for answers that do not fit."""
    readings = readings_of(study, truth, answers)

    @functools.cache
    def found() -> dict[str, Any]:
        return figures(study, readings, seed=seed)

    makers: dict[str, Callable[[], str]] = {
        PAGE: lambda: page(study, readings, found()),
        FIGURES: lambda: json.dumps(found(), indent=1) + "\n",
        TABLE: lambda: table(truth, readings, answers),
        IMRMC: lambda: statistics.imrmc(readings.first, title=study.name),
    }
    return {name: make().encode() for name, make in makers.items() if only in (None, name)}


def table(truth: Mapping[str, Known], readings: Readings, answers: Sequence[Answer]) -> str:
    """One line a reading as CSV; what could be a formula in a spreadsheet is quoted as text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for n, row in enumerate(latest(answers)):
        of = truth[row["item"]]
        called = int(readings.called_N[n])
        writer.writerow(
            [
                _plain(str(row["reader"])),
                row["item"],
                of.repeats or row["item"],
                int(of.repeats is not None),
                row["position"],
                of.answer,
                f"{readings.score_N[n]:g}",
                called,
                int(called == of.answer),
                _plain(row.get("label") or ""),
                _plain(of.label or ""),
                row["seconds"],
                int(bool(row["hidden"])),
                int(bool(row["idle"])),
                row["version"],
            ]
        )
    return text.getvalue()


def _plain(text: str) -> str:
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


# --- the page ---------------------------------------------------------------------------------


def page(study: ReaderSet, readings: Readings, found: Mapping[str, Any]) -> str:
    """The report as one HTML page, with pictures of what was most often mistaken."""
    parts = [
        ("All readers", _pooled(found)),
        ("Each reader", _each(found)),
        ("Agreement", _agreement(found)),
    ]
    if study.mode != "2afc" and len(readings):
        parts.append(("Receiver operating characteristic", _roc(readings.first)))
    parts += [("Most often mistaken", _mistaken(study, found)), ("How to read this", NOTE)]
    return report.page(f"Reader study: {study.name}", parts)


NOTE = """<p>Intervals of shares are exact (Clopper and Pearson); those over images resample images
with all their readings, because readings of one image are alike. An image is called synthetic with
4 or 5 of 5 points; 3 is not. Each reader's AUC has Newcombe's score interval, the mean AUC a
bootstrap over images with these readers. Repeated images count for self-agreement alone. Times
leave out readings during which the page was hidden or nobody moved for 30 s.</p>
<p>Readers who cannot tell the images apart show that single images look real. They do not show that
the set is as diverse as real images, nor that it helps to train on.</p>"""


def _pooled(found: Mapping[str, Any]) -> str:
    pooled = found["pooled"]
    names = {
        "accuracy": "right",
        "accuracy_over_cases": "right, interval over images",
        "sensitivity": "synthetic called synthetic",
        "fakes_called_real": "synthetic not called synthetic",
        "specificity": "real not called synthetic",
        "undecided": "cannot tell",
        "auc": "AUC, mean of readers",
        "class_accuracy": "class of real images right",
    }
    rows = [[text, shown(pooled[name])] for name, text in names.items() if pooled.get(name)]
    for name, of in found["published"].items():
        if of["within"] is not None:
            fit = "within" if of["within"] else "outside"
            rows.append([f"published {name}: {of['what']}", f"{of['rate']:.1%} ({fit})"])
    return report.columns(["", "95% interval"], rows)


def _each(found: Mapping[str, Any]) -> str:
    heads = ["reader", "readings", "right", "synthetic seen", "AUC", "same twice", "seconds"]
    rows = []
    for name, of in found["readers"].items():
        seconds = of["times"]
        rows.append(
            [
                name,
                of["readings"],
                shown(of["accuracy"]),
                shown(of.get("sensitivity")),
                shown(of["auc"]),
                shown(of["self_agreement"]),
                f"{seconds['median']:.1f} ({seconds['flagged']} flagged)" if seconds else "-",
            ]
        )
    return report.columns(heads, rows)


def _agreement(found: Mapping[str, Any]) -> str:
    kappa, curve = found["kappa"], found["learning_curve"]
    rows: dict[str, Any] = {
        "Fleiss' kappa between readers": f"{kappa['value']:.3f} over {kappa['cases']} images"
        if kappa
        else "undefined (one reader, or one category)",
        "same call when shown twice": shown(found["pooled"]["self_agreement"]),
        "right, by quarter of the study": ", ".join(f"{part['share']:.0%}" for part in curve),
    }
    return report.table(rows)


def shown(of: Mapping[str, Any] | None) -> str:
    """A share or an estimate with its interval."""
    if of is None:
        return "-"
    if "share" in of:
        share = Share(**of)
        return (
            f"{share.share:.1%} ({share.low:.1%} to {share.high:.1%}), {share.hits}/{share.count}"
        )
    estimate = Estimate(**of)
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def _roc(readings: Readings) -> str:
    curves = {}
    for n, name in enumerate(readings.readers):
        own = readings.where(readings.reader_N == n)
        if len(set(own.truth_N.tolist())) == 2:
            curves[name] = statistics.roc(own.score_N, own.truth_N)
    return report.picture(report.roc_png(curves), "ROC of each reader") if curves else "<p>-</p>"


def _mistaken(study: ReaderSet, found: Mapping[str, Any]) -> str:
    parts = []
    for of in found["most_mistaken"][:12]:
        item = study.item(of["case"])
        assert item is not None, "cases are items"
        pixels = [to_bits(decode_image(study.image(name)), 8) for name in item.images]
        png = report.grid_png(np.stack(pixels)[:, None], columns=len(pixels), cell_px=128)
        words = ("left", "right") if study.mode == "2afc" else ("real", "synthetic")
        word = words[of["truth"]] + (" is synthetic" if study.mode == "2afc" else "")
        text = f"{of['case']}: {word}, wrong in {of['wrong']} of {of['readings']}"
        parts.append(f"<figure>{report.picture(png, text)}<figcaption>{html.escape(text)}")
        parts.append("</figcaption></figure>")
    return "".join(parts) or "<p>None.</p>"
