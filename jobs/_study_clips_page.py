"""What the study of clips leaves: AUC by encoder and finding, differences in pairs, one page."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs._study_clips_steps import ARMS
from jobs._study_page import hardware, markdown_table
from jobs._study_steps import FOLDS, Plan
from medray import log, report
from medray.store import Store

if TYPE_CHECKING:
    from medray.tune.contrasts import Asked, Contrast
    from medray.tune.verdict import Figure, Floats

MODES = ("frozen", "tuned")
AGAINST = ("random", "supervised")
DRAWS = 4000
Cell = tuple[str, float]


@dataclass(frozen=True)
class Said:
    """What every fold's classifiers said of its test clips, folds one after the other."""

    asked: Asked
    scores: dict[tuple[str, float, str], Floats]

    @property
    def cells(self) -> list[Cell]:
        """(mode, share of labels), each once."""
        return list(dict.fromkeys((mode, share) for mode, share, _ in self.scores))


@dataclass(frozen=True)
class Row:
    """An encoder's figures in a cell, and its differences to others."""

    cell: Cell
    arm: str
    figures: dict[str, Figure]
    contrasts: tuple[Contrast, ...]


def leave(made: Plan) -> None:
    """Writes the tables, the page, and summary.json last."""
    store, said = Store(made.out), gathered(made)
    rows = judged(said, made.config.seed)
    pretext = [_pretext(made, fold) for fold in range(FOLDS)]
    store.write_bytes("tables.md", _markdown(made, said, rows, pretext).encode())
    store.write_bytes("report.html", _page(made, said, rows, pretext).encode())
    words = [f"{_named(row.cell)}: {c.words}" for row in rows for c in row.contrasts]
    summary = {
        "name": made.config.name,
        "rarest": said.asked.rarest,
        "pretext_accuracy": pretext,
        "verdicts": words,
        "rows": [
            {
                "mode": row.cell[0],
                "fraction": row.cell[1],
                "arm": row.arm,
                "auroc": {name: figure.to_dict() for name, figure in row.figures.items()},
                "contrasts": [contrast.to_dict() for contrast in row.contrasts],
            }
            for row in rows
        ],
    }
    store.write_bytes("summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    log.event("done", "\n".join([*words, f"  report    {made.out}/report.html"]))


def gathered(made: Plan) -> Said:
    """The predictions of every fold and mode that was run."""
    import numpy as np

    from medray.tune.contrasts import Asked

    planned = {step.name for step in made.steps}
    found = {
        mode: [_predictions(made, mode, fold) for fold in range(FOLDS)]
        for mode in MODES
        if f"{mode}-0" in planned
    }
    folds = found["frozen"]
    names = tuple(n for n in folds[0]["findings"] if all(n in f["findings"] for f in folds))
    truth = [_columns(np.asarray(f["truth"], np.int8), f["findings"], names) for f in folds]
    patients = tuple(patient for fold in folds for patient in fold["patients"])
    scores: dict[tuple[str, float, str], Floats] = {}
    for mode, parts in found.items():
        kinds = dict.fromkeys((fit["fraction"], fit["arm"]) for fit in parts[0]["fits"])
        for share, arm in kinds:
            by_fold = [_of_fold(part, share, arm, names) for part in parts]
            scores[mode, share, arm] = np.concatenate(by_fold, axis=1)
    fold_N = tuple(fold for fold, part in enumerate(folds) for _ in part["patients"])
    return Said(Asked(np.concatenate(truth), patients, names, fold_N), scores)


def _predictions(made: Plan, mode: str, fold: int) -> dict[str, Any]:
    path = made.out / f"{mode}-{fold}" / "predictions.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _columns(rows_NK: Any, findings: list[str], names: tuple[str, ...]) -> Any:
    return rows_NK[:, [findings.index(name) for name in names]]


def _of_fold(part: dict[str, Any], share: float, arm: str, names: tuple[str, ...]) -> Floats:
    """Probabilities (S, N, K) of one encoder's fits on a fold, by seed."""
    import numpy as np

    fits = [f for f in part["fits"] if (f["fraction"], f["arm"]) == (share, arm)]
    each = [np.asarray(f["said"], np.float64) for f in sorted(fits, key=lambda f: int(f["seed"]))]
    return np.stack([_columns(said_NK, part["findings"], names) for said_NK in each])


def judged(said: Said, seed: int) -> list[Row]:
    """Every encoder in every cell, jigsaw against the others."""
    from medray.tune.contrasts import Judge

    comparisons = len(said.cells) * len(AGAINST)
    rows = []
    for cell in said.cells:
        scores = {arm: said.scores[(*cell, arm)] for arm in ARMS}
        judge = Judge(said.asked, len(scores[ARMS[0]]), draws=DRAWS, seed=seed)
        values = {arm: judge.values(of_arm) for arm, of_arm in scores.items()}
        for arm in ARMS:
            others = AGAINST if arm == "jigsaw" else ()
            apart = tuple(
                judge.contrast((arm, other), values[arm], values[other], comparisons)
                for other in others
            )
            rows.append(Row(cell, arm, judge.figures(values[arm]), apart))
    return rows


# --- tables -------------------------------------------------------------------------------------


def _heads(said: Said) -> tuple[str, ...]:
    others = [name for name in said.asked.findings if name != said.asked.rarest]
    return (
        "encoder",
        "labels",
        "begins with",
        "macro AUC",
        f"rarest: {said.asked.rarest}",
        *others,
    )


def _arm_rows(said: Said, rows: list[Row]) -> list[list[str]]:
    names = ["macro", *([said.asked.rarest] if said.asked.rarest else [])]
    names += [name for name in said.asked.findings if name != said.asked.rarest]
    return [
        [row.cell[0], f"{row.cell[1]:.0%}", row.arm, *(_figure(row.figures[n]) for n in names)]
        for row in rows
    ]


DIFFERENCE_HEADS = (
    "encoder",
    "labels",
    "difference",
    "macro AUC (95%)",
    "resolves",
    "corrected",
    "rarest",
)


def _difference_rows(said: Said, rows: list[Row]) -> list[list[str]]:
    found = []
    for row, contrast in itertools.chain.from_iterable(
        [(row, contrast) for contrast in row.contrasts] for row in rows
    ):
        macro = contrast.differences["macro"]
        rarest = contrast.differences.get(said.asked.rarest or "")
        half = macro.half_width
        found.append(
            [
                row.cell[0],
                f"{row.cell[1]:.0%}",
                f"{contrast.arm} minus {contrast.other}",
                _figure(macro, "+"),
                "" if half is None else f"{half:.3f}",
                _figure(contrast.corrected, "+"),
                "not defined" if rarest is None else _figure(rarest, "+"),
            ]
        )
    return found


def _figure(figure: Figure, sign: str = "") -> str:
    if figure.estimate is None:
        return "not defined"
    middle = f"{figure.estimate:{sign}.3f}"
    if figure.low is None or figure.high is None:
        return f"{middle} (no interval)"
    return f"{middle} ({figure.low:{sign}.3f} to {figure.high:{sign}.3f})"


def _pretext(made: Plan, fold: int) -> float | None:
    path = made.out / f"jigsaw-{fold}" / "summary.json"
    found = json.loads(path.read_text()).get("validation", {}).get("accuracy")
    return None if not isinstance(found, dict) else float(found["estimate"])


def _pretext_words(pretext: list[float | None]) -> str:
    said = ", ".join("not defined" if value is None else f"{value:.2f}" for value in pretext)
    return f"pretext accuracy on held-out patients, by outer fold: {said}"


def _named(cell: Cell) -> str:
    return f"{cell[0]}, {cell[1]:.0%} of labels"


def _notes(said: Said) -> str:
    truth_NK = said.asked.truth_NK
    counts = ", ".join(
        f"{name} {int((truth_NK[:, k] == 1).sum())} of {int((truth_NK[:, k] >= 0).sum())}"
        for k, name in enumerate(said.asked.findings)
    )
    return (
        f"{len(said.asked.patients)} clips, each in one of {FOLDS} outer folds; {counts}. Encoders "
        "by jigsaw saw all frames of a fold's training patients without labels, at every fraction. "
        "AUC compares clips within an outer fold. The head on the encoders (cells, pooling, steps) "
        "was settled while looking at outer folds of these patients with a preliminary encoder: "
        "differences are exploratory."
    )


def _markdown(made: Plan, said: Said, rows: list[Row], pretext: list[float | None]) -> str:
    config = made.config
    parts = [
        f"`medray study {config.name} --scale {config.scale}`, {hardware()}",
        f"{_notes(said)} {_pretext_words(pretext)}.",
        markdown_table(_heads(said), _arm_rows(said, rows)),
        markdown_table(DIFFERENCE_HEADS, _difference_rows(said, rows)),
        *(f"- {_named(row.cell)}: {c.words}" for row in rows for c in row.contrasts),
    ]
    return "\n\n".join(parts) + "\n"


def _page(made: Plan, said: Said, rows: list[Row], pretext: list[float | None]) -> str:
    from medray.tune import plots

    shown = [
        (f"{_named(row.cell)}: {c.arm} - {c.other}", c.differences["macro"])
        for row in rows
        for c in row.contrasts
    ]
    words = "\n".join(f"{_named(row.cell)}: {c.words}" for row in rows for c in row.contrasts)
    png = plots.intervals_png(shown, "difference of macro AUC, 95% over patients and seeds")
    parts = [
        ("What was found", report.preformatted(words)),
        ("", report.picture(png, "differences of macro AUC")),
        ("AUC on test patients", report.columns(_heads(said), _arm_rows(said, rows))),
        ("Differences", report.columns(DIFFERENCE_HEADS, _difference_rows(said, rows))),
        ("The clips", report.preformatted(f"{_notes(said)}\n{_pretext_words(pretext)}")),
    ]
    return report.page(f"medray study {made.config.name}", parts)
