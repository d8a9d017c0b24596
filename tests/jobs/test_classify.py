"""jobs/classify.py end to end on small sets: what it leaves, what it refuses, kills, halves."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs import classify
from medray import log
from medray.models.weights import load_classifier
from medray.records import Sample
from medray.shards import write_set
from medray.stream import Roster, Source
from medray.train import targets
from medray.train.classifier import ClassifierTraining
from tests.jobs import classify_runs
from tests.jobs.folders import summary

CLASSES = ("dark", "light", "never")
SMALL = (
    *("--size-px", "16", "--width", "8", "--batch", "8", "--total-images", "160", "--lr", "0.01"),
    *("--snapshot-images", "40", "--backend", "local", "--threads-per-worker", "1"),
    *("--ema-half-life-images", "16", "--interval-draws", "40"),
)


pytestmark = pytest.mark.usefixtures("own_cache")


def samples(
    split: str, count: int, bits: int = 8, label: str | None = "", first: int = 0
) -> Iterator[Sample]:
    """Dark and light images in turn, three a patient; `label` replaces all labels."""
    for number in range(first, first + count):
        generator = np.random.default_rng(number)
        light = number % 2
        pixels = generator.integers(0, 60, (20, 20)) + 120 * light
        yield Sample(
            key=f"{split}{number}",
            image=(pixels * (1 if bits == 8 else 257)).astype(np.uint8 if bits == 8 else np.uint16),
            label=CLASSES[light] if label == "" else label,
            patient=f"{split}-p{number // 3}",
            split=split,
        )


def made(url: Path, *parts: Iterator[Sample]) -> str:
    chained = itertools.chain(*parts)
    write_set(url, chained, name="made", classes=CLASSES, size_px=20, samples_per_shard=30)
    return str(url)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return made(tmp_path / "set", *(samples(s, n) for s, n in (("train", 60), ("val", 24))))


def run(folder: Path, *more: str) -> int:
    code = classify.main([*SMALL, "--run-dir", str(folder), "--json", *more])
    log.setup()
    return code


def test_a_run_leaves_a_model_that_says_what_its_summary_says(tmp_path: Path) -> None:
    data = made(
        tmp_path / "set",
        *(samples(s, n) for s, n in (("train", 60), ("val", 24), ("test", 18))),
    )
    assert run(tmp_path / "run", "--data", data, "--evaluate-split", "test") == 0
    found = summary(tmp_path / "run")
    assert found["classes"] == ["dark", "light"] and found["labels"] == "one"
    assert found["train"] == {
        "samples": 60,
        "patients": 20,
        "counts": {"dark": 30, "light": 30},
    }
    assert found["validation"]["balanced_accuracy"]["estimate"] > 0.9
    assert found["test"]["samples"] == 18 and found["test"]["patients"] == 6
    model, about = load_classifier(str(tmp_path / "run"))
    assert about["classifier_sha256"] == found["classifier_sha256"]
    assert model.temperature.item() == pytest.approx(found["calibration"]["temperature"])
    dark = torch.full((1, 1, 20, 20), 30 / 127.5 - 1)
    assert float(model.probabilities(dark)[0, 0]) > 0.6
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Figures on test" in page and page.count("data:image/png") >= 3
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["images"] for r in rows if "snapshot/score" in r] == [0, 40, 80, 120, 160]
    shares = [r["perf/data_wait_share"] for r in rows if "perf/data_wait_share" in r]
    assert all(0 <= share <= 1 for share in shares)
    # Steps of a few milliseconds: any one of them may have to wait, the first for a start.
    assert statistics.median(shares[1:]) < 0.5
    assert run(tmp_path / "run", "--data", data, "--evaluate-split", "test", "--resume") == 0


def test_many_findings_on_phantoms_with_rare_ones(tmp_path: Path) -> None:
    code = run(tmp_path / "run", "--phantom-images", "150", "--evaluate-split", "test")
    assert code == 0
    found = summary(tmp_path / "run")
    assert found["labels"] == "many" and len(found["classes"]) == 5
    assert len(found["calibration"]["thresholds"]) == 5
    assert len(set(found["calibration"]["temperature"])) == 5
    nodule = found["validation"]["classes"]["nodule"]
    assert nodule["samples"] == found["validation"]["samples"]
    assert nodule["positives"] > 0 and 0 <= nodule["auroc"]["estimate"] <= 1
    model, _ = load_classifier(str(tmp_path / "run"))
    assert model.multi_label and model.probabilities(torch.zeros(2, 1, 16, 16)).shape == (2, 5)
    assert (tmp_path / "run" / "confusion-00-cardiomegaly.png").exists()


def test_images_of_16_bits_are_taken(tmp_path: Path) -> None:
    data = made(tmp_path / "set", samples("train", 60, bits=16), samples("val", 24, bits=16))
    assert run(tmp_path / "run", "--data", data, "--architecture", "plain") == 0
    assert summary(tmp_path / "run")["validation"]["balanced_accuracy"]["estimate"] > 0.9


def test_training_ends_early_where_the_score_does_not_fall(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "medray.train.validation.balanced_log_loss", lambda *arguments: next(scores)
    )
    scores = iter((1.0, 0.5, 0.7, 0.6, 0.9, 0.9))
    assert run(tmp_path / "run", "--data", data, "--patience-images", "80") == 0
    found = summary(tmp_path / "run")
    assert found["ended_early"] and (found["images"], found["best_images"]) == (120, 40)
    assert found["best_score"] == 0.5


def test_the_halves_train_on_patients_that_they_do_not_share(tmp_path: Path, data: str) -> None:
    for half in ("half-a", "half-b"):
        assert run(tmp_path / half, "--data", data, "--patients", half) == 0
    a, b = (summary(tmp_path / half)["train"] for half in ("half-a", "half-b"))
    assert a["samples"] + b["samples"] == 60 and a["patients"] + b["patients"] == 20
    facts = Roster([Source(data)], "train").facts
    of_a = {f.patient for f in facts if targets.in_half(f, "half-a")}
    assert len(of_a) == a["patients"] and 0 < len(of_a) < 20


def test_weights_of_another_run_can_be_begun_with(tmp_path: Path, data: str) -> None:
    assert run(tmp_path / "first", "--data", data) == 0
    start = ("--init-from", str(tmp_path / "first"), "--data", data)
    assert run(tmp_path / "second", *start, "--total-images", "8", "--lr", "1e-9") == 0
    assert summary(tmp_path / "second")["validation"]["balanced_accuracy"]["estimate"] > 0.9
    assert run(tmp_path / "third", *start, "--architecture", "plain") == 2


# --- faults ---------------------------------------------------------------------------------------


def test_a_class_that_validation_lacks_is_told_and_has_no_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made(tmp_path / "set", samples("train", 60), samples("val", 12, label="dark"))
    assert run(tmp_path / "run", "--data", data) == 0
    assert "no sample of split val has light" in capsys.readouterr().err
    found = summary(tmp_path / "run")["validation"]["classes"]
    assert found["light"]["recall"] is None and found["dark"]["recall"]["estimate"] >= 0


@pytest.mark.parametrize(
    ("train", "val", "said"),
    [
        (None, "dark", "no sample has classes"),
        ("dark", "dark", "one class only (dark)"),
        ("", None, "no sample of split 'val' has a label among dark, light"),
    ],
)
def test_sets_that_make_no_task_end_with_exit_3_and_a_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], train: str, val: str, said: str
) -> None:
    data = made(tmp_path / "set", samples("train", 30, label=train), samples("val", 12, label=val))
    assert run(tmp_path / "run", "--data", data) == 3
    told = capsys.readouterr().err
    assert said in told and "fix:" in told and not (tmp_path / "run" / "DONE").exists()


def test_a_split_that_the_set_lacks_ends_with_exit_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made(tmp_path / "set", samples("train", 30))
    assert run(tmp_path / "run", "--data", data) == 3
    assert "no shard of split 'val'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--split", "holdout"), "train"),
        (("--classes", "never"), "no training sample has never"),
        (("--batch", "9", "--workers", "2"), "not a multiple of workers"),
        (("--split", "val"), "need a split each"),
        (("--size-px", "8"), "16"),
        (("--patients", "half-c"), "half-a"),
    ],
)
def test_mistakes_end_with_exit_2_and_name_the_thing(
    tmp_path: Path,
    data: str,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    said: str,
) -> None:
    assert run(tmp_path / "run", "--data", data, *flags) == 2
    assert said in capsys.readouterr().err


def test_a_nan_stops_the_run_and_leaves_no_model(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = ClassifierTraining.loss

    def poisoned(self: Any, logits_NK: torch.Tensor, truth_NK: torch.Tensor) -> torch.Tensor:
        return loss(self, logits_NK, truth_NK) * float("nan")

    monkeypatch.setattr(ClassifierTraining, "loss", poisoned)
    assert run(tmp_path / "run", "--data", data) == 1
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "DONE").exists()


def test_a_dry_run_says_what_it_would_train_on_and_writes_no_run(
    tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", "--data", data, "--dry-run") == 0
    told = capsys.readouterr().err
    assert "dark 30, light 30; 60 to train on" in told and "parameters" in told
    assert not (tmp_path / "run").exists()


def test_killed_anywhere_and_resumed_it_leaves_the_same_bytes(tmp_path: Path) -> None:
    met = classify_runs.killed(tmp_path / "run", tmp_path / "cache", kills=3, seed=5)
    assert met == 3
    whole = classify_runs.results(tmp_path / "run-clean")
    assert {"model/classifier.safetensors", "DONE", "reliability.png"} <= set(whole)
    assert classify_runs.results(tmp_path / "run") == whole
