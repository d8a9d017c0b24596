"""What a finished segmenter's run leaves: the model, its figures, overlays and a page.

Shape letters: N images, C channels, H and W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs._classify_report import shown
from jobs._segment_data import Samples, masked, roster_of, seen
from jobs.segment import SegmentJob
from medray import config as configuration
from medray import log, report
from medray.rundir import RunDir

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from medray.lineage import Lineage
    from medray.models.segmenter import Segmenter
    from medray.stream import Fact
    from medray.stream.masks import MaskRoster
    from medray.train.segmenter import SegmenterTraining
    from medray.train.segmenter_validation import Judged

    Pixels = npt.NDArray[np.uint8]
    Mask = npt.NDArray[np.bool_]

# Overlays of a row; images are enlarged to about so many pixels, so that outlines are thin.
COLUMNS, CELL_PX = 8, 192
TRUE_RGB, SAID_RGB, BOTH_RGB = (0, 220, 255), (255, 120, 0), (255, 255, 255)
EMPTY = "Dice and IoU of a patient with an empty mask are 1 where nothing was said, else 0."


def leave(
    config: SegmentJob,
    run: RunDir,
    algorithm: SegmenterTraining,
    found: Samples,
    summary: dict[str, Any],
) -> dict[str, Any]:
    """Judges the best weights, writes everything; figures for the summary."""
    from medray.train import segmenter_validation as validation
    from medray.train.targets import patient_of

    model, device = algorithm.take_best(), algorithm.context.device
    roster, facts = found.validation, found.validation_facts
    judged = validation.judge(model, roster, facts, device)
    figures: dict[str, Any] = {
        "best_images": algorithm.best_images,
        "best_score": algorithm.best_score,
        "parameters": sum(p.numel() for p in model.parameters()),
        "workers": config.workers,
        "train": {
            "samples": len(found.train_facts),
            "patients": len({patient_of(fact) for fact in found.train_facts}),
            "left_out": found.left_out,
        },
        "validation": validation.figures(judged, config.seed, config.interval_draws),
    }
    if config.evaluate_split == "test":
        roster = roster_of(config, "test")
        facts = masked(roster)
        log.event("test", f"judging {len(facts):,} images of the test split", samples=len(facts))
        judged = validation.judge(model, roster, facts, device)
        figures["test"] = validation.figures(judged, config.seed, config.interval_draws)
    figures["segmenter_sha256"] = _save(config, run, model, figures, summary, seen(config, found))
    validation.draw_progress(run)
    rows = chosen(judged)
    run.write_picture("overlays.png", overlays_png(model, roster, facts, rows, device))
    _page(config, run, {**summary, **figures}, judged, facts, rows)
    return figures


def _save(
    config: SegmentJob,
    run: RunDir,
    model: Segmenter,
    figures: dict[str, Any],
    summary: dict[str, Any],
    saw: Lineage | None,
) -> str:
    from medray import lineage
    from medray.models import weights

    lineage.write_known(run.store.child("model"), saw, run.store.url)
    about = {
        "kind": "segmenter",
        "arguments": model.arguments(),
        "layer_names": dict(model.layer_names),
        "seed": config.seed,
        "patients": config.patients,
        "split": config.split,
        "fraction": config.fraction,
        "images": summary["images"],
        "best_images": figures["best_images"],
    }
    return weights.save_network(
        run.store.child("model"),
        weights.SEGMENTER,
        model.state_dict(),
        about,
        card(config, figures, summary),
    )


# --- overlays -----------------------------------------------------------------------------------


def chosen(judged: Judged) -> dict[str, list[int]]:
    """Images to show, by row: worst, median and best Dice of those with a mask; false alarms."""
    pixels = judged.pixels
    dice_N = pixels.dice()
    full = [int(n) for n in (pixels.true_N > 0).nonzero()[0]]
    order = sorted(full, key=lambda n: (dice_N[n], n))
    middle = max(0, len(order) // 2 - COLUMNS // 2)
    alarms = [int(n) for n in ((pixels.true_N == 0) & (pixels.said_N > 0)).nonzero()[0]]
    alarms.sort(key=lambda n: (-int(pixels.said_N[n]), n))
    rows = {
        "worst": order[:COLUMNS],
        "median": order[middle : middle + COLUMNS],
        "best": order[::-1][:COLUMNS],
        "largest false alarms": alarms[:COLUMNS],
    }
    return {name: numbers for name, numbers in rows.items() if numbers}


def overlays_png(
    model: Segmenter, roster: MaskRoster, facts: list[Fact], rows: dict[str, list[int]], device: Any
) -> bytes:
    """A row of images each for worst, median, best: truth and prediction as outlines."""
    import numpy as np
    import torch

    from medray.models.pixels import to_unit

    side = 1 + max(0, CELL_PX // roster.size_px - 1)
    blank = np.full((3, roster.size_px * side, roster.size_px * side), report.GREY, np.uint8)
    cells: list[Pixels] = []
    for numbers in rows.values():
        images_NCHW, true_NHW = next(roster.pairs([facts[n] for n in numbers], len(numbers)))
        with torch.no_grad():
            logits_N1HW = model(to_unit(torch.from_numpy(images_NCHW).to(device)))
        said_NHW = (logits_N1HW[:, 0] > 0).cpu().numpy()
        eight = images_NCHW if images_NCHW.itemsize == 1 else (images_NCHW >> 8).astype(np.uint8)
        cells += map(outlined, eight, true_NHW, said_NHW, [side] * len(numbers))
        cells += [blank] * (COLUMNS - len(numbers))
    sheet = np.stack(cells or [blank])
    return report.grid_png(sheet, columns=COLUMNS, cell_px=blank.shape[-1])


def outlined(image_CHW: Pixels, true_HW: Mask, said_HW: Mask, factor: int) -> Pixels:
    """The image enlarged, in colour, with the outlines of both masks; (3, H, W)."""
    import numpy as np

    def large(array: Any) -> Any:
        return array.repeat(factor, axis=-2).repeat(factor, axis=-1)

    picture_CHW: Pixels = np.broadcast_to(large(image_CHW), (3, *large(true_HW).shape)).copy()
    true, said = outline(large(true_HW)), outline(large(said_HW))
    for where, colour in ((true, TRUE_RGB), (said, SAID_RGB), (true & said, BOTH_RGB)):
        picture_CHW[:, where] = np.asarray(colour, np.uint8)[:, None]
    return picture_CHW


def outline(mask_HW: Mask) -> Mask:
    """The pixels of a mask that have one outside beside them (the edge of the image is outside)."""
    import numpy as np

    wide = np.pad(mask_HW, 1)
    inside = wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    edge: Mask = mask_HW & ~inside
    return edge


# --- the page and the card ----------------------------------------------------------------------


def _page(
    config: SegmentJob,
    run: RunDir,
    summary: dict[str, Any],
    judged: Judged,
    facts: list[Fact],
    rows: dict[str, list[int]],
) -> None:
    on = "test" if "test" in summary else "validation"
    figures = {name: shown(value) for name, value in summary[on].items()}
    legend = (
        f"Rows: {', '.join(rows) or 'none'} (by the image's Dice). Outlines: truth cyan, "
        "prediction orange, both white."
    )
    parts = [
        (f"Figures on {on}, with 95% intervals over patients", report.table(figures)),
        ("Convention", f"<p>{EMPTY}</p>"),
        ("Overlays", f"<p>{legend}</p>" + _embedded(run, "overlays.png")),
        ("Curves", _embedded(run, "progress.png")),
        ("Images shown", report.columns(("row", "key", "Dice"), _listed(judged, facts, rows))),
        ("Run", report.table({n: v for n, v in summary.items() if not isinstance(v, dict)})),
        ("Configuration", report.preformatted(configuration.to_yaml(config))),
    ]
    run.write_text("report.html", report.page(f"Segmenter, width {config.width}", parts))


def _embedded(run: RunDir, name: str) -> str:
    return report.picture(run.store.read_bytes(name), name) if run.store.exists(name) else ""


def _listed(
    judged: Judged, facts: list[Fact], rows: dict[str, list[int]]
) -> list[tuple[str, str, float]]:
    dice_N = judged.pixels.dice()
    return [
        (name, facts[number].key, float(dice_N[number]))
        for name, numbers in rows.items()
        for number in numbers
    ]


def card(config: SegmentJob, figures: dict[str, Any], summary: dict[str, Any]) -> str:
    """The model card."""
    data = ", ".join(Path(url).name for url in config.data) or f"{config.phantoms} phantoms"
    begun = f", begun with the weights of {Path(config.init_from).name}" if config.init_from else ""
    lines = [
        f"- {split}: Dice {shown(figures[split]['dice'])}, IoU {shown(figures[split]['iou'])}, "
        f"mean over {figures[split]['patients']:,} patients ({figures[split]['samples']:,} images)"
        for split in ("validation", "test")
        if split in figures
    ]
    return f"""# Segmenter, U-Net of width {config.width}, {config.size_px} px

Trained by medray on: {data} (split {config.split}, patients {config.patients},
{figures["train"]["samples"]:,} images with masks){begun}, {summary["images"]:,} images seen, the
weights as they were after {figures["best_images"]:,}; seed {config.seed}.

- Input: images in [-1, 1], resized inside to {config.size_px} px. Output: one logit a pixel, of the
  image's own size; above 0 is inside. `seen.json` names the samples that the weights saw.
{chr(10).join(lines)}
- {EMPTY} The weights were chosen on validation: its figures flatter.
- Weights: `segmenter.safetensors`; arguments in `config.yaml`.
- Intended use: research on synthetic images. Not for diagnosis.
"""
