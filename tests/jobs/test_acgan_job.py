"""`jobs/acgan.py` as a person uses it: what it leaves, resume, exit codes, messages."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.acgan import main
from medray import lineage
from medray.images import decode_png
from medray.sample.acgan import ACGAN
from medray.store import Store
from medray.stream.table import read_table
from medray.train.acgan import ACGANTraining
from tests.faults.kill import tree_sha256
from tests.feature_sets import CLASSES, NETWORK, make_features, rows_of, two_gaussians

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    *("--width", "16", "--noise-dims", "4", "--batch", "8", "--total-images", "160"),
    *("--snapshot-images", "80", "--checkpoint-images", "40", "--threads-per-worker", "1", "-q"),
)
SEEN = lineage.Lineage([lineage.Saw("image", "a-patient", "train", "virus")])


def all_rows(count: int = 60, held_out: int = 30, **more):
    train, test = two_gaussians(count), two_gaussians(held_out, seed=1)
    return [*rows_of(*train, per_patient=2, **more), *rows_of(*test, "val", **more)]


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    make_features(folder, all_rows())
    lineage.write(Store(folder), SEEN)
    return folder


def run(features, folder, *more) -> int:
    return main(["--features", f"{features}", "--run-dir", f"{folder}", *SMALL, *more])


@pytest.fixture(scope="module")
def made(features, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    assert run(features, folder) == 0
    return folder


def results(folder: Path) -> dict[str, str]:
    """What must not depend on interruptions."""
    tops = ("checkpoints/", "model/", "pca", "DONE")
    found = tree_sha256(folder, lambda name: name.startswith(tops))
    return {name: digest for name, digest in found.items() if not name.endswith("manifest.json")}


def test_a_run_leaves_a_model_a_curve_pictures_and_a_page(made) -> None:
    summary = json.loads((made / "summary.json").read_text())
    assert summary["counts"] == [30, 30] and summary["classes"] == list(CLASSES)
    assert set(summary["acceptance"]) == set(summary["frechet_of_class"]) == set(CLASSES)
    assert 0 < summary["frechet_real"] and 0 < summary["frechet"]
    rows = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    curve = [row["snapshot/frechet"] for row in rows if "snapshot/frechet" in row]
    assert len(curve) == 3 and all(np.isfinite(curve))
    for name in ("pca.png", "progress.png"):
        assert decode_png((made / name).read_bytes()).std() > 1, name
    page = (made / "report.html").read_text()
    assert page.count("data:image/png;base64") == 2 and "http" not in page.replace("</html>", "")
    assert "ACGAN on features" in (made / "model" / "README.md").read_text()


def test_the_model_samples_features_of_its_network_alone(made, features) -> None:
    table = read_table(features, "train")
    sampler = ACGAN.load(str(made), tag=table.tag)
    rows, labels = sampler.sample(10, 3)
    assert rows.shape == (10, 8) and set(labels) <= set(CLASSES)
    with pytest.raises(ValueError, match=f"makes features of {NETWORK}.*these are of cd"):
        ACGAN.load(str(made), tag=table.tag.replace("ab", "cd"))


def test_what_it_saw_is_its_rows_with_labels_and_what_their_network_saw(made, features) -> None:
    saw = lineage.read(str(made))
    assert saw is not None
    own = {s.sample: s for s in saw.entries}
    assert len(saw) == 61 and own["image"].patient == "a-patient"
    assert own[read_table(features, "train").samples[1]].label == "virus"
    assert not saw.patients & set(read_table(features, "val").patients)


def test_an_interrupted_run_resumes_to_the_same_bytes(made, features, tmp_path, monkeypatch):
    step = ACGANTraining.step

    def stopping(self, batch, images):
        if images == 104:
            raise KeyboardInterrupt
        return step(self, batch, images)

    with monkeypatch.context() as patch:
        patch.setattr(ACGANTraining, "step", stopping)
        assert run(features, tmp_path / "run") == 130
    assert not (tmp_path / "run" / "model").exists()
    assert run(features, tmp_path / "run") == 2
    assert run(features, tmp_path / "run", "--resume") == 0
    assert results(tmp_path / "run") == results(made)


def test_a_step_that_forgot_its_position_would_be_seen(made, features, tmp_path, monkeypatch):
    """The comparison above has teeth."""
    step = ACGANTraining.step
    monkeypatch.setattr(ACGANTraining, "step", lambda self, batch, images: step(self, batch, 0))
    assert run(features, tmp_path / "run") == 0
    assert results(tmp_path / "run") != results(made)


@pytest.mark.chaos
def test_killed_at_a_random_moment_it_ends_with_the_same_bytes(made, features, tmp_path) -> None:
    folder = tmp_path / "run"
    flags = ("--features", f"{features}", "--run-dir", f"{folder}", *SMALL)
    with subprocess.Popen([sys.executable, "-m", "jobs.acgan", *flags], cwd=ROOT) as process:
        for _ in range(3000):
            if list(folder.glob("checkpoints/*/manifest.json")) or process.poll() is not None:
                break
            time.sleep(0.02)
        process.kill()
    assert run(features, folder, "--resume") == 0
    assert results(folder) == results(made)


def test_a_complete_run_is_left_as_it_is(made, features, capsys) -> None:
    before = results(made)
    assert run(features, made, "--resume") == 0
    assert results(made) == before


def test_maps_are_learnt_too(tmp_path) -> None:
    rows = [replace(s, image=s.image.reshape(2, 2, 2)) for s in all_rows()]
    make_features(tmp_path / "maps", rows)
    assert run(tmp_path / "maps", tmp_path / "run", "--form", "map", "--total-images", "80") == 0
    made, _ = ACGAN.load(str(tmp_path / "run")).sample(3, 0)
    assert made.shape == (3, 2, 2, 2)
    assert run(tmp_path / "maps", tmp_path / "other", "--form", "vector") == 2


def test_a_fraction_of_the_patients_and_excluded_ones_are_kept_to(features, tmp_path) -> None:
    short = ("--total-images", "40", "--fraction", "0.3")
    (tmp_path / "out.txt").write_text("train-p0\ntrain-p2\n")
    assert run(features, tmp_path / "run", *short, "--exclude-patients", f"{tmp_path}/out.txt") == 0
    saw = lineage.read(str(tmp_path / "run"))
    assert saw is not None and not saw.patients & {"train-p0", "train-p2"}
    # 28 patients are left; a third of them, two rows each, and what the network saw.
    assert 15 <= len(saw) <= 21


def test_features_that_do_not_say_what_their_network_saw_give_a_model_that_does_not(
    tmp_path, capsys
) -> None:
    make_features(tmp_path / "f", all_rows())
    assert run(tmp_path / "f", tmp_path / "run", "--total-images", "40") == 0
    assert lineage.read(str(tmp_path / "run")) is None
    assert "does not say what it saw" in capsys.readouterr().err


def nan_row(rows):
    image = rows[3].image.copy()
    image[1] = np.nan
    return [replace(s, image=image) if n == 3 else s for n, s in enumerate(rows)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (nan_row, "1 of 8 features are not finite"),
        (lambda rows: [replace(s, label="virus") for s in rows], "one class only (virus 60)"),
        (
            lambda rows: [replace(s, label="virus" if n else "normal") for n, s in enumerate(rows)],
            "fewer than 2 rows (normal 1, virus 59)",
        ),
        (
            lambda rows: [replace(s, image=np.ones(8, np.float32)) for s in rows],
            "all features are constant",
        ),
        (lambda rows: rows[:60], "no shard of split 'val'"),
        (lambda rows: [replace(s, label=None) for s in rows], "no labelled row"),
    ],
)
def test_bad_features_are_exit_3_naming_what_is_wrong(tmp_path, capsys, change, said) -> None:
    make_features(tmp_path / "f", change(all_rows()))
    assert run(tmp_path / "f", tmp_path / "run") == 3
    assert said in capsys.readouterr().err


def test_a_warm_start_takes_weights_of_the_same_features_alone(made, features, tmp_path, capsys):
    assert run(features, tmp_path / "a", "--init-from", f"{made}", "--total-images", "8") == 0
    assert run(features, tmp_path / "b", "--init-from", f"{made}", "--width", "24") == 2
    assert "another network" in capsys.readouterr().err
    make_features(tmp_path / "f", all_rows(network="cd" * 32))
    assert run(tmp_path / "f", tmp_path / "c", "--init-from", f"{made}") == 2
    said = capsys.readouterr().err
    assert NETWORK in said and "cd" * 32 in said


def test_a_dry_run_writes_nothing(features, tmp_path, capsys) -> None:
    flags = ["--features", f"{features}", "--run-dir", f"{tmp_path}/run", *SMALL[:-1], "--dry-run"]
    assert main(flags) == 0
    said = capsys.readouterr().err
    assert "parameters of G" in said and not (tmp_path / "run").exists()
