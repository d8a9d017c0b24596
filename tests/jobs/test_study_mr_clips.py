"""The study of clips: its jobs' flags, who is in which fold, the tables of what was said."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from jobs import _study_clips_page as page
from jobs import _study_clips_steps as steps
from jobs._study_steps import FOLDS, FOLDS_FILE
from jobs.study import StudyJob
from medray.config import parse
from medray.stream.clips import ClipSet
from tests.jobs.clip_runs import clips, made

CLASSES = {
    "pack": "PackJob",
    "classify": "ClassifyJob",
    "jigsaw": "JigsawJob",
    "transfer": "TransferJob",
}


def plan_of(scale: str, out: Path, **named: object):
    return steps.plan(StudyJob(name="mr-clips", scale=scale, out=str(out), **named), out / "source")


@pytest.mark.parametrize("scale", steps.CLIP_SCALES)
def test_every_job_takes_its_flags_and_waits_for_what_it_reads(scale: str, tmp_path: Path) -> None:
    seen: list[str] = []
    for step in plan_of(scale, tmp_path).steps:
        assert step.name not in seen and set(step.needs) <= set(seen)
        seen.append(step.name)
        if not step.words:
            assert step.write is not None
            continue
        job, *flags = step.words
        kind = getattr(importlib.import_module(f"jobs.{job}"), CLASSES[job])
        assert parse(kind, flags, prog=job).model_fields_set
        read = [word.partition("=")[2] or word for word in step.words if str(tmp_path) in word]
        folders = {Path(word).relative_to(tmp_path).parts[0] for word in read}
        assert folders - {"source"} <= {step.name, *step.needs}


def test_it_is_within_the_hour_and_each_fold_has_an_encoder_of_its_own(tmp_path: Path) -> None:
    made_of = plan_of("cpu", tmp_path).steps
    assert sum(step.minutes for step in made_of) <= 60
    for fold in range(FOLDS):
        (jigsaw,) = (s for s in made_of if s.name == f"jigsaw-{fold}")
        (frozen,) = (s for s in made_of if s.name == f"frozen-{fold}")
        excluded = jigsaw.words[jigsaw.words.index("--exclude-patients") + 1]
        assert frozen.words[frozen.words.index("--test-patients") + 1] == excluded
        assert f"jigsaw={tmp_path / f'jigsaw-{fold}'}" in frozen.words


def test_folds_share_no_patient_and_each_has_the_rarest_finding(tmp_path: Path) -> None:
    data = made(tmp_path / "set", clips("train", 60))
    steps.write_folds(data, tmp_path / "folds")
    texts = [(tmp_path / "folds" / f"test-{k}.txt").read_text().split() for k in range(FOLDS)]
    assert sorted(p for text in texts for p in text) == sorted(
        fact.patient for fact in ClipSet.open(data).facts("train")
    )
    rare = {f.patient for f in ClipSet.open(data).facts("train") if f.labels["rare"]}
    assert len(rare) == 5 and all(len(rare & set(text)) == 1 for text in texts)
    assert sum(json.loads((tmp_path / "folds" / FOLDS_FILE).read_text()).values()) == 60


def written(out: Path, strength: dict[str, float]) -> None:
    """Predictions of five folds in which arms know the truth to so much."""
    generator = np.random.default_rng(0)
    for fold in range(FOLDS):
        (out / f"jigsaw-{fold}").mkdir(parents=True)
        pretext = {"validation": {"accuracy": {"estimate": 0.25, "low": None, "high": None}}}
        (out / f"jigsaw-{fold}" / "summary.json").write_text(json.dumps(pretext))
        truth_NK = (generator.random((30, 2)) < (0.5, 0.3)).astype(int)
        fits = [
            {"mode": mode, "arm": arm, "fraction": share, "seed": seed, "said": said.tolist()}
            for mode, share in (("frozen", 0.25), ("frozen", 1.0), ("tuned", 0.25))
            for arm, known in strength.items()
            for seed in (1, 0)
            for said in [generator.random((30, 2)) + known * truth_NK]
        ]
        for mode in page.MODES:
            body = {
                "findings": ["right", "parietal"],
                "patients": [f"p{fold}-{n}" for n in range(30)],
                "truth": truth_NK.tolist(),
                "fits": [fit for fit in fits if fit["mode"] == mode],
            }
            (out / f"{mode}-{fold}").mkdir()
            (out / f"{mode}-{fold}" / "predictions.json").write_text(json.dumps(body))


def test_its_page_says_which_encoder_is_better_and_what_it_resolves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "DRAWS", 200)
    written(tmp_path, {"jigsaw": 0.8, "random": 0.1, "supervised": 0.8})
    steps.leave(plan_of("trial", tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["rarest"] == "parietal" and summary["pretext_accuracy"] == [0.25] * FOLDS
    assert len(summary["rows"]) == 9
    words = summary["verdicts"]
    against_random = [w for w in words if "jigsaw is better than random" in w]
    assert len(against_random) == 3 and all("resolves about" in w for w in words)
    text = (tmp_path / "tables.md").read_text()
    assert "rarest: parietal" in text and "| jigsaw minus supervised |" in text
    assert "150 clips, each in one of 5 outer folds; right" in text
    assert "without labels, at every fraction" in text and "are exploratory" in text
    assert (tmp_path / "report.html").read_text().count("data:image/png") == 1
