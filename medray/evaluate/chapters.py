"""The chapters on the images themselves: overview, distances, variety, membership."""

from __future__ import annotations

from typing import Any

import numpy as np

from medray import report
from medray.evaluate import membership, plots
from medray.evaluate.distribution import Comparison, compare
from medray.evaluate.material import HOLDOUT, PLAIN, SYNTHETIC, TEST, TRAIN, Material
from medray.evaluate.resample import Figure, Numbers, halves
from medray.evaluate.sections import Section
from medray.evaluate.similarity import channels_first
from medray.evaluate.structure import alikeness
from medray.metrics import UndefinedMetricError

SHOWN = 8
SHOWN_CLASSES = 12
CELL_PX = 96


def overview(m: Material) -> Section:
    """How many of what, and what they look like, class by class."""
    section = Section("The sets")
    columns = ["class", *(name for name in m.sets)]
    counts = {name: [len(rows) for _, rows in m.by_class(name)] for name in m.sets}
    lines = [[label, *(counts[name][k] for name in m.sets)] for k, label in enumerate(m.classes)]
    section.table(columns, [*lines, ["all images", *(len(images) for images in m.sets.values())]])
    section.figures["images"] = {name: len(images) for name, images in m.sets.items()}
    section.figures["sets"] = {
        name: {"name": images.index.name, "sha256": images.sha256, "present": images.present}
        for name, images in m.sets.items()
    }
    for label in m.classes[:SHOWN_CLASSES]:
        for name in (TRAIN, SYNTHETIC):
            rows = m.of_class(name, label)[:SHOWN]
            if len(rows):
                word = "real" if name == TRAIN else "SYNTHETIC"
                file = f"{name}-{_slug(label)}.png"
                section.picture(file, grid(m, name, rows), f"{word}, {label}")
    return section


def grid(m: Material, name: str, rows: Numbers) -> bytes:
    """Images of a set side by side."""
    images_NCHW = channels_first(m.sets[name].take([int(row) for row in rows]))
    cell_px = max(CELL_PX, images_NCHW.shape[-1])
    return report.grid_png(images_NCHW, columns=SHOWN, cell_px=cell_px)


def _slug(label: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in label)


# --- distances --------------------------------------------------------------------------------


def distances(m: Material) -> Section:
    """FID, KID, precision, recall, density, coverage: overall and per class, floors beside."""
    section = Section("Distances to the real images")
    _say_how(section, m)
    overall = compare(m.side(TRAIN), m.side(SYNTHETIC), what="all", seed=m.seed, draws=m.draws)
    section.figures |= overall.summary()
    section.table(["all classes", "synthetic", "real to real (the floor)"], _lines(overall))
    section.text(
        f"Both sides hold {overall.images:,} images; figures at other numbers do not compare."
    )
    if m.has(PLAIN):
        _beside_plain(section, m)
    by_class = {label: _of_class(m, label) for label in m.classes}
    section.figures["per_class"] = {
        label: found.summary() if isinstance(found, Comparison) else {"undefined": found}
        for label, found in by_class.items()
    }
    _class_tables(section, by_class)
    points = {"all": overall} | {k: v for k, v in by_class.items() if isinstance(v, Comparison)}
    for name in ("fid", "coverage"):
        shown = {
            label: {"synthetic": one.figures[name], "real to real": one.floor[name]}
            for label, one in points.items()
        }
        words = f"{name}, with 95% intervals and the floor; each class at its own number of images"
        section.picture(f"{name}.png", plots.bars_png(shown, name), words)
    return section


def _say_how(section: Section, m: Material) -> None:
    record = m.extractor.record()
    section.figures["extractor"] = record
    warning = (
        " This extractor was never trained: its figures show that the pipeline works, no more."
        if record["smoke_test"]
        else ""
    )
    section.text(
        f"Extractor {record['name']} (sha256 {record['sha256'][:16]}), resize: "
        f"{record['resize']}, normalisation {record['normalisation']}.{warning}"
    )
    section.text(
        f"95% intervals by {m.draws} bootstrap draws over patients. The floor compares two halves "
        "of the real training images that share no patient: no generator can be expected below it."
    )


def _lines(found: Comparison) -> list[list[Any]]:
    return [[found.key(name), figure, found.floor[name]] for name, figure in found.figures.items()]


def _of_class(m: Material, label: str) -> Comparison | str:
    """A class's comparison, or why there is none."""
    real, fake = (m.side(name).only(m.of_class(name, label)) for name in (TRAIN, SYNTHETIC))
    try:
        return compare(real, fake, what=f"class {label}", seed=m.seed, draws=m.draws)
    except UndefinedMetricError as error:
        return error.message


def _class_tables(section: Section, by_class: dict[str, Comparison | str]) -> None:
    for label, found in by_class.items():
        if isinstance(found, str):
            section.text(f"Not defined for {found}.")
        else:
            section.table([label, "synthetic", "real to real (the floor)"], _lines(found))


def _beside_plain(section: Section, m: Material) -> None:
    """Coverage beside that of plain sampling, at one number of images."""
    most = min(len(m.sets[SYNTHETIC]), len(m.sets[PLAIN]))
    found = {
        name: compare(
            m.side(TRAIN), m.side(name), what="plain", seed=m.seed, draws=m.draws, most=most
        )
        for name in (SYNTHETIC, PLAIN)
    }
    names = list(found[PLAIN].figures)
    section.table(
        [f"at {found[PLAIN].images:,} images", "synthetic", "plain sampling", "real to real"],
        [
            [n, found[SYNTHETIC].figures[n], found[PLAIN].figures[n], found[PLAIN].floor[n]]
            for n in names
        ],
    )
    pair = [found[name].figures["coverage"].value for name in (SYNTHETIC, PLAIN)]
    section.figures["plain"] = found[PLAIN].summary()
    section.figures["coverage_over_plain"] = pair[0] / pair[1] if pair[1] else None


# --- variety ----------------------------------------------------------------------------------


def variety(m: Material) -> Section:
    """MS-SSIM within class: synthetic pairs more alike than real ones are a collapse."""
    section = Section("Variety within a class")
    section.text(
        "Mean MS-SSIM of random pairs within a class (1: identical; real pairs are of different "
        "patients). Synthetic pairs more alike than real ones mean that the class has collapsed."
    )
    found: dict[str, dict[str, Figure | None]] = {}
    for label in m.classes:
        found[label] = {name: _alike(m, name, label) for name in (TRAIN, SYNTHETIC)}
    rows = [[label, by_set[SYNTHETIC], by_set[TRAIN]] for label, by_set in found.items()]
    section.table(["class", "synthetic", "real"], rows)
    section.figures["ms_ssim"] = {
        label: {
            word: None if one is None else one.named("ms_ssim")
            for word, one in (("synthetic", by_set[SYNTHETIC]), ("real", by_set[TRAIN]))
        }
        for label, by_set in found.items()
    }
    section.picture("ms-ssim.png", plots.bars_png(found, "MS-SSIM of pairs"), "MS-SSIM of pairs")
    return section


def _alike(m: Material, name: str, label: str) -> Figure | None:
    rows = m.of_class(name, label)
    groups = m.side(name).groups_N[rows]
    _, groups = np.unique(groups, return_inverse=True)

    def take(numbers: Numbers) -> Any:
        return m.sets[name].take([int(row) for row in rows[numbers]])

    try:
        stream = f"{name}.{label}"
        return alikeness(take, groups, seed=m.seed, stream=stream, draws=m.draws)
    except UndefinedMetricError:
        return None


# --- membership -------------------------------------------------------------------------------


def members(m: Material) -> Section:
    """Three membership attacks, scored on training against hold-out images."""
    section = Section("Membership inference")
    features = {name: m.arrays[name]["features"] for name in (TRAIN, HOLDOUT, SYNTHETIC)}
    if m.has(TEST):
        reference, others = m.arrays[TEST]["features"], features[HOLDOUT]
    else:
        first_N, second_N = halves(m.side(HOLDOUT).groups_N, m.seed)
        others, reference = features[HOLDOUT][first_N], features[HOLDOUT][second_N]
    found = membership.attacks(
        features[TRAIN], others, features[SYNTHETIC], reference, seed=m.seed, draws=m.draws
    )
    section.text(
        "Who holds the synthetic images and an image of a person: can he tell that the person was "
        "trained on? AUC 0.5 is guessing. True positives are counted where 1% and 0.1% of people "
        "who were not trained on are accused; with fewer than 100 and 1,000 of them that is not "
        "resolvable."
    )
    rows = [
        [
            one.name,
            Figure(one.auroc, one.ci_low, one.ci_high),
            *(_rate(rate) for rate in one.rates),
            f"{one.members:,} / {one.non_members:,}",
        ]
        for one in found
    ]
    columns = ["attack", "AUC", "found at 1%", "found at 0.1%", "training / hold-out images"]
    section.table(columns, rows)
    section.figures["membership"] = {one.name: _attack(one) for one in found}
    return section


def _rate(rate: membership.Rate) -> str:
    if rate.value is None:
        return "not resolvable"
    return f"{rate.value:.3g} ({rate.ci_low:.3g} to {rate.ci_high:.3g})"


def _attack(one: membership.Attack) -> dict[str, Any]:
    figures: dict[str, Any] = Figure(one.auroc, one.ci_low, one.ci_high).named("auroc")
    for rate in one.rates:
        name = f"tpr_at_fpr_{rate.false_positives:g}"
        figures |= {
            name: rate.value,
            f"{name}_ci_low": rate.ci_low,
            f"{name}_ci_high": rate.ci_high,
        }
    return {**figures, "members": one.members, "non_members": one.non_members}
