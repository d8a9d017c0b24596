"""jobs/classify.py --clips end to end on small sets: what it leaves, what it refuses, kills."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import classify
from medray import lineage, log
from medray.models.clips import load_clips
from medray.models.encoder import Encoder, EncoderConfig, load_encoder, save_encoder
from medray.models.pixels import to_unit
from medray.store import Store
from medray.stream.clips import ClipSet, spread
from medray.train.classifier import LabelledTraining
from tests.faults.kill import tree_sha256
from tests.jobs.clip_runs import FINDINGS, clips, made, run
from tests.jobs.folders import summary

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def data(tmp_path: Path) -> str:
    return made(tmp_path / "set", *(clips(s, n) for s, n in (("train", 36), ("val", 24))))


def encoder(url: Path, saw: lineage.Lineage | None, channels: int = 1) -> str:
    """An encoder of random weights that says it saw something."""
    store = Store(url).child("model")
    network = Encoder(EncoderConfig(channels, 8)).seed_weights(4)
    save_encoder(store, network, {}, "card")
    if saw is not None:
        lineage.write(store, saw)
    return str(url)


def test_a_frozen_encoder_is_enough_to_see_bright_squares(tmp_path: Path) -> None:
    splits = (("train", 36), ("val", 24), ("test", 24))
    data = made(tmp_path / "set", *(clips(s, n) for s, n in splits))
    more = ("--data", data, "--encoder", "random", "--freeze", "--evaluate-split", "test")
    assert run(tmp_path / "run", *more) == 0
    found = summary(tmp_path / "run")
    assert found["labels"] == "many" and found["classes"] == sorted(FINDINGS)
    test = found["test"]
    assert test["classes"]["left"]["auroc"]["estimate"] > 0.9
    assert test["classes"]["right"]["auroc"]["estimate"] > 0.9
    assert test["rarest"]["name"] == "rare" and test["rarest"]["positives"] == 2
    assert {"recall", "specificity", "f1"} <= set(test["rarest"])
    macro = test["macro_auroc"]
    each = [test["classes"][name]["auroc"]["estimate"] for name in FINDINGS]
    assert macro["estimate"] == pytest.approx(np.mean(each))
    assert len(found["calibration"]["thresholds"]) == 3
    page = (tmp_path / "run" / "report.html").read_text()
    assert "rarest: rare" in page and "What share of a clip each frame is" in page
    model, about = load_clips(str(tmp_path / "run"))
    assert about["clips_sha256"] == found["clips_sha256"]
    # What is saved is whole: clips go in, and it says what the run's validation said.
    clip = ClipSet.open(data).read("val-00000001").frames_THW
    picked = clip[spread(len(clip), model.frames)]
    assert model(to_unit(torch.from_numpy(picked[None]))).shape == (1, 3)
    trunk = load_encoder(str(tmp_path / "run"))
    first = Encoder(EncoderConfig(1, 8)).seed_weights(0)
    images = torch.zeros(1, 1, 32, 32)
    assert torch.equal(trunk(images), first(images).detach()), "a frozen encoder has moved"
    saw = lineage.read(str(tmp_path / "run"))
    assert saw is not None and {e.split for e in saw.entries} == {"train", "val"}


@pytest.mark.parametrize("pool", ["attention", "convlstm", "mean"])
def test_fine_tuning_moves_the_encoder(tmp_path: Path, data: str, pool: str) -> None:
    begin = encoder(tmp_path / "encoder", lineage.Lineage())
    more = ("--data", data, "--encoder", begin, "--pool", pool, "--total-images", "96")
    more += ("--snapshot-images", "48", "--lr", "0.002")
    assert run(tmp_path / "run", *more) == 0
    images = torch.zeros(1, 1, 32, 32)
    moved = load_encoder(str(tmp_path / "run"))(images) - load_encoder(begin)(images)
    assert float(moved.abs().max()) > 1e-6
    found = summary(tmp_path / "run")
    assert (found["pool"], found["freeze"], found["images"]) == (pool, False, 96)


def test_a_classifier_of_images_leaves_an_encoder_that_clips_begin_with(
    tmp_path: Path, data: str
) -> None:
    small = ("--phantoms", "brain", "--phantom-images", "40", "--size-px", "32", "--width", "8")
    small += ("--batch", "8", "--total-images", "24", "--backend", "local", "-q")
    small += ("--interval-draws", "20", "--encoder", "random", "--run-dir", str(tmp_path / "one"))
    assert classify.main([*small, "--threads-per-worker", "1"]) == 0
    log.setup()
    assert summary(tmp_path / "one")["architecture"] == "encoder"
    trunk = load_encoder(str(tmp_path / "one"))
    assert trunk.config == EncoderConfig(1, 8)
    more = ("--data", data, "--encoder", str(tmp_path / "one"), "--freeze")
    assert run(tmp_path / "two", *more) == 0
    images = torch.zeros(1, 1, 32, 32)
    assert torch.equal(load_encoder(str(tmp_path / "two"))(images), trunk(images))
    saw = lineage.read(str(tmp_path / "two"))
    assert saw is not None and len(saw) > 60, "what the encoder saw is handed on"


# --- labels ---------------------------------------------------------------------------------------


def test_a_finding_that_is_never_known_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [clips(s, n, unknown={"rare": None}) for s, n in (("train", 24), ("val", 12))]
    data = made(tmp_path / "set", *parts)
    more = ("--data", data, "--encoder", "random", "--freeze", "--total-images", "80")
    assert run(tmp_path / "run", *more) == 0
    assert "no clip to train on says whether rare: left out" in capsys.readouterr().err
    assert summary(tmp_path / "run")["classes"] == ["left", "right"]


def test_a_finding_with_one_class_in_validation_has_no_auc_and_not_zero(tmp_path: Path) -> None:
    data = made(tmp_path / "set", clips("train", 24), clips("val", 12, unknown={"left": 0}))
    more = ("--data", data, "--encoder", "random", "--freeze", "--total-images", "80")
    assert run(tmp_path / "run", *more) == 0
    found = summary(tmp_path / "run")["validation"]
    assert found["classes"]["left"]["auroc"] is None and found["classes"]["left"]["f1"] is None
    assert found["classes"]["right"]["auroc"] is not None
    each = [found["classes"][name]["auroc"]["estimate"] for name in ("right", "rare")]
    assert found["macro_auroc"]["estimate"] == pytest.approx(np.mean(each))
    assert "undefined" in (tmp_path / "run" / "report.html").read_text()


def test_clips_of_one_frame_are_taken(tmp_path: Path) -> None:
    parts = [clips(s, n, frames=1) for s, n in (("train", 24), ("val", 12))]
    more = ("--encoder", "random", "--freeze", "--total-images", "160", "--frames", "3")
    assert run(tmp_path / "run", "--data", made(tmp_path / "set", *parts), *more) == 0
    found = summary(tmp_path / "run")["validation"]["classes"]
    assert found["left"]["auroc"]["estimate"] > 0.8


# --- who may be seen ------------------------------------------------------------------------------


def test_an_encoder_that_saw_a_patient_held_out_is_refused(
    tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = ClipSet.open(data)
    more = ("--data", data, "--freeze", "--total-images", "16", "--encoder")
    fine = encoder(tmp_path / "fine", opened.lineage("train", labels=False))
    assert run(tmp_path / "a", *more, fine) == 0
    saw_val = encoder(tmp_path / "leak", opened.lineage("val", labels=False))
    assert run(tmp_path / "b", *more, saw_val) == 3
    assert "held out" in capsys.readouterr().err
    silent = encoder(tmp_path / "silent", None)
    assert run(tmp_path / "c", *more, silent) == 3
    assert "does not say what it saw" in capsys.readouterr().err


def test_labels_outside_the_fraction_are_refused_and_those_of_other_sets_are_not(
    tmp_path: Path, data: str
) -> None:
    opened = ClipSet.open(data)
    other = lineage.Lineage([lineage.Saw("elsewhere/1", "someone", "train", "tumour")])
    more = ("--data", data, "--freeze", "--total-images", "16", "--fraction", "0.5", "--encoder")
    unlabelled = opened.lineage("train", labels=False)
    assert run(tmp_path / "a", *more, encoder(tmp_path / "x", unlabelled | other)) == 0
    labelled = encoder(tmp_path / "y", opened.lineage("train", labels=True))
    assert run(tmp_path / "b", *more, labelled) == 3


def test_patients_left_out_are_neither_trained_on_nor_validated_on(
    tmp_path: Path, data: str
) -> None:
    names = sorted(f.patient for f in ClipSet.open(data).facts("train"))[:9]
    (tmp_path / "out.txt").write_text("\n".join(names))
    more = ("--data", data, "--encoder", "random", "--freeze", "--total-images", "16")
    more += ("--exclude-patients", str(tmp_path / "out.txt"), "--validation-patients", "0.25")
    assert run(tmp_path / "run", *more) == 0
    saw = lineage.read(str(tmp_path / "run"))
    assert saw is not None and not saw.patients & set(names)
    assert summary(tmp_path / "run")["train"]["samples"] < 27


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--encoder", "nowhere"), "holds no encoder"),
        ((), "--clips needs --encoder"),
        (("--encoder", "random", "--pool", "max"), "attention"),
        (("--encoder", "random", "--frames", "0"), "frames"),
        (("--encoder", "random", "--classes", "broken"), "no training sample has broken"),
    ],
)
def test_mistakes_are_told(
    tmp_path: Path, data: str, more: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", "--data", data, *more) == 2
    assert says in capsys.readouterr().err


def test_an_encoder_of_other_channels_is_refused(
    tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = encoder(tmp_path / "colour", lineage.Lineage(), channels=3)
    assert run(tmp_path / "run", "--data", data, "--encoder", url) == 2
    assert "takes 3 channel(s)" in capsys.readouterr().err


def test_a_set_of_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.shard_sets import make_set

    make_set(tmp_path / "images")
    assert run(tmp_path / "run", "--data", str(tmp_path / "images"), "--encoder", "random") == 3
    assert "MR-D034" in capsys.readouterr().err


# --- resume ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", [("--freeze",), ()])
def test_a_run_that_was_cut_ends_with_the_same_bytes(
    tmp_path: Path, data: str, freeze: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--data", data, "--encoder", "random", *freeze, "--total-images", "64")
    more += ("--checkpoint-images", "16", "--resume")
    assert run(tmp_path / "whole", *more) == 0
    step = LabelledTraining.step

    def cut(self: LabelledTraining, batch: object, images: int) -> object:
        if images == 40:
            raise KeyboardInterrupt
        return step(self, batch, images)

    with monkeypatch.context() as patched:
        patched.setattr(LabelledTraining, "step", cut)
        assert run(tmp_path / "cut", *more) == 130
    assert run(tmp_path / "cut", *more) == 0
    kept = ("model/", "attention", "reliability", "DONE")
    one, two = (tree_sha256(tmp_path / n, lambda f: f.startswith(kept)) for n in ("whole", "cut"))
    assert one == two and any(name.endswith("clips.safetensors") for name in one)


def test_a_dry_run_says_how_long_and_writes_nothing(
    tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", "--data", data, "--encoder", "random", "--dry-run") == 0
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert any(line.get("event") == "plan" and line["estimated_s"] > 0 for line in said)
    assert not (tmp_path / "run").exists()


def test_without_data_it_trains_on_phantoms_of_knees(tmp_path: Path) -> None:
    more = ("--encoder", "random", "--freeze", "--phantom-images", "40", "--total-images", "16")
    assert run(tmp_path / "run", *more) == 0
    found = summary(tmp_path / "run")
    assert found["classes"] == ["abnormal", "acl", "meniscus"] and found["train"]["samples"] > 20
