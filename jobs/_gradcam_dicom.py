"""DICOM files to masks: a set of shards, and a DICOM segmentation of each file's own size.

Files have no true masks here: layer and cut come from --choice, or are not chosen. Files are
decoded in the limited child, as when a set is packed.

Shape letters: C channels, H and W pixels.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from jobs import _gradcam_data as data
from jobs import _out
from jobs._gradcam_data import Looker
from jobs._gradcam_score import chosen_without
from jobs.gradcam import GradcamJob
from medray import log
from medray.errors import DataError, ResourceError
from medray.evaluate.heat_masks import Cut
from medray.images import child, format_of
from medray.images.segmentation_object import encode_segmentation
from medray.pack import geometry
from medray.records import Sample
from medray.shards import INDEX, write_set
from medray.store import Store

SCHEMA = "medray.gradcam-dicom-plan/1"
FOLDER, SUMMARY, SPLIT = "seg", "summary.json", "test"
SUFFIXES = ("", ".dcm", ".dicom")


@dataclass(frozen=True)
class Explained:
    """What became of one file: its sample, its segmentation, what was said."""

    sample: Sample
    seg: bytes | None
    row: dict[str, Any]


def is_dicom(url: str) -> bool:
    """Whether `url` is a folder here with DICOM files and no set of shards, or such a file."""
    store = Store(url)
    if not store.is_local or store.exists(INDEX):
        return False
    return any(_head(path) == "dicom" for path in _paths(url))


def _paths(url: str) -> list[Path]:
    place = Path(Store(url).path())
    found = [place] if place.is_file() else sorted(place.rglob("*"))
    return [p for p in found if p.is_file() and p.suffix.lower() in SUFFIXES]


def _head(path: Path) -> str | None:
    with path.open("rb") as file:
        return format_of(file.read(132))


def explain(config: GradcamJob) -> None:
    """Masks of every DICOM file, with a segmentation of each; the index last."""
    if config.score or config.arms:
        raise DataError(
            "DICOM files have no true masks: nothing to score or to train on again",
            code="MR-D075",
            where=config.data,
            hint="leave --score and --arms out, or pack the files with masks first",
        )
    paths = [path for path in _paths(config.data) if _head(path) == "dicom"]
    trained = data.classifier_of(config)
    px = int(trained.about["arguments"].get("size_px", 64))
    looker = data.looker_of(config, None, trained.channels, px)
    if config.dry_run:
        log.event("dry_run", f"{len(paths):,} DICOM files; nothing was written", files=len(paths))
        return
    store = Store(config.out)
    with _out.alone(store, "command"):
        facts = {
            "schema": SCHEMA,
            "classifier_sha256": trained.sha256,
            "files": [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths],
            "ways": list(looker.ways),
            "cuts": [str(cut) for cut in looker.cuts],
            "background": config.background,
        }
        facts = json.loads(json.dumps(facts))
        if _out.start(store, facts, what="masks", done=INDEX, overwrite=config.overwrite):
            log.event("complete", f"{config.out} is complete: nothing to do")
            return
        _make(config, store, looker, paths, px)


def _make(config: GradcamJob, store: Store, looker: Looker, paths: list[Path], px: int) -> None:
    chosen = chosen_without(looker)
    samples: list[Sample] = []
    rows: list[dict[str, Any]] = []
    root = Path(Store(config.data).path())
    for path in paths:
        name = path.name if root.is_file() else path.relative_to(root).as_posix()
        found = _of_file(looker, chosen, path, px, len(samples), name)
        if isinstance(found, dict):
            rows.append(found)
            continue
        if found.seg is not None:
            store.child(FOLDER).write_bytes(found.row["seg"], found.seg)
        samples.append(found.sample)
        rows.append(found.row)
    if not samples:
        raise DataError(
            f"none of {len(paths):,} DICOM files can be decoded: {rows[0]['error']}",
            code="MR-D102",
            where=config.data,
        )
    summary = {
        "classifier_sha256": looker.trained.sha256,
        "classes": list(looker.classes),
        "chosen": chosen,
        "files": rows,
        "scores": {"ways": {}, "images": 0, "split": SPLIT, "classifier": {}},
    }
    store.write_bytes(SUMMARY, (json.dumps(summary, indent=1, sort_keys=True) + "\n").encode())
    _leave(config, store, looker, samples, rows, px)


def _of_file(
    looker: Looker, chosen: dict[str, Any], path: Path, px: int, number: int, name: str
) -> Explained | dict[str, Any]:
    """One file explained; a row with the error where it cannot be."""
    source = path.read_bytes()
    try:
        decoded = child.decode_limited(source, name=name)
    except DataError as error:
        log.warn("not_decoded", str(error), file=name)
        return {"file": name, "error": error.message}
    image = geometry.as_set(decoded.image, px, looker.trained.channels, 8)
    stack = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    heat_1HW, logits_1K = looker.heat(np.ascontiguousarray(stack[None]), chosen["way"])
    cut, label = Cut.parse(chosen["cut"]), looker.classes[int(looker.said(logits_1K)[0])]
    mask = cut.masks(heat_1HW)[0]
    full = cut.masks(unfitted(heat_1HW[0], decoded.image.shape)[None])[0]
    made_of = f"{looker.trained.sha256}:{chosen['way']}:{chosen['cut']}"
    row: dict[str, Any] = {"file": name, "said": label, "pixels": int(full.sum()), "seg": None}
    seg = None
    if full.any():
        try:
            seg = encode_segmentation(
                source, full, label=label, algorithm=chosen["way"], made_of=made_of
            )
            row["seg"] = f"{number:08d}-{path.stem[:60]}.dcm"
        except ResourceError:
            raise
        except DataError as error:
            log.warn("no_segmentation", f"{name}: {error.message}", file=name)
            row["error"] = error.message
    sample = Sample(
        key=f"{SPLIT}-{number:08d}",
        image=image,
        split=SPLIT,
        mask=mask.astype(np.uint8) * np.uint8(255),
        source_sha256=hashlib.sha256(source).hexdigest(),
        extra={"gradcam": made_of},
    )
    return Explained(sample, seg, row)


def unfitted(
    square_HW: npt.NDArray[np.float32], image_shape: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    """Heat of the square that an image was fitted into, as large as the image was."""
    height, width = image_shape[:2]
    inner = geometry.fitted_px(height, width, square_HW.shape[0])
    top, left = ((square_HW.shape[0] - side) // 2 for side in inner)
    part = np.ascontiguousarray(square_HW[top : top + inner[0], left : left + inner[1]])
    full = cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(full, np.float32)


def _leave(
    config: GradcamJob,
    store: Store,
    looker: Looker,
    samples: list[Sample],
    rows: list[dict[str, Any]],
    px: int,
) -> None:
    """Lineage, page, and the shards with their index."""
    from jobs._gradcam_report import dicom_page
    from medray import lineage

    lineage.write_known(store, lineage.united([config.classifier, config.choice]), config.out)
    dicom_page(config, store, looker, samples, rows)
    write_set(
        config.out,
        samples,
        name=Path(config.data.rstrip("/")).name,
        classes=(),
        size_px=px,
        encoding="png",
    )
    made = sum(row["seg"] is not None for row in rows if "seg" in row)
    log.event(
        "done",
        f"done: {len(samples):,} of {len(rows):,} DICOM files, {made:,} segmentations in "
        f"{store.url}/{FOLDER}\n  report    {store.url}/report.html",
        files=len(rows),
        segmentations=made,
    )
