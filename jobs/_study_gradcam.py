"""The study of Grad-CAM as segmentation: its sets, its jobs, its tables.

Three sets: FLAIR slices with and without tumour (masks), lung nodules by sign (masks), three brain
tumours (boxes). On each a classifier, a U-Net as the ceiling, masks of the classifier's heat with
their scores; on the two of the brain classifiers are trained again on what is kept and removed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs._study_data import Published, Row, Table, all_rows, unpacked, without_no_tumor
from jobs._study_page import RUN_HEADS, run_rows
from jobs._study_steps import Plan, Step, Words
from jobs.study import StudyJob
from medray import log, report
from medray.store import Store

# Nodules lie in the middle of crops of 128 px: of the whole crop, shrunk, a network learns nothing.
LUNG_PX = 32
STUDY = "gradcam"


@dataclass(frozen=True)
class GradcamScale:
    """How large the study is."""

    px: int
    width: int
    classifier_images: int
    segmenter_images: int
    arm_images: int
    arm_width: int
    arm_seeds: int


SCALES = {
    "trial": GradcamScale(32, 8, 640, 320, 96, 8, 1),
    "cpu": GradcamScale(64, 32, 24_000, 6_000, 8_000, 16, 3),
    "gpu": GradcamScale(128, 32, 120_000, 40_000, 40_000, 32, 5),
}


def middles(folder: Path) -> Iterator[Row]:
    """Nodules: the middle of every image and of its mask, written beside the set."""
    import cv2

    for row in all_rows(folder):
        cut: Row = {}
        for column in ("file", "mask"):
            image = cv2.imread(str(folder / row[column]), cv2.IMREAD_UNCHANGED)
            assert image is not None, f"the published set holds {row[column]}"
            top, left = ((side - LUNG_PX) // 2 for side in image.shape[:2])
            cut[column] = f"middle-{column}/{Path(row[column]).name}"
            (folder / f"middle-{column}").mkdir(exist_ok=True)
            part = image[top : top + LUNG_PX, left : left + LUNG_PX]
            cv2.imwrite(str(folder / cut[column]), part)
        yield {**row, **cut}


SOURCES = {
    "lgg": Published("brain_lgg_flair", (Table("images", all_rows),)),
    "lung": Published("lung_lidc_nodules", (Table("images", middles),)),
    "brain": Published("brain_tumor_classes", (Table("images", without_no_tumor),)),
}


def facts(config: StudyJob) -> dict[str, object]:
    """What decides the study's results."""
    return {"scale": asdict(SCALES[config.scale])}


def begin(config: StudyJob, where: Path) -> None:
    """Unpacks the sets below `where`."""
    for name, published in SOURCES.items():
        unpacked(published, Path(config.sets), where / name)


def plan(config: StudyJob, where: Path) -> Plan:
    """Its jobs."""
    made = Plan(config, where)
    scale = SCALES[config.scale]
    for name, more in OF_SET.items():
        _of_set(made, scale, name, more)
    return made


@dataclass(frozen=True)
class _Set:
    """What is done otherwise on a set: of packing, training and explaining."""

    pack: Words = ()
    train: Words = ()
    explain: Words = ()
    px: int | None = None
    arms: bool = True
    minutes: tuple[float, float, float] = (2.5, 2.5, 13.0)


OF_SET = {
    "lgg": _Set(train=("--mirror",), explain=("--background", "no_tumor", "--mirror")),
    "lung": _Set(px=LUNG_PX, arms=False, minutes=(0.8, 1.0, 0.5)),
    "brain": _Set(
        pack=("--box-columns", "x0", "y0", "x1", "y1"),
        train=("--mirror",),
        explain=("--mirror",),
    ),
}


def _of_set(plan: Plan, scale: GradcamScale, name: str, more: _Set) -> None:
    px = more.px or scale.px
    source = plan.source / name / SOURCES[name].tar / "images.csv"
    words: Words = ("--source", str(source), "--size-px", str(px), "--workers", "0", *more.pack)
    data = plan.made(f"data-{name}", "pack", *words, minutes=0.3)
    url: Words = ("--data", plan.folder(data))
    words = (*url, "--size-px", str(px), "--width", str(scale.width), "--precision", "bf16")
    words += ("--total-images", str(scale.classifier_images), "--evaluate-split", "test")
    first, second, third = more.minutes
    classifier = plan.trained(
        f"classifier-{name}", "classify", *words, *more.train, minutes=first, needs=(data,)
    )
    words = (*url, "--size-px", str(px), "--lr", "0.003", "--precision", "bf16", *more.train)
    words += ("--total-images", str(scale.segmenter_images), "--evaluate-split", "test")
    segmenter = plan.trained(f"segmenter-{name}", "segment", *words, minutes=second, needs=(data,))
    words = ("--classifier", plan.folder(classifier), "--segmenter", plan.folder(segmenter))
    words += (*url, "--method", "both", "--score", *more.explain)
    if more.arms:
        words += ("--arms", "all", "--arm-px", str(px), "--precision", "bf16")
        words += ("--arm-seeds", str(scale.arm_seeds), "--arm-width", str(scale.arm_width))
        words += ("--arm-images", str(scale.arm_images))
    needs = (data, classifier, segmenter)
    plan.made(f"gradcam-{name}", "gradcam", *words, minutes=third, needs=needs)


# --- what it leaves -------------------------------------------------------------------------------


def leave(made: Plan) -> None:
    """Writes tables.md, report.html and summary.json, which is last."""
    store = Store(made.out)
    explained = {s.name: s for s in made.steps if s.words[:1] == ("gradcam",)}
    runs = [row for step in made.steps for row in run_rows(step)]
    texts = {name: (step.done.parent / "tables.md").read_text() for name, step in explained.items()}
    head = f"`medray study {STUDY} --scale {made.config.scale}`"
    parts = [head, _table(RUN_HEADS, runs)]
    parts += [f"**{name}**\n\n{text}" for name, text in texts.items()]
    store.write_bytes("tables.md", ("\n\n".join(parts).strip() + "\n").encode())
    store.write_bytes("report.html", _page(explained, runs).encode())
    found = {name: _summary(step) for name, step in explained.items()}
    words = {name: one["arms"]["words"] for name, one in found.items() if one["arms"]}
    summary = {"name": STUDY, "words": words, "runs": runs, "sets": found}
    store.write_bytes("summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    lines = [f"{name}: {line}" for name, some in words.items() for line in some]
    log.event("done", "\n".join([*lines, f"  report    {made.out}/report.html"]))


def _summary(step: Step) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((step.done.parent / "summary.json").read_text())
    return found


def _table(heads: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [list(heads), ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _page(explained: dict[str, Step], runs: list[list[str]]) -> str:
    from jobs._gradcam_report import SCORE_HEADS, score_rows

    parts = [("What was trained", report.columns(RUN_HEADS, runs))]
    for name, step in explained.items():
        found = _summary(step)
        chosen = f"<p>By {found['chosen']['way']}, {found['chosen']['cut']}.</p>"
        scores = report.columns(SCORE_HEADS, score_rows(found["scores"]))
        png = (step.done.parent / "overlays.png").read_bytes()
        parts += [(name, chosen + scores), ("", report.picture(png, f"{name}: examples"))]
        if arms := found["arms"]:
            words = report.preformatted("\n".join(arms["words"]))
            parts += [("Trained again", words + report.columns(arms["heads"], arms["rows"]))]
    return report.page("Grad-CAM as segmentation", parts)
