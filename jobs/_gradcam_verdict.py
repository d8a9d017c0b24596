"""What the arms of jobs/gradcam.py found: a table with intervals, and it in plain words.

Shape letters: N test images, K classes, S seeds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jobs._gradcam_arms import ALONE, Images
from jobs.gradcam import GradcamJob
from medray.tune import verdict as judging
from medray.tune.verdict import Figure

LEVEL = 0.95
DRAWS = 2000
HEADS = ("arm", "form", "balanced accuracy", "minus original", "masks alone", "minus masks alone")
LETTERS = {
    "original": "(a) original",
    "kept": "(b) heat kept",
    "removed": "(c) heat removed",
    "tumour": "(d) true tumour only",
    "no-tumour": "(e) true tumour removed",
    "random": "(f) random mask of equal area",
}
# Arms whose masks may say nothing of the class; of the true tumour's it is printed.
BLIND = ("kept", "random")


class Verdicts:
    """Balanced accuracy of every training on the same resamples of patients and seeds."""

    def __init__(
        self, predictions: dict[str, Any], test: Images, classes: tuple[str, ...], seed: int
    ) -> None:
        asked = judging.Test(test.numbers_N, test.patients, classes)
        seeds = len(next(iter(predictions.values())))
        drawn = judging.Resamples.of(test.patients, seeds, DRAWS, seed)
        score = judging.metrics_of(asked)[judging.PRIMARY]
        self.values = {
            name: judging.values_of(score, said_SNK, drawn)
            for name, said_SNK in predictions.items()
        }
        self.chance = 1 / len(asked.present_K)

    def figure(self, name: str, minus: str | None = None) -> Figure | None:
        """Of one training, or less another; None where one of them was not made."""
        if name not in self.values or (minus is not None and minus not in self.values):
            return None
        values = self.values[name] - (self.values[minus] if minus is not None else 0)
        return judging.figure_of(np.asarray(values), LEVEL)


def verdict(
    config: GradcamJob,
    predictions: dict[str, Any],
    test: Images,
    classes: tuple[str, ...],
    arms: tuple[str, ...],
) -> dict[str, Any]:
    """Heads, rows and words, and every figure for `summary.json`."""
    found = Verdicts(predictions, test, classes, config.seed)
    rows, figures = [], {}
    for arm in arms:
        forms = [form for form in ("soft", "binary") if f"{arm}-{form}" in found.values]
        for form in forms:
            name, alone = f"{arm}-{form}", f"{ALONE.get(arm, '')}-{form}-alone"
            own = {
                "balanced_accuracy": found.figure(name),
                "minus_original": found.figure(name, "original-binary"),
                "masks_alone": found.figure(alone),
                "minus_masks_alone": found.figure(name, alone),
            }
            figures[name] = {k: None if f is None else f.to_dict() for k, f in own.items()}
            single = arm in ("original", "tumour", "no-tumour")
            shown = [_shown(f, signed=k.startswith("minus")) for k, f in own.items()]
            if arm == "original":
                shown[1:] = ["", "", ""]
            rows.append([LETTERS[arm], "" if single else form, *shown])
    return {
        "heads": list(HEADS),
        "rows": rows,
        "figures": figures,
        "chance": found.chance,
        "words": words(found),
    }


def _shown(figure: Figure | None, *, signed: bool = False) -> str:
    if figure is None or figure.estimate is None:
        return ""
    form = "+.3f" if signed else ".3f"
    if figure.low is None or figure.high is None:
        return f"{figure.estimate:{form}}"
    return f"{figure.estimate:{form}} ({figure.low:{form}} to {figure.high:{form}})"


def words(found: Verdicts) -> list[str]:
    """Whether dark regions carry information, and whether the masks were blind to the class."""
    return [line for line in (dark(found), *guards(found)) if line]


def dark(found: Verdicts) -> str:
    """The sentence on dark regions, from the images without the heat's mask."""
    left, alone = found.figure("removed-binary"), found.figure("kept-binary-alone")
    more = found.figure("removed-binary", "kept-binary-alone")
    if left is None or alone is None or more is None or more.low is None or left.low is None:
        return "Whether dark regions carry information cannot be said from these trainings."
    numbers = (
        f"with the heated part removed, a classifier trained on the rest has a balanced accuracy "
        f"of {_shown(left)}, its masks alone {_shown(alone)}, chance is {found.chance:.3f}"
    )
    # Heat leaves parts of a tumour out: what is left of the image may still show some.
    tumourless = found.figure("no-tumour-binary")
    if tumourless is not None:
        outlines = _shown(found.figure("tumour-binary-alone"))
        numbers += (
            f"; with the true tumour removed {_shown(tumourless)}, its outlines alone {outlines}"
        )
    if left.low > found.chance and more.low > 0:
        return f"Dark regions carry information: {numbers}."
    return f"That dark regions carry information was not shown: {numbers}."


def guards(found: Verdicts) -> list[str]:
    """A line for every masks-alone classifier that should be at chance and is not."""
    lines = []
    for arm in BLIND:
        for form in ("soft", "binary"):
            alone = found.figure(f"{arm}-{form}-alone")
            if alone is None or alone.low is None:
                continue
            if alone.low > found.chance:
                lines.append(
                    f"The {form} masks of {LETTERS[arm]} are not blind to the class: alone "
                    f"{_shown(alone)}, chance {found.chance:.3f}; read its arms against that."
                )
    return lines
