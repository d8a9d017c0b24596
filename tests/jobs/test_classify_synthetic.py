"""jobs/classify.py with an archive, at a fraction of the labels: stages, budgets, leaks refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import _classify_data, classify
from medray import lineage, log
from medray.lineage import Lineage, Saw
from medray.records import Provenance, Sample
from medray.shards import write_set
from medray.store import Store
from medray.stream import Roster, Source
from medray.train import mixture
from medray.train.classifier import ClassifierTraining
from tests.jobs import classify_runs
from tests.jobs.folders import summary

CLASSES = ("dark", "light")
ABOUT = Provenance("mr1:a:prior:0:0", "a", None, 0, 0, {}, {}, None, {})
TOTAL_IMAGES, PRETRAIN_IMAGES = 64, 24
SMALL = (
    *("--size-px", "16", "--width", "8", "--batch", "8", "--total-images", f"{TOTAL_IMAGES}"),
    *("--lr", "0.01", "--snapshot-images", "16", "--checkpoint-images", "16", "--log-images", "8"),
    *("--backend", "local", "--threads-per-worker", "1", "--interval-draws", "20"),
    *("--patience-images", "1000", "--loader-threads", "1"),
)


SHORT = ("--total-images", "8", "--snapshot-images", "8")


pytestmark = pytest.mark.usefixtures("own_cache")


def samples(split: str, dark: int, light: int, synthetic: bool = False) -> Iterator[Sample]:
    """Dark, then light images, two a patient."""
    for number in range(dark + light):
        label = CLASSES[number >= dark]
        pixels = np.random.default_rng(number).integers(0, 60, (16, 16)) + 120 * (number >= dark)
        yield Sample(
            key=f"k{number}",
            image=pixels.astype(np.uint8),
            label=label,
            patient=None if synthetic else f"{split}-p{number // 2}",
            split=split,
            source_sha256=None if synthetic else f"{split}-image{number}",
            provenance=ABOUT if synthetic else None,
        )


def made(url: Path, *parts: Iterator[Sample]) -> str:
    every = (sample for part in parts for sample in part)
    write_set(url, every, name=url.name, classes=CLASSES, size_px=16, samples_per_shard=30)
    return str(url)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return made(
        tmp_path / "set",
        samples("train", 40, 12),
        samples("val", 8, 8),
        samples("test", 6, 6),
    )


def archive(tmp_path: Path, *seen: Saw, name: str = "archive") -> str:
    """An archive whose makers saw `seen`."""
    url = made(tmp_path / name, samples("train", 24, 24, synthetic=True))
    lineage.write(Store(url), Lineage(seen))
    return url


OF_TRAINING = Saw("train-image0", "train-p0", "train", "dark")


def run(folder: Path, *more: str) -> int:
    code = classify.main([*SMALL, "--run-dir", str(folder), "--json", *more])
    log.setup()
    return code


def config_of(*more: str) -> classify.ClassifyJob:
    from medray.config import parse

    return parse(classify.ClassifyJob, [*SMALL, *more], prog="medray classify", description="")


# --- pre-training, then fine-tuning ---------------------------------------------------------------


def pretraining(tmp_path: Path) -> tuple[str, ...]:
    return "--pretrain", archive(tmp_path, OF_TRAINING), "--pretrain-images", f"{PRETRAIN_IMAGES}"


def test_both_arms_take_the_same_steps_and_the_first_are_of_the_archive_alone(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, set[bool], float]] = []
    step = ClassifierTraining.step

    def recorded(self: Any, batch: Any, images: int) -> Any:
        synthetic = {record.get("provenance") is not None for record in batch.records}
        steps.append((images, synthetic, self.config.lr_at(images)))
        return step(self, batch, images)

    monkeypatch.setattr(ClassifierTraining, "step", recorded)
    assert run(tmp_path / "alone", "--data", data) == 0
    alone, steps = steps, []
    assert run(tmp_path / "both", "--data", data, *pretraining(tmp_path)) == 0
    assert [s[0] for s in steps] == [s[0] for s in alone] == list(range(0, TOTAL_IMAGES, 8))
    assert all(s[1] == {False} for s in alone)
    assert [s[1] for s in steps] == [{True}] * 3 + [{False}] * 5
    # The learning rate falls, and starts anew at the boundary.
    assert steps[2][2] < steps[3][2] and steps[-1][2] < steps[4][2]
    found = summary(tmp_path / "both")
    assert found["images"] == TOTAL_IMAGES and found["best_images"] > PRETRAIN_IMAGES
    assert found["pretrain_images"] == PRETRAIN_IMAGES and not found["ended_early"]


def test_a_score_of_pre_training_is_never_the_best_and_never_ends_the_run(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter((0.1, 0.1, 0.9, 0.8, 0.95))
    monkeypatch.setattr("medray.train.validation.balanced_log_loss", lambda *a: next(scores))
    flags = ("--pretrain-images", "16", "--patience-images", "16")
    assert run(tmp_path / "run", "--data", data, *pretraining(tmp_path), *flags) == 0
    found = summary(tmp_path / "run")
    # Snapshots at 0, 16 (both before fine-tuning), 32, 48, 64.
    assert (found["best_images"], found["best_score"]) == (48, 0.8)


def test_stopped_on_either_side_of_the_boundary_it_leaves_the_same_bytes(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--data", data, *pretraining(tmp_path))
    assert run(tmp_path / "clean", *flags) == 0
    step = ClassifierTraining.step
    # Before the boundary, at it, and after it with its last checkpoint before, then behind.
    for at in (16, 24, 24, 48):

        def dies(self: Any, batch: Any, images: int, at: int = at) -> Any:
            if images == at:
                raise KeyboardInterrupt
            return step(self, batch, images)

        monkeypatch.setattr(ClassifierTraining, "step", dies)
        assert run(tmp_path / "run", *flags, "--resume") == 130
    monkeypatch.setattr(ClassifierTraining, "step", step)
    assert run(tmp_path / "run", *flags, "--resume") == 0
    clean = classify_runs.results(tmp_path / "clean")
    assert {"model/classifier.safetensors", "model/seen.json", "DONE"} <= set(clean)
    assert classify_runs.results(tmp_path / "run") == clean


# --- real and synthetic mixed ---------------------------------------------------------------------


def test_mixed_training_has_so_many_synthetic_images_of_the_minority(
    tmp_path: Path, data: str
) -> None:
    flags = ("--synthetic", archive(tmp_path, OF_TRAINING), "--ratio", "2")
    assert run(tmp_path / "run", "--data", data, *flags) == 0
    found = summary(tmp_path / "run")
    assert found["synthetic"] == {"light": 24}
    assert found["train"]["counts"] == {"dark": 40, "light": 12}
    samples = _classify_data.samples_of(config_of("--data", data, *flags))
    # 36 light to 40 dark: the class weights are those of the mixture.
    assert samples.weights_2K[1].tolist() == pytest.approx([76 / 80, 76 / 72])
    assert "mixed with archive" in (tmp_path / "run" / "model" / "README.md").read_text()


# --- whose labels ---------------------------------------------------------------------------------


def test_a_fraction_of_the_labels_is_by_patient_and_nested(data: str) -> None:
    found = [
        _classify_data.samples_of(config_of("--data", data, "--fraction", f))
        for f in ("0.1", "0.5", "1")
    ]
    patients = [{fact.patient for fact in each.train_facts} for each in found]
    assert patients[0] < patients[1] < patients[2] and len(patients[2]) == 26
    assert [len(each) for each in patients] == [3, 13, 26]
    assert {fact.label for fact in found[0].train_facts} == set(CLASSES)
    assert len({fact.key for fact in found[0].validation_facts}) == 16


def test_inner_validation_reads_no_patient_of_the_validation_split(
    tmp_path: Path, data: str
) -> None:
    flags = ("--validation-patients", "0.25", "--fraction", "0.5", *SHORT)
    assert run(tmp_path / "run", "--data", data, *flags) == 0
    saw = lineage.read(str(tmp_path / "run"))
    assert saw is not None and len(saw.patients) == 13
    assert all(p.startswith("train-") for p in saw.patients)
    found = summary(tmp_path / "run")
    assert found["train"]["patients"] == 9 and found["validation"]["patients"] == 4
    # The control: with the set's own validation its patients were seen.
    assert run(tmp_path / "other", "--data", data, *SHORT) == 0
    other = lineage.read(str(tmp_path / "other"))
    assert other is not None and {"val-p0", "train-p0"} <= other.patients
    assert not any(p.startswith("test-") for p in other.patients)


def test_excluded_patients_neither_train_nor_validate(
    tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.txt").write_text("# a fold\ntrain-p0\n\nval-p1  # one more\n")
    flags = ("--data", data, "--exclude-patients", str(tmp_path / "out.txt"))
    found = _classify_data.samples_of(config_of(*flags))
    assert {f.patient for f in found.train_facts} == {f"train-p{n}" for n in range(1, 26)}
    assert {f.patient for f in found.validation_facts} == {f"val-p{n}" for n in (0, *range(2, 8))}
    (tmp_path / "out.txt").write_text("nobody\n")
    _classify_data.samples_of(config_of(*flags))
    assert "has none of the 1 patients" in capsys.readouterr().err
    (tmp_path / "out.txt").write_text("# nothing\n")
    assert run(tmp_path / "run", *flags) == 2


# --- leaks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        (Saw("val-image0", "val-p0", "val", None), "1 patient(s) (val-p0)"),
        (Saw("test-image0", "test-p3", "test", "dark"), "1 patient(s) (test-p3)"),
        (Saw("test-image0", "of-another-key", "test", None), "1 patient(s) (of-another-key)"),
        (OF_TRAINING, ""),
    ],
)
@pytest.mark.parametrize("way", ["--pretrain", "--synthetic"])
def test_an_archive_that_saw_a_held_out_patient_is_refused(
    tmp_path: Path,
    data: str,
    capsys: pytest.CaptureFixture[str],
    planted: Saw,
    said: str,
    way: str,
) -> None:
    url = archive(tmp_path, OF_TRAINING, planted)
    more = ("--pretrain-images", "16") if way == "--pretrain" else ()
    code = run(tmp_path / "run", "--data", data, way, url, *more, "--dry-run")
    told = capsys.readouterr().err
    assert code == (3 if said else 0)
    assert said in told and ("MR-D092" in told) == bool(said)
    assert (f"{url}" in told.split("MR-D092")[-1]) or not said


def test_a_label_outside_the_fraction_is_refused_and_its_image_without_the_label_is_not(
    tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--data", data, "--fraction", "0.25")
    found = _classify_data.samples_of(config_of(*flags))
    within = found.train_facts[0].source_sha256
    roster = Roster([Source(data)], "train")
    used = mixture.samples_in(roster, found.train_facts)
    outside = next(f for f in roster.facts if f.source_sha256 not in used)
    assert within and outside.source_sha256 and outside.patient
    own = Saw(within, str(found.train_facts[0].patient), "train", "dark")
    labelled = Saw(outside.source_sha256, outside.patient, "train", outside.label)
    bare = Saw(outside.source_sha256, outside.patient, "train", None)
    for name, planted, code in (("a", labelled, 3), ("b", bare, 0)):
        url = archive(tmp_path, own, planted, name=name)
        pretrain = ("--pretrain", url, "--pretrain-images", "16", "--dry-run")
        assert run(tmp_path / "run", *flags, *pretrain) == code
        assert ("labels of 1 sample(s) outside" in capsys.readouterr().err) == (code == 3)
    # At the whole set every label of it may be used.
    url = archive(tmp_path, own, labelled, name="c")
    pretrain = ("--pretrain", url, "--pretrain-images", "16", "--dry-run")
    assert run(tmp_path / "run", "--data", data, *pretrain) == 0


def test_excluded_and_inner_validation_patients_are_held_out_too(tmp_path: Path, data: str) -> None:
    (tmp_path / "out.txt").write_text("train-p0\n")
    pretrain = ("--pretrain", archive(tmp_path, OF_TRAINING), "--pretrain-images", "16")
    flags = ("--data", data, *pretrain, "--dry-run")
    assert run(tmp_path / "run", *flags) == 0
    assert run(tmp_path / "run", *flags, "--exclude-patients", str(tmp_path / "out.txt")) == 3
    every = [Saw(f"train-image{n}", f"train-p{n // 2}", "train", "dark") for n in range(52)]
    url = archive(tmp_path, *every, name="whole")
    flags = ("--data", data, "--pretrain", url, "--pretrain-images", "16", "--dry-run")
    assert run(tmp_path / "run", *flags) == 0
    assert run(tmp_path / "run", *flags, "--validation-patients", "0.2") == 3


def test_an_archive_that_does_not_say_what_it_saw_is_refused(
    tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = made(tmp_path / "old", samples("train", 8, 8, synthetic=True))
    assert run(tmp_path / "run", "--data", data, "--synthetic", url) == 3
    assert "does not say what it saw" in capsys.readouterr().err


def test_what_was_seen_is_handed_on(
    tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    maker = Saw("elsewhere", "somebody", "train", None)
    flags = ("--data", data, "--synthetic", archive(tmp_path, maker), *SHORT)
    assert run(tmp_path / "run", *flags) == 0
    saw = lineage.read(str(tmp_path / "run"))
    assert saw is not None and maker in saw.entries and len(saw) == 1 + 52 + 16
    assert run(tmp_path / "next", "--data", data, "--init-from", str(tmp_path / "run"), *SHORT) == 0
    assert lineage.read(str(tmp_path / "next")) == saw
    (tmp_path / "run" / "model" / "seen.json").unlink()
    assert run(tmp_path / "last", "--data", data, "--init-from", str(tmp_path / "run"), *SHORT) == 0
    assert lineage.read(str(tmp_path / "last")) is None
    assert "does not say what it saw" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--pretrain-images", "16"), "go together"),
        (("--pretrain", "x"), "go together"),
        (("--pretrain", "x", "--pretrain-images", "12"), "multiple of the batch"),
        (("--pretrain", "x", "--pretrain-images", "64"), "below --total-images"),
        (("--ratio", "-1"), "ratio"),
        (("--fraction", "0"), "fraction"),
        (("--fraction", "1.5"), "fraction"),
        (("--validation-patients", "1"), "validation_patients"),
        (("--exclude-patients", "nowhere.txt"), "cannot be read"),
    ],
)
def test_mistakes_end_with_exit_2(
    tmp_path: Path,
    data: str,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    said: str,
) -> None:
    assert run(tmp_path / "run", "--data", data, *flags) == 2
    told = capsys.readouterr().err
    assert said in told or said.replace("_", "-") in told


def test_a_class_with_one_patient_trains_and_does_not_validate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made(tmp_path / "set", samples("train", 20, 2), samples("val", 4, 4))
    flags = ("--data", data, "--validation-patients", "0.2", "--fraction", "0.5")
    found = _classify_data.samples_of(config_of(*flags))
    assert {f.patient for f in found.train_facts if f.label == "light"} == {"train-p10"}
    assert {f.label for f in found.validation_facts} == {"dark"}
    assert "no sample of split train has light" in capsys.readouterr().err


def test_one_patient_a_class_leaves_nobody_to_validate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made(tmp_path / "set", samples("train", 2, 2), samples("val", 4, 4))
    flags = ("--data", data, "--validation-patients", "0.2", "--dry-run")
    assert run(tmp_path / "run", *flags) == 3
    assert "too few patients for --validation-patients 0.2" in capsys.readouterr().err


@pytest.mark.chaos
def test_killed_anywhere_in_either_stage_it_leaves_the_same_bytes(tmp_path: Path) -> None:
    url = archive(tmp_path, OF_TRAINING)
    flags = ("--pretrain", url, "--pretrain-images", "48", "--labels", "one")
    data = made(tmp_path / "set", samples("train", 40, 12), samples("val", 8, 8))
    met = classify_runs.killed(
        tmp_path / "run", tmp_path / "cache", kills=8, seed=3, more=("--data", data, *flags)
    )
    assert met == 8
    whole = classify_runs.results(tmp_path / "run-clean")
    assert "model/seen.json" in whole and classify_runs.results(tmp_path / "run") == whole
