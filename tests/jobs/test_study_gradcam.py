"""The study of Grad-CAM: its jobs' flags, its sets, what it leaves."""

import importlib
import json

import cv2
import numpy as np
import pytest

from jobs import _study_data as study_data
from jobs import _study_gradcam as study
from jobs import _study_run as study_run
from jobs.study import StudyJob, main
from medray.config import parse
from tests.jobs.test_study import CLASSES

KINDS = {**CLASSES, "gradcam": "GradcamJob"}


def plan_of(scale, out):
    config = StudyJob(name="gradcam", scale=scale, out=str(out))
    return study_run._plan(config, out / "source")


@pytest.mark.parametrize("scale", study.SCALES)
def test_every_job_takes_its_flags_and_waits_for_what_it_reads(scale, tmp_path):
    seen: list[str] = []
    for step in plan_of(scale, tmp_path).steps:
        job, *flags = step.words
        kind = getattr(importlib.import_module(f"jobs.{job}"), KINDS[job])
        assert parse(kind, flags, prog=job).model_fields_set
        assert set(step.needs) <= set(seen)
        read = [w for w in step.words if w.startswith(str(tmp_path)) and "source" not in w]
        assert {w.removeprefix(f"{tmp_path}/") for w in read} <= {step.name, *step.needs}
        seen.append(step.name)
    assert [name for name in seen if name.startswith("gradcam")] == [
        *("gradcam-lgg", "gradcam-lung", "gradcam-brain"),
    ]


def test_it_takes_an_hour_of_one_core_at_most_and_has_six_arms_on_two_sets(tmp_path):
    steps = plan_of("cpu", tmp_path).steps
    assert sum(step.minutes for step in steps) <= 60
    armed = [step.name for step in steps if "--arms" in step.words]
    assert armed == ["gradcam-lgg", "gradcam-brain"]
    lgg = next(step for step in steps if step.name == "gradcam-lgg")
    assert lgg.words[lgg.words.index("--background") + 1] == "no_tumor"
    scale = plan_of("trial", tmp_path).config.scale
    first = study.facts(StudyJob(name="gradcam", scale=scale))
    assert first != study.facts(StudyJob(name="gradcam", scale="cpu")), "another plan is refused"


def test_of_nodules_the_middle_of_image_and_mask_is_taken(tmp_path):
    image = np.arange(128 * 128, dtype=np.uint32).reshape(128, 128) % 251
    mask = np.zeros((128, 128), np.uint8)
    mask[60:70, 62:66] = 255
    for folder, pixels in (("images", image.astype(np.uint8)), ("masks", mask)):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "a.png"), pixels)
    row = {"file": "images/a.png", "mask": "masks/a.png", "label": "x", "split": "val"}
    study_data.write_rows(tmp_path / "labels.csv", [row])
    (found,) = study.middles(tmp_path)
    cut = cv2.imread(str(tmp_path / found["file"]), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(cut, image[48:80, 48:80]) and found["label"] == "x"
    middle = cv2.imread(str(tmp_path / found["mask"]), cv2.IMREAD_UNCHANGED)
    assert middle.shape == (32, 32) and middle.sum() == mask.sum()


def explained(arms):
    figure = {"estimate": 0.4, "low": 0.3, "high": 0.5}
    ways = {
        name: dict.fromkeys(("dice", "iou", "pointing"), figure) for name in ("gradcam", "otsu")
    }
    scores = {"ways": ways, "minus": {"otsu": ways["otsu"]}}
    words = ["Dark regions carry information: so it is."] if arms else []
    table = {"heads": ["arm"], "rows": [["(a) original"]], "words": words}
    return {
        "chosen": {"way": "gradcam++ body.blocks.2", "cut": "otsu"},
        "scores": scores,
        "arms": table if arms else {},
    }


def test_it_leaves_tables_a_page_and_the_sentence(tmp_path, capsys):
    made = plan_of("trial", tmp_path)
    for step in made.steps:
        folder = step.done.parent
        folder.mkdir(parents=True)
        if step.words[0] == "gradcam":
            found = explained("--arms" in step.words)
            (folder / "summary.json").write_text(json.dumps(found))
            (folder / "tables.md").write_text(f"| table of {step.name} |\n")
            (folder / "overlays.png").write_bytes(b"png")
        elif step.words[0] != "pack":
            name = "balanced_accuracy" if step.words[0] == "classify" else "dice"
            figure = {"estimate": 0.87, "low": 0.83, "high": 0.91}
            (folder / "summary.json").write_text(json.dumps({"test": {name: figure}}))
    study.leave(made)
    text = (tmp_path / "tables.md").read_text()
    assert "| table of gradcam-lung |" in text
    assert "| classifier-lgg | test | balanced accuracy | 0.870 (0.830 to 0.910) |" in text
    page = (tmp_path / "report.html").read_text()
    assert page.count("Dark regions carry information") == 2 and "0.400 (0.300 to 0.500)" in page
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary["words"]) == {"gradcam-lgg", "gradcam-brain"}
    assert "gradcam-lgg: Dark regions" in capsys.readouterr().err


def test_without_its_sets_it_is_a_readable_error(tmp_path, capsys):
    assert main(["gradcam", "--sets", str(tmp_path), "--out", str(tmp_path / "s")]) == 2
    assert "has no brain_lgg_flair.tar" in capsys.readouterr().err
