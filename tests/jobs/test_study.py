"""Studies: their jobs' flags, the order they run in, what is left where one fails, their tables."""

import importlib
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from jobs import _study_data as study_data
from jobs import _study_run as study_run
from jobs import _study_steps as study_steps
from jobs._study_page import arm_rows, run_rows
from jobs._study_steps import Plan, Step, write_folds
from jobs.study import StudyJob, main
from medray.config import parse
from medray.errors import DataError
from medray.records import Sample
from medray.shards import write_set
from medray.train import fraction

NAMES = ("brain-grade", "lung-signs", "brain-classes", "chest")
CLASSES = {
    "pack": "PackJob",
    "pggan": "PgganJob",
    "classify": "ClassifyJob",
    "segment": "SegmentJob",
    "archive": "ArchiveJob",
    "features": "FeaturesJob",
    "sweep": "SweepJob",
}


def plan_of(name: str, scale: str, out: Path) -> Plan:
    config = StudyJob(name=name, scale=scale, out=str(out))
    return study_steps.plan(config, out / "source", out / "boxes")


# --- what the studies are made of ---------------------------------------------------------------


@pytest.mark.parametrize("scale", study_steps.SCALES)
@pytest.mark.parametrize("name", NAMES)
def test_every_job_of_a_study_takes_its_flags(name, scale, tmp_path):
    for step in plan_of(name, scale, tmp_path).steps:
        if not step.words:
            continue
        job, *flags = step.words
        module = importlib.import_module(f"jobs.{job}")
        kind = getattr(module, CLASSES[job])
        # A flag that the job does not have, or does not take so, is an error here.
        assert parse(kind, flags, prog=job).model_fields_set
        assert parse(kind, [*flags, *step.begin], prog=job).model_fields_set


@pytest.mark.parametrize("name", NAMES)
def test_a_job_has_a_folder_of_its_own_and_waits_for_earlier_ones(name, tmp_path):
    seen: list[str] = []
    for step in plan_of(name, "cpu", tmp_path).steps:
        assert step.name not in seen and step.done.parent == tmp_path / step.name
        assert set(step.needs) <= set(seen)
        used = [word for word in step.words if word.startswith(str(tmp_path))]
        wanted = {Path(word).relative_to(tmp_path).parts[0] for word in used} - {"source", "boxes"}
        needed = {step.name, *step.needs, *(f"{n.rpartition('-')[0]}-{{fold}}" for n in step.needs)}
        assert wanted <= needed, "a job that reads a folder must wait for it"
        seen.append(step.name)


def test_what_depends_on_labels_is_trained_on_the_fraction_alone(tmp_path):
    for step in plan_of("lung-signs", "cpu", tmp_path).steps:
        if step.name.startswith(("generator", "classifier")):
            share = step.words[step.words.index("--fraction") + 1]
            assert round(100 * float(share)) == int(step.name.rpartition("-")[2])
        if step.name.startswith("classifier"):
            assert "--validation-patients" in step.words


def test_a_run_that_is_begun_resumes_and_a_fresh_one_takes_the_first_weights(tmp_path):
    words, begin = ("segment", "--run-dir", "r"), ("--init-from", "p")
    step = Step("s", words, tmp_path / "s" / "DONE", 1, (), begin)
    assert step.command()[-2:] == ("--init-from", "p")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "config.yaml").touch()
    assert step.command()[-1] == "--resume" and "--init-from" not in step.command()


# --- data ---------------------------------------------------------------------------------------


def test_grades_are_of_slices_with_tumour_and_patients_with_a_grade(tmp_path):
    study_data.write_rows(
        tmp_path / "labels.csv",
        [
            {"file": f"{p}{n}.png", "label": label, "split": "test", "patient": p}
            for p in "abc"
            for n, label in enumerate(("tumor", "no_tumor"))
        ],
    )
    column = "neoplasm_histologic_grade"
    rows = [{"patient": p, column: grade} for p, grade in zip("abc", ("1", "2", ""), strict=True)]
    study_data.write_rows(tmp_path / "patients.csv", rows)
    found = [(row["file"], row["label"]) for row in study_data.grades(tmp_path)]
    assert found == [("a0.png", "grade_2"), ("b0.png", "grade_3")]
    assert {row["split"] for row in study_data.without_a_test(tmp_path)} == {"train"}


def graded(folder: Path, patients: int = 12) -> str:
    image = np.zeros((16, 16), np.uint8)
    samples = [
        Sample(
            key=f"{split}-{number:08d}",
            image=image,
            label=("low", "high")[number % 2],
            patient=f"{split}{number // 2 * 2 + number % 2}",
            split=split,
        )
        for split in ("train", "val", "test")
        for number in range(patients)
    ]
    write_set(str(folder), samples, name="graded", classes=("low", "high"), size_px=16)
    return str(folder)


def test_outer_folds_share_no_patient_and_have_all_of_them(tmp_path):
    write_folds(graded(tmp_path / "set"), tmp_path / "folds")
    folds = [fraction.read_patients(f"{tmp_path}/folds/test-{k}.txt") for k in range(5)]
    everyone = set().union(*folds)
    assert sum(map(len, folds)) == len(everyone) == 36
    counts = json.loads((tmp_path / "folds" / study_steps.FOLDS_FILE).read_text())
    assert [counts[f"test-{k}"] for k in range(5)] == [len(fold) for fold in folds]


# --- running ------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A study of two jobs that pack a tiny set, the second after the first; its --out."""
    name = study_data.PUBLISHED["chest"].tar
    folder = tmp_path / name
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(6):
        file = f"images/{number}.png"
        cv2.imwrite(str(folder / file), np.full((16, 16), 40 * number, np.uint8))
        split = ("train", "val", "test")[number % 3]
        rows.append({"file": file, "label": "ab"[number // 3], "split": split, "patient": file})
    study_data.write_rows(folder / "labels.csv", rows)
    with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
        tar.add(folder, name)

    def two_packs(config, source, boxes):
        made = Plan(config, source)
        made.packed("first", "images", 16)
        words = ("pack", "--source", f"{tmp_path}/second.csv", "--size-px", "16", "--workers", "0")
        made.made("second", *words, minutes=0.1, needs=("first",))
        return made

    monkeypatch.setattr(study_run, "plan", two_packs)
    return ["chest", "--sets", str(tmp_path), "--out", str(tmp_path / "study")]


def test_a_job_that_fails_ends_the_study_with_its_exit_code_and_a_rerun_goes_on(
    small, tmp_path, capsys
):
    assert main(small) == 2
    said = capsys.readouterr().err
    assert "the job second ended with exit code 2" in said and "second.csv" in said
    first = tmp_path / "study" / "first" / "index.json"
    before = first.stat().st_mtime_ns
    folder = tmp_path / study_data.PUBLISHED["chest"].tar
    rows = study_data.read_rows(folder / "labels.csv")
    for row in rows:
        row["file"] = str(folder / row["file"])
    study_data.write_rows(tmp_path / "second.csv", rows)
    assert main(small) == 0
    assert first.stat().st_mtime_ns == before, "what is done is left alone"
    assert (tmp_path / "study" / "second" / "index.json").exists()
    assert main(small) == 0
    assert "nothing to do" in capsys.readouterr().err


def test_a_dry_run_says_how_long_it_takes_and_writes_nothing(small, tmp_path, capsys):
    assert main([*small, "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "2 of 2 jobs are left" in said and "minutes of one core" in said
    assert "medray pack --source" in said and not (tmp_path / "study").exists()


def test_a_study_without_its_data_is_a_readable_error(tmp_path, capsys):
    assert main(["chest", "--sets", str(tmp_path), "--out", str(tmp_path / "study")]) == 2
    assert "has no chest_pneumonia_kermany.tar" in capsys.readouterr().err
    assert main(["chests", "--out", str(tmp_path / "s")]) == 2
    assert "brain-grade" in capsys.readouterr().err


def test_another_scale_in_the_same_folder_is_refused(small, capsys):
    assert main(small) == 2
    capsys.readouterr()
    assert main([*small, "--scale", "trial"]) == 2
    assert "another plan: scale was" in capsys.readouterr().err


# --- tables -------------------------------------------------------------------------------------


def test_tables_have_a_row_for_each_arm_with_its_difference(tmp_path):
    heads = "fraction,arm,metric,estimate,ci_low,ci_high"
    heads += ",difference,difference_low,difference_high,said"
    lines = [
        "0.1,none,balanced_accuracy,0.5,0.4,0.6,0,0,0,",
        "0.1,none,auroc,0.7,0.6,0.8,0,0,0,",
        "0.1,smote,balanced_accuracy,0.55,0.45,0.65,0.05,-0.01,0.11,not resolvable",
        "0.1,smote,auroc,,,,,,,",
    ]
    path = tmp_path / "results.csv"
    path.write_text("\n".join([heads, *lines]) + "\n")
    none, smote = arm_rows(path)
    assert none[:4] == ["10%", "none", "0.500 (0.400 to 0.600)", ""]
    assert smote[3:5] == ["+0.050 (-0.010 to +0.110)", "not defined"]
    assert smote[-1] == "not resolvable"


def test_tables_have_the_figures_of_what_was_trained(tmp_path):
    step = Step("a", ("classify",), tmp_path / "a" / "DONE", 1)
    known = {"estimate": 0.5, "low": 0.4, "high": 0.6}
    few = {"estimate": 0.25, "low": None, "high": None}
    summary = {"validation": {"balanced_accuracy": few}, "test": {"balanced_accuracy": known}}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "summary.json").write_text(json.dumps(summary))
    assert run_rows(step) == [
        ["a", "validation", "balanced accuracy", "0.250"],
        ["a", "test", "balanced accuracy", "0.500 (0.400 to 0.600)"],
    ]
    assert run_rows(Step("p", ("pack",), tmp_path / "p" / "index.json", 1)) == []


def test_a_class_with_one_patient_has_no_folds(tmp_path):
    image = np.zeros((16, 16), np.uint8)
    samples = [
        Sample(
            key=f"{split}-{number:08d}",
            image=image,
            label="high" if (split, number) == ("val", 0) else "low",
            patient=f"{split}{number}",
            split=split,
        )
        for split in ("train", "val", "test")
        for number in range(4)
    ]
    url = str(tmp_path / "set")
    write_set(url, samples, name="graded", classes=("low", "high"), size_px=16)
    with pytest.raises(DataError, match="one patient"):
        write_folds(url, tmp_path / "folds")
