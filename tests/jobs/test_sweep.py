"""`jobs/sweep.py` as a person uses it: verdicts, resume, refusals, exit codes."""

import csv
import errno
import hashlib
import json
import shutil

import numpy as np
import pytest

from jobs import _sweep_run as sweep_run
from jobs.sweep import main
from medray import lineage, phantoms, shards
from medray.errors import Stopped
from medray.images import decode_png
from medray.store import Store
from medray.stream import Roster, Source
from medray.train.fraction import in_fraction
from medray.tune import features as trials
from tests import chaos_budget, outcomes
from tests.faults.kill import tree_sha256
from tests.faults.killer import Killer
from tests.feature_sets import make_features, rows_of
from tests.jobs import sweep_runs
from tests.jobs.folders import summary
from tests.jobs.sweep_runs import CLASSES, SMALL, features, saw, words


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    features(folder / "real", (16, 8, 6))
    return folder


@pytest.fixture(scope="module")
def swept(sets, tmp_path_factory):
    out = tmp_path_factory.mktemp("swept") / "out"
    assert main(words(sets, out, "--arms", "none,class-weights,smote,gaussian")) == 0
    return out


def said(out, fraction=1.0):
    return {a["arm"]: a["said"] for a in summary(out)["arms"] if a["fraction"] == fraction}


# --- what it leaves -----------------------------------------------------------------------------


def test_a_sweep_leaves_a_verdict_in_words_pictures_a_page_and_a_table(swept):
    found = summary(swept)
    assert len(found["verdict"]) == 3 and found["comparisons"] == 3
    assert "Bonferroni for 3" in found["correction"]
    for name in ("verdict", "ratios", "fractions"):
        assert decode_png((swept / f"{name}.png").read_bytes()).std() > 1, name
    page = (swept / "report.html").read_text()
    assert page.count("data:image/png;base64") == 3 and "http" not in page.replace("</html>", "")
    rows = list(csv.DictReader((swept / "results.csv").read_text().splitlines()))
    assert {row["arm"] for row in rows} == {"none", "class-weights", "smote", "gaussian"}
    names = {row["metric"] for row in rows}
    assert {"balanced_accuracy", "auroc", "ece", "brier", "recall rare", "f1 rarest"} <= names


def test_each_arm_and_seed_touched_the_test_split_once_with_the_weights_that_are_kept(swept):
    touched = sorted((swept / "touched").rglob("*.json"))
    assert len(touched) == 4 * 2
    for path in touched:
        content = json.loads(path.read_text())
        weights = (swept / "weights" / f"{content['name']}.safetensors").read_bytes()
        assert hashlib.sha256(weights).hexdigest() == content["weights_sha256"]


def test_the_same_command_again_does_nothing_and_says_so(swept, sets, capsys):
    before = tree_sha256(swept)
    again = words(sets, swept, "--arms", "none,class-weights,smote,gaussian")
    again.remove("--quiet")
    assert main(again) == 0
    assert "is complete: nothing to do" in capsys.readouterr().err
    assert tree_sha256(swept) == before


def test_another_plan_at_the_same_place_is_refused_naming_the_difference(swept, sets, capsys):
    assert main(words(sets, swept, "--arms", "none,smote")) == 2
    assert "arms was" in capsys.readouterr().err
    assert (
        main(words(sets, swept, "--arms", "none,class-weights,smote,gaussian", "--seed", "1")) == 2
    )


def test_the_test_split_is_not_read_before_the_search_has_ended(sets, tmp_path, monkeypatch):
    read, order = trials.FeatureTrials.score, []
    monkeypatch.setattr(
        trials.FeatureTrials, "score", lambda *a: order.append("search") or read(*a)
    )
    given = sweep_run.TestOnce.open
    monkeypatch.setattr(sweep_run.TestOnce, "open", lambda *a: order.append("test") or given(*a))
    assert main(words(sets, tmp_path / "out", "--arms", "none,smote")) == 0
    assert order == sorted(order) and order.count("test") == 4


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(sets, tmp_path, capsys):
    command = [w for w in words(sets, tmp_path / "out", "--dry-run") if w != "--quiet"]
    assert main(command) == 0
    assert "at most 32 fits" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- known truth --------------------------------------------------------------------------------


def test_an_archive_that_truly_helps_and_a_control_that_truly_hurts_are_found(tmp_path):
    splits = {"train": 1, "val": 8, "test": 25}
    features(tmp_path / "real", (24, 4, 4), dims=16, apart=0.5, splits=splits)
    many = {"train": 10}
    features(tmp_path / "archive", (20, 20, 20), seed=5, dims=16, apart=0.5, splits=many)
    more = ("--synthetic", f"{tmp_path}/archive", "--arms", "none,archive,shuffled")
    more += ("--ratios", "8", "--trials", "2", "--seeds", "3", "--steps", "60")
    out = tmp_path / "out"
    assert main(words(tmp_path, out, *more)) == 0
    assert said(out) == {"none": "baseline", "archive": "helped", "shuffled": "hurt"}
    found = {a["arm"]: a["differences"]["balanced_accuracy"] for a in summary(out)["arms"]}
    assert found["archive"]["low"] > 0 > found["shuffled"]["high"]
    text = next(line for line in summary(out)["verdict"] if line.startswith("archive"))
    assert "archive helped: +" in text and "at 97.50%" in text


def test_a_null_arm_is_not_said_to_help(sets, tmp_path):
    """SMOTE with nothing to add is the baseline itself."""
    assert main(words(sets, tmp_path / "out", "--arms", "none,smote", "--ratios", "0")) == 0
    assert said(tmp_path / "out")["smote"] == "did not help"


# --- resume -------------------------------------------------------------------------------------


def test_a_stopped_sweep_goes_on_to_the_same_bytes_and_repeats_no_trial(
    sets, tmp_path, monkeypatch
):
    command = ("--arms", "none,smote")
    assert main(words(sets, tmp_path / "whole", *command)) == 0
    done = []
    add = sweep_run.Journal.add

    def stopping(self, cell, record):
        add(self, cell, record)
        done.append((cell.arm, record.number))
        if len(done) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(sweep_run.Journal, "add", stopping)
    assert main(words(sets, tmp_path / "cut", *command)) == 130
    assert main(words(sets, tmp_path / "cut", *command)) == 0
    assert len(done) == len(set(done)) == 6
    assert tree_sha256(tmp_path / "cut") == tree_sha256(tmp_path / "whole")


def test_a_stop_between_the_marker_and_the_predictions_goes_on(sets, tmp_path, monkeypatch):
    predict = trials.FeatureTrials.predict
    calls = []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predict(*arguments)

    monkeypatch.setattr(trials.FeatureTrials, "predict", stopping)
    command = words(sets, tmp_path / "out", "--arms", "none,smote")
    assert main(command) == 130
    assert len(list((tmp_path / "out/touched").rglob("*.json"))) == 2
    assert len(list((tmp_path / "out/predictions").rglob("*"))) == 2
    assert main(command) == 0


def test_weights_changed_after_the_test_split_was_touched_are_refused(sets, tmp_path, capsys):
    out = tmp_path / "out"
    command = words(sets, out, "--arms", "none,smote")
    assert main(command) == 0
    (out / "summary.json").unlink()
    (out / "predictions/smote-1/0.safetensors").unlink()
    other = (out / "weights/smote-1/1.safetensors").read_bytes()
    (out / "weights/smote-1/0.safetensors").write_bytes(other)
    assert main(command) == 3
    assert "touched the test split already, with other weights" in capsys.readouterr().err


@pytest.mark.chaos
def test_a_sweep_killed_at_random_moments_ends_with_the_same_bytes(sets, tmp_path):
    whole = tmp_path / "whole"
    assert sweep_runs.make(whole, str(sets)) == 0
    wanted = tree_sha256(whole)
    with Killer(sweep_runs.make) as killer:
        cost = killer.kill_at_random(
            tmp_path,
            chaos_budget.trials(10, 20),
            check=lambda folder: None,
            done=lambda folder: _same(tree_sha256(folder), wanted),
            units="trials/*/*.json*",
            sets=str(sets),
        )
    outcomes.record(
        part="sweep",
        fault="kill -9 at a random instant",
        trials=cost.kills,
        lost=cost.lost,
        unit="trials",
        recovered_s=cost.recovered_s,
        wrong=0,
    )


def _same(found, wanted):
    assert found == wanted


# --- what is refused ----------------------------------------------------------------------------


def refused(tmp_path, capsys, *more, code=3):
    assert main(words(tmp_path, tmp_path / "out", *more)) == code
    return capsys.readouterr().err


@pytest.mark.parametrize("split", ["val", "test"])
def test_features_of_a_network_that_saw_a_held_out_patient_are_refused(tmp_path, capsys, split):
    features(tmp_path / "real", (6, 4, 4), seen=[saw(f"real-{split}-p1")])
    error = refused(tmp_path, capsys)
    assert "MR-D092" in error and f"real-{split}-p1" in error


def test_features_of_a_network_that_saw_training_patients_alone_pass(tmp_path):
    seen = [saw("real-train-p1", label="common"), saw("of another set", label="rare")]
    features(tmp_path / "real", (6, 4, 4), seen=seen)
    assert main(words(tmp_path, tmp_path / "out", "--arms", "none", "--trials", "1")) == 0


def test_an_archive_that_saw_a_test_patient_is_refused(tmp_path, capsys):
    features(tmp_path / "real", (6, 4, 4))
    seen = [saw("real-test-p0")]
    features(tmp_path / "archive", (6, 4, 4), splits={"train": 1}, seen=seen)
    error = refused(tmp_path, capsys, "--synthetic", f"{tmp_path}/archive")
    assert "real-test-p0" in error and f"{tmp_path}/archive" in error


def test_an_artefact_that_does_not_say_what_it_saw_is_refused(tmp_path, capsys):
    features(tmp_path / "real", (6, 4, 4), seen=None)
    assert "MR-D091" in refused(tmp_path, capsys)


def test_a_label_outside_the_fraction_is_refused_and_without_the_label_it_passes(tmp_path, capsys):
    patients = {f"real-train-p{n}": [CLASSES[0 if n < 3 else 1 if n < 5 else 2]] for n in range(7)}
    inside = in_fraction(patients, 0.3, 0)
    outside = sorted(set(patients) - inside)[0]
    cases = {"in": (sorted(inside)[0], "common"), "out": (outside, "common"), "un": (outside, None)}
    codes = {}
    for name, (patient, label) in cases.items():
        features(tmp_path / name / "real", (6, 4, 4), seen=[saw(patient, label=label)])
        more = ("--fractions", "0.3", "1", "--arms", "none", "--trials", "1")
        codes[name] = main(words(tmp_path / name, tmp_path / f"{name}-out", *more))
    assert codes == {"in": 0, "out": 3, "un": 0}
    assert "1 sample(s) outside the fraction" in capsys.readouterr().err


def test_one_class_only_is_refused(tmp_path, capsys):
    features(tmp_path / "real", (6, 0, 0))
    assert "one class only (common)" in refused(tmp_path, capsys)


def test_a_class_absent_from_a_split_is_said_and_the_others_are_judged(tmp_path, capsys):
    features(tmp_path / "real", (8, 4, 4), left_out={"test": "rarest"})
    assert main(words(tmp_path, tmp_path / "out", "--arms", "none", "--trials", "1")) == 0
    assert "no row to test on has rarest" in capsys.readouterr().err
    (arm,) = summary(tmp_path / "out")["arms"]
    assert "recall rarest" not in arm["figures"] and "recall rare" in arm["figures"]


def test_a_class_with_one_patient_is_said_or_with_folds_refused(tmp_path, capsys):
    features(tmp_path / "real", (8, 4, 2), splits={"train": 1, "val": 1, "test": 1})
    command = words(tmp_path, tmp_path / "out", "--arms", "none,smote", "--trials", "1")
    assert main(command) == 0
    features(tmp_path / "one/real", (8, 4, 2), splits={"train": 1})
    assert "class rarest has one patient" in refused(tmp_path / "one", capsys, "--folds", "2")


def test_features_that_are_not_finite_are_refused(tmp_path, capsys):
    rows = np.zeros((4, 3), np.float32)
    rows[2, 1] = np.nan
    make_features(tmp_path / "real", rows_of(rows, ["normal", "virus"] * 2))
    assert "MR-D404" in refused(tmp_path, capsys)


def test_an_archive_of_another_network_is_refused_naming_both(tmp_path, capsys):
    features(tmp_path / "real", (6, 4, 4))
    features(tmp_path / "archive", (6, 4, 4), splits={"train": 1}, network="cd" * 32)
    error = refused(tmp_path, capsys, "--synthetic", f"{tmp_path}/archive")
    assert "MR-D417" in error and "cdcd" in error and "abab" in error


@pytest.mark.parametrize(
    "more, text",
    [
        (("--ratios", "-1"), "0 or more"),
        (("--arms", "none,magic"), "no arm 'magic'"),
        (("--arms", "archive"), "needs an archive"),
        (("--fractions", "0"), "above 0"),
        (("--trials", "25"), "24"),
        (("--folds", "1"), "at least 2"),
        (("--data", "somewhere"), "two sweeps"),
        (("--classes", "common,unicorn"), "no training sample has unicorn"),
    ],
)
def test_mistakes_are_named_with_exit_code_2(sets, tmp_path, capsys, more, text):
    assert main(words(sets, tmp_path / "out", *more)) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("error", [Stopped("asked to"), OSError(errno.ENOSPC, "no space")])
def test_what_passes_in_a_last_fit_fails_no_arm_and_the_same_command_goes_on(
    sets, tmp_path, monkeypatch, error
):
    command, fit = ("--arms", "none,smote"), trials.FeatureTrials.fit
    assert main(words(sets, tmp_path / "whole", *command)) == 0

    def refused(self, cell, settings, seed):
        if (cell.arm, seed) == ("smote", 1):
            raise error
        return fit(self, cell, settings, seed)

    monkeypatch.setattr(trials.FeatureTrials, "fit", refused)
    assert main(words(sets, tmp_path / "cut", *command)) == (75 if type(error) is Stopped else 4)
    monkeypatch.setattr(trials.FeatureTrials, "fit", fit)
    assert main(words(sets, tmp_path / "cut", *command)) == 0
    assert tree_sha256(tmp_path / "cut") == tree_sha256(tmp_path / "whole")


# --- a trial that crashes -----------------------------------------------------------------------


def test_an_arm_whose_trials_crash_is_not_measured_and_the_others_are(
    sets, tmp_path, monkeypatch, capsys
):
    score = trials.FeatureTrials.score

    def broken(self, cell, settings, step):
        if cell.arm == "smote":
            raise RuntimeError("planted")
        return score(self, cell, settings, step)

    monkeypatch.setattr(trials.FeatureTrials, "score", broken)
    out = tmp_path / "out"
    assert main(words(sets, out, "--arms", "none,smote,class-weights")) == 0
    assert set(said(out)) == {"none", "class-weights"}
    assert any("smote" in line and "not measured" in line for line in summary(out)["verdict"])
    assert "RuntimeError: planted" in (out / "report.html").read_text()


# --- folds, fractions, phantoms -----------------------------------------------------------------


def test_outer_folds_test_each_patient_once_and_no_search_sees_its_test_patients(
    tmp_path, monkeypatch
):
    features(tmp_path / "real", (8, 6, 4), splits={"train": 2, "val": 1, "test": 1})
    searched = {}
    fit = trials.FeatureTrials.fit

    def spy(self, cell, settings, seed):
        searched[cell.fold] = set(self.data[cell.fraction, cell.fold].rows.patients)
        return fit(self, cell, settings, seed)

    monkeypatch.setattr(trials.FeatureTrials, "fit", spy)
    out = tmp_path / "out"
    more = ("--folds", "3", "--inner", "2", "--trials", "1", "--arms", "none,smote")
    assert main(words(tmp_path, out, *more, "--unit", "patient")) == 0
    tested = {}
    for fold in range(3):
        truth = json.loads((out / f"truth/fold{fold}.json").read_text())
        tested[fold] = truth["patients"]
        assert sorted(tested[fold]) == (out / f"folds/test-{fold}.txt").read_text().split()
        assert not searched[fold] & set(tested[fold])
    everyone = [patient for patients in tested.values() for patient in patients]
    assert len(everyone) == len(set(everyone)) == 4 * 9


def test_with_folds_features_that_saw_test_patients_need_a_set_for_each_fold(tmp_path, capsys):
    everyone = [saw(f"real-{split}-p{n}") for split in ("train", "val", "test") for n in range(8)]
    features(tmp_path / "real", (6, 6, 4), seen=everyone)
    more = ("--folds", "2", "--arms", "none", "--trials", "1")
    assert "held out" in refused(tmp_path, capsys, *more)
    features(tmp_path / "each-0" / "real", (6, 6, 4), seen=[])
    features(tmp_path / "each-1" / "real", (6, 6, 4), seen=[])
    command = words(tmp_path, tmp_path / "folds", *more)
    command[1] = f"{tmp_path}/each-{{fold}}/real"
    assert main(command) == 0


def test_fractions_are_searches_of_their_own(sets, tmp_path):
    out = tmp_path / "out"
    more = ("--fractions", "0.5", "1", "--arms", "none,class-weights", "--trials", "1")
    assert main(words(sets, out, *more)) == 0
    assert summary(out)["comparisons"] == 2
    assert [line[:6] for line in summary(out)["verdict"]] == ["at 50%", "at 100"]
    assert (out / "trials/none-0.5").is_dir() and set(said(out, 0.5)) == {"none", "class-weights"}


def test_phantoms_need_no_data(tmp_path):
    small = [w for w in words(tmp_path, tmp_path / "out") if "real" not in w][1:]
    more = ("--phantoms", "brain", "--phantom-images", "120", "--cache-dir", str(tmp_path / "c"))
    assert main([*small, *more, "--arms", "none,smote", "--trials", "1"]) == 0
    assert set(said(tmp_path / "out")) == {"none", "smote"}


# --- images -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, seed, count in (("real", 0, 90), ("archive", 1, 60)):
        made = list(phantoms.dataset("brain", seed, count, 16))
        classes = phantoms.CLASSES["brain"]
        url = folder / name
        shards.write_set(url, made, name=name, classes=classes, size_px=16, encoding="raw")
    lineage.write(Store(folder / "archive"), lineage.Lineage())
    return folder


def of_images(images, out, *more):
    small = ("--size-px", "16", "--model-width", "8", "--total-images", "64", "--batch", "16")
    given = ("--data", f"{images}/real", "--synthetic", f"{images}/archive", "--out", f"{out}")
    return [*given, *SMALL, "--trials", "1", "--seeds", "1", *small, *more]


def test_a_sweep_on_images_compares_archive_and_pre_training(images, tmp_path):
    out = tmp_path / "out"
    assert main(of_images(images, out, "--arms", "none,archive,pretrain")) == 0
    assert set(said(out)) == {"none", "archive", "pretrain"}
    assert len(list((out / "touched").rglob("*.json"))) == 3


def test_images_shrunk_to_pixels_take_every_arm_in_seconds(images, tmp_path):
    more = ("--pixels", "4", "--arms", "none,smote,archive", "--folds", "2", "--inner", "2")
    assert main(of_images(images, tmp_path / "out", *more)) == 0
    assert set(said(tmp_path / "out")) == {"none", "smote", "archive"}


@pytest.mark.parametrize("split", ["val", "test"])
def test_an_archive_of_images_that_saw_a_held_out_patient_is_refused(
    images, tmp_path, capsys, split
):
    patient = next(f.patient for f in Roster([Source(f"{images}/real")], split).facts if f.patient)
    shutil.copytree(images, tmp_path / "sets")
    lineage.write(Store(tmp_path / "sets/archive"), lineage.Lineage([saw(patient)]))
    assert main(of_images(tmp_path / "sets", tmp_path / "out")) == 3
    assert patient in capsys.readouterr().err


def test_images_have_no_outer_folds(images, tmp_path, capsys):
    assert main(of_images(images, tmp_path / "out", "--folds", "3")) == 2
    assert "--pixels" in capsys.readouterr().err
