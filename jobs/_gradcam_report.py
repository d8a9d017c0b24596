"""Pictures and the page of jobs/gradcam.py: heat and outlines of some images, scores, arms.

Shape letters: N images, C channels, H and W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from jobs import _gradcam_data as data
from jobs._gradcam_data import Heat, Looker, Masks, Pixels
from jobs._segment_report import CELL_PX, outlined
from jobs.gradcam import GradcamJob
from medray import config as configuration
from medray import report
from medray.evaluate.heat_masks import Cut
from medray.metrics import overlap
from medray.records import Sample, ShardIndex
from medray.store import Store

OVERLAYS = "overlays.png"
COLUMNS = 8
WAYS = {
    "gradcam": "Grad-CAM",
    "random": "the same masks at random places",
    "centre": "middle of the image",
    "otsu": "Otsu on the image",
    "random_weights": "Grad-CAM of random weights",
    "segmenter": "U-Net, trained on masks",
}
SCORE_HEADS = ("masks by", "Dice", "IoU", "pointing game", "Grad-CAM's Dice minus its")


def leave(
    config: GradcamJob, store: Store, index: ShardIndex, looker: Looker, summary: dict[str, Any]
) -> None:
    """Writes `overlays.png`, `tables.md` and `report.html`."""
    png, names = overlays_png(config, index, looker, summary["chosen"])
    store.write_bytes(OVERLAYS, png)
    store.write_bytes("tables.md", markdown(summary).encode())
    chosen = summary["chosen"]
    legend = (
        "Above the heat, below outlines: truth cyan, Grad-CAM's mask orange, both white. "
        f"{', '.join(names)}."
    )
    parts = [
        ("Chosen on validation", report.table({k: v for k, v in chosen.items() if k != "by_way"})),
        ("Examples", f"<p>{legend}</p>" + report.picture(png, OVERLAYS)),
        ("Scores, with 95% intervals over patients", _scores(summary["scores"])),
        ("Layers", report.columns(("layer", "cut", "Dice on validation"), _layers(chosen))),
    ]
    if arms := summary["arms"]:
        words = report.preformatted("\n".join(arms["words"]))
        parts += [("Trained again", words + report.columns(arms["heads"], arms["rows"]))]
    parts += [("Configuration", report.preformatted(configuration.to_yaml(config)))]
    store.write_bytes("report.html", report.page("Grad-CAM as segmentation", parts).encode())


def dicom_page(
    config: GradcamJob,
    store: Store,
    looker: Looker,
    samples: list[Sample],
    rows: list[dict[str, Any]],
) -> None:
    """`overlays.png` of the first files and `report.html` with a row for each."""
    cells = []
    for sample in samples[: 4 * COLUMNS]:
        image = sample.image[None] if sample.image.ndim == 2 else sample.image.transpose(2, 0, 1)
        assert sample.mask is not None, "every sample here has a mask"
        said_HW = sample.mask != 0
        factor = 1 + max(0, CELL_PX // image.shape[-1] - 1)
        cells.append(outlined(image, np.zeros_like(said_HW), said_HW, factor))
    png = report.grid_png(np.stack(cells), columns=COLUMNS, cell_px=cells[0].shape[-1])
    store.write_bytes(OVERLAYS, png)
    heads = ("file", "said", "pixels", "segmentation", "error")
    listed = [[row.get(k, "") for k in ("file", "said", "pixels", "seg", "error")] for row in rows]
    parts = [
        ("Masks", report.picture(png, OVERLAYS)),
        ("Files", report.columns(heads, listed)),
        ("Configuration", report.preformatted(configuration.to_yaml(config))),
    ]
    title = f"Grad-CAM of {looker.trained.name}"
    store.write_bytes("report.html", report.page(title, parts).encode())


# --- tables ---------------------------------------------------------------------------------------


def shown(figure: dict[str, Any] | None) -> str:
    """A figure with its interval, as text."""
    if figure is None or figure["estimate"] is None:
        return "not defined"
    if figure["low"] is None:
        return f"{figure['estimate']:.3f}"
    return f"{figure['estimate']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def score_rows(scores: dict[str, Any]) -> list[list[str]]:
    """A row for each way to make masks, then one for each class."""
    rows = []
    for name in (name for name in WAYS if name in scores["ways"]):
        figures = scores["ways"][name]
        minus = "" if name == "gradcam" else shown(scores["minus"][name]["dice"])
        measures = [shown(figures[m]) for m in ("dice", "iou", "pointing")]
        rows.append([WAYS[name], *measures, minus])
    for label, figures in scores.get("by_label", {}).items():
        measures = [shown(figures[m]) for m in ("dice", "iou", "pointing")]
        rows.append([f"Grad-CAM, {label}", *measures, ""])
    return rows


def _scores(scores: dict[str, Any]) -> str:
    known = scores["classifier"].get("balanced_accuracy")
    said = f"The classifier's balanced accuracy on split {scores['split']}: {shown(known)}."
    if not scores["ways"]:
        return f"<p>{said} No true masks: no scores.</p>"
    about = f"{scores['images']:,} images with a mask of {scores['patients']:,} patients."
    return f"<p>{said} {about}</p>" + report.columns(SCORE_HEADS, score_rows(scores))


def _layers(chosen: dict[str, Any]) -> list[list[Any]]:
    return [[name, cut, float(dice)] for name, (cut, dice) in chosen["by_way"].items()]


def markdown(summary: dict[str, Any]) -> str:
    """The tables, for a page of results."""
    chosen, scores, arms = summary["chosen"], summary["scores"], summary["arms"]
    known = shown(scores["classifier"].get("balanced_accuracy"))
    parts = [
        f"By {chosen['way']}, {chosen['cut']}; the classifier's balanced accuracy on split "
        f"{scores['split']}: {known}; {scores['images']:,} images with a mask."
    ]
    if scores["ways"]:
        parts.append(table(SCORE_HEADS, score_rows(scores)))
    if arms:
        parts += ["\n".join(arms["words"]), table(arms["heads"], arms["rows"])]
    return "\n\n".join(parts) + "\n"


def table(heads: Any, rows: Any) -> str:
    """A table in Markdown."""
    lines = [list(heads), ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


# --- overlays -------------------------------------------------------------------------------------


def overlays_png(
    config: GradcamJob, index: ShardIndex, looker: Looker, chosen: dict[str, Any]
) -> tuple[bytes, list[str]]:
    """Two rows of pictures each for the worst, median and best Dice; what the rows are."""
    images_NCHW, true_NHW = _some(config, index)
    heat_NHW, _ = looker.heat(images_NCHW, chosen["way"])
    said_NHW = Cut.parse(chosen["cut"]).masks(heat_NHW)
    order = np.argsort(overlap.of_masks(said_NHW, true_NHW).dice(), kind="stable")
    middle = max(0, len(order) // 2 - COLUMNS // 2)
    rows = {"worst": order[:COLUMNS], "median": order[middle : middle + COLUMNS]}
    rows["best"] = order[::-1][:COLUMNS]
    if not true_NHW.any():
        rows = {"first images": np.arange(len(order))[:COLUMNS]}
    eight = images_NCHW if images_NCHW.itemsize == 1 else (images_NCHW >> 8).astype(np.uint8)
    factor = 1 + max(0, CELL_PX // eight.shape[-1] - 1)
    cells: list[Pixels] = []
    for numbers in rows.values():
        pad = [np.full_like(cells[0] if cells else heated(eight[0], heat_NHW[0], factor), 96)]
        pad *= COLUMNS - len(numbers)
        cells += [heated(eight[n], heat_NHW[n], factor) for n in numbers] + pad
        cells += [outlined(eight[n], true_NHW[n], said_NHW[n], factor) for n in numbers] + pad
    sheet = report.grid_png(np.stack(cells), columns=COLUMNS, cell_px=cells[0].shape[-1])
    return sheet, list(rows)


def _some(config: GradcamJob, index: ShardIndex) -> tuple[Pixels, Masks]:
    """Images to show: those with a mask of the split that is scored, else the set's first."""
    found = list(data.with_pixels(data.roster_of(config, index, config.split)))
    if found:
        return np.concatenate([f[1] for f in found]), np.concatenate([f[2] for f in found])
    roster = data.roster_of(config, index, index.shards[0].split)
    assert roster is not None, "the split of a shard is there"
    images_NCHW = next(roster.images(roster.facts[:COLUMNS], COLUMNS))
    return images_NCHW, np.zeros((len(images_NCHW), *images_NCHW.shape[2:]), np.bool_)


def heated(image_CHW: Pixels, heat_HW: Heat, factor: int) -> Pixels:
    """The image enlarged, heat over it from red to yellow; (3, H, W)."""
    heat: npt.NDArray[np.float32] = heat_HW.repeat(factor, 0).repeat(factor, 1)
    grey_HW = image_CHW.mean(0).repeat(factor, 0).repeat(factor, 1)
    share_HW = 0.7 * heat
    colour = np.stack([np.full_like(heat, 255), 255 * np.clip(2 * heat - 1, 0, 1), 0 * heat])
    picture: Pixels = (grey_HW * (1 - share_HW) + colour * share_HW).astype(np.uint8)
    return picture
