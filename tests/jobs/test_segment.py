"""jobs/segment.py end to end on small sets: what it leaves, what it refuses, kills, leaks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs import segment
from jobs._segment_report import chosen, outline
from medray import lineage, log
from medray.images import decode_png
from medray.metrics import overlap
from medray.models.segmenter import load_segmenter
from medray.records import Sample
from medray.shards import write_set
from medray.train.segmenter import SegmenterTraining
from medray.train.segmenter_validation import Judged
from tests.faults.kill import tree_sha256
from tests.faults.killer import Killer
from tests.jobs.folders import summary

SMALL = (
    *("--size-px", "32", "--width", "2", "--batch", "8", "--total-images", "48", "--lr", "0.03"),
    *("--snapshot-images", "16", "--backend", "local", "--threads-per-worker", "1"),
    *("--ema-half-life-images", "16", "--interval-draws", "40"),
)


pytestmark = pytest.mark.usefixtures("own_cache")


def samples(split: str, count: int, *, masks: bool = True, px: int = 32) -> Iterator[Sample]:
    """Noise with a bright square, which is the mask; each fourth has an empty one; three a
    patient."""
    for number in range(count):
        generator = np.random.default_rng(number)
        mask = np.zeros((px, px), np.uint8)
        if number % 4:
            mask[number % 7 + 4 : number % 7 + 16, 10:22] = 255
        pixels = generator.integers(0, 80, (px, px)) + 120 * (mask > 0)
        yield Sample(
            key=f"{split}{number}",
            image=pixels.astype(np.uint8),
            label=("low", "high")[number // 3 % 2],
            patient=f"{split}-p{number // 3}",
            split=split,
            mask=mask if masks else None,
        )


def made(url: Path, *parts: Iterator[Sample], px: int = 32) -> str:
    chained = itertools.chain(*parts)
    write_set(url, chained, name="made", classes=("low", "high"), size_px=px, samples_per_shard=30)
    return str(url)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return made(tmp_path / "set", samples("train", 36), samples("val", 12))


def run(folder: Path, *more: str) -> int:
    code = segment.main([*SMALL, "--run-dir", str(folder), "--json", *more])
    log.setup()
    return code


def test_a_run_leaves_a_model_that_does_what_its_summary_says(tmp_path: Path) -> None:
    data = made(tmp_path / "set", samples("train", 36), samples("val", 12), samples("test", 9))
    flags = ("--data", data, "--evaluate-split", "test", "--total-images", "320", "--width", "4")
    flags = (*flags, "--snapshot-images", "160")
    assert run(tmp_path / "run", *flags) == 0
    found = summary(tmp_path / "run")
    assert (found["validation"]["patients"], found["test"]["patients"]) == (4, 3)
    assert found["train"]["samples"] == 36 and found["train"]["patients"] == 12
    dice = found["validation"]["dice"]
    assert dice["low"] <= dice["estimate"] <= dice["high"] and dice["estimate"] > 0.6
    assert found["best_score"] == pytest.approx(1 - dice["estimate"])
    model, about = load_segmenter(str(tmp_path / "run"))
    assert about["segmenter_sha256"] == found["segmenter_sha256"]
    sample = next(itertools.islice(samples("new", 9), 5, None))
    logits = model(torch.from_numpy(sample.image)[None, None] / 127.5 - 1)
    one = overlap.of_masks((logits[:, 0] > 0).numpy(), (sample.mask > 0)[None])  # type: ignore[operator]
    assert one.dice()[0] > 0.6
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Figures on test" in page and page.count("data:image/png") == 2
    assert (
        "truth cyan" in page
        and "mean over 3 patients" in (tmp_path / "run" / "model" / "README.md").read_text()
    )
    sheet = decode_png((tmp_path / "run" / "overlays.png").read_bytes())
    assert sheet.ndim == 3 and (sheet == (0, 220, 255)).all(2).any()
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["images"] for r in rows if "snapshot/dice" in r] == [0, 160, 320]
    assert run(tmp_path / "run", *flags, "--resume") == 0


def test_what_the_weights_saw_stands_beside_them_and_is_handed_on(
    tmp_path: Path, data: str
) -> None:
    phantoms = ("--phantom-images", "30", "--total-images", "8")
    assert run(tmp_path / "first", *phantoms) == 0
    warm = ("--data", data, "--init-from", str(tmp_path / "first"), "--total-images", "8")
    assert run(tmp_path / "second", *warm, "--lr", "1e-9") == 0
    first, second = (lineage.read(str(tmp_path / name)) for name in ("first", "second"))
    assert first is not None and second is not None and len(first) > 20
    own = {saw.patient for saw in second.entries} - first.patients
    assert own == {f"train-p{n}" for n in range(12)} | {f"val-p{n}" for n in range(4)}
    assert first.patients <= second.patients
    assert {saw.split for saw in second.entries if saw.patient in own} == {"train", "val"}
    weights = [load_segmenter(str(tmp_path / name))[0] for name in ("first", "second")]
    same = zip(*(w.parameters() for w in weights), strict=True)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in same)
    assert run(tmp_path / "third", *warm, "--width", "3") == 2


def test_patients_left_out_are_neither_trained_on_nor_validated_on(
    tmp_path: Path, data: str
) -> None:
    (tmp_path / "out.txt").write_text("train-p3\n# a comment\nval-p0\n")
    out = ("--data", data, "--exclude-patients", str(tmp_path / "out.txt"))
    assert run(tmp_path / "run", *out, "--total-images", "8") == 0
    saw = lineage.read(str(tmp_path / "run"))
    assert saw is not None and len(saw.patients) == 16 - 2
    assert not saw.patients & {"train-p3", "val-p0"}
    every = ("train-p" + "\ntrain-p".join(map(str, range(12)))).splitlines()
    (tmp_path / "out.txt").write_text("\n".join(every))
    assert run(tmp_path / "none", *out) == 3


def test_fractions_are_nested_and_of_every_class(tmp_path: Path, data: str) -> None:
    patients = []
    for share in ("0.25", "0.5"):
        flags = ("--data", data, "--fraction", share, "--total-images", "8")
        assert run(tmp_path / share, *flags) == 0
        saw = lineage.read(str(tmp_path / share))
        assert saw is not None
        patients.append({s.patient for s in saw.entries if s.split == "train"})
    assert patients[0] < patients[1] and (len(patients[0]), len(patients[1])) in {(4, 6), (2, 6)}
    # Patients of even number are low, of odd number high.
    assert {int(name[7:]) % 2 for name in patients[0]} == {0, 1}


def test_a_share_of_the_training_patients_may_validate(tmp_path: Path, data: str) -> None:
    flags = ("--data", data, "--validation-patients", "0.3", "--total-images", "8")
    assert run(tmp_path / "run", *flags) == 0
    found = summary(tmp_path / "run")
    assert found["train"]["patients"] + found["validation"]["patients"] == 12
    saw = lineage.read(str(tmp_path / "run"))
    assert saw is not None and all(name.startswith("train") for name in saw.patients)


def test_samples_without_a_mask_are_left_out_and_told(tmp_path: Path) -> None:
    bare = (
        Sample(**{**{n: getattr(s, n) for n in Sample.__slots__}, "key": f"x{s.key}"})
        for s in samples("train", 6, masks=False)
    )
    data = made(tmp_path / "set", samples("train", 24), bare, samples("val", 6))
    assert run(tmp_path / "run", "--data", data, "--total-images", "8") == 0
    found = summary(tmp_path / "run")["train"]
    assert (found["samples"], found["left_out"]["without a mask"]) == (24, 6)


def test_one_patient_validates_without_an_interval_and_that_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made(tmp_path / "set", samples("train", 24), samples("val", 3))
    assert run(tmp_path / "run", "--data", data, "--total-images", "8") == 0
    assert "one patient validates" in capsys.readouterr().err
    assert summary(tmp_path / "run")["validation"]["dice"]["low"] is None


# --- pictures -------------------------------------------------------------------------------------


def test_an_outline_is_the_edge_of_a_mask_and_of_the_image() -> None:
    mask = np.zeros((6, 7), bool)
    mask[0:4, 1:5] = True
    wanted = mask.copy()
    wanted[1:3, 2:4] = False
    assert (outline(mask) == wanted).all() and not outline(np.zeros((3, 3), bool)).any()


def test_overlays_are_the_worst_the_median_the_best_and_false_alarms() -> None:
    true = np.arange(1, 41) * (np.arange(40) >= 4)
    both = np.where(np.arange(40) >= 4, np.arange(40) // 2, 0)
    said = np.where(np.arange(40) < 3, np.arange(40) % 3, both)
    counts = overlap.Overlap(*(np.asarray(c, np.int64) for c in (both, said, true)))
    rows = chosen(Judged(counts, np.array([str(n) for n in range(40)]), True))
    dice = counts.dice()
    assert list(rows) == ["worst", "median", "best", "largest false alarms"]
    assert dice[rows["worst"]].max() <= dice[rows["median"]].min()
    assert dice[rows["median"]].max() <= dice[rows["best"]].min()
    assert rows["largest false alarms"] == [2, 1] and len(rows["worst"]) == 8


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bare", ["train", "val"])
def test_a_set_without_masks_ends_with_exit_3_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bare: str
) -> None:
    data = made(tmp_path / "set", *(samples(s, 9, masks=s != bare) for s in ("train", "val")))
    assert run(tmp_path / "run", "--data", data) == 3
    told = capsys.readouterr().err
    assert f"no sample of split '{bare}' has a mask" in told and data in told
    assert "--box-columns" in told and not (tmp_path / "run" / "DONE").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--size-px", "40"), "16"),
        (("--split", "holdout"), "train"),
        (("--batch", "9", "--workers", "2"), "not a multiple of workers"),
        (("--split", "val"), "need a split each"),
        (("--fraction", "0"), "fraction"),
        (("--phantoms", "chest"), "brain"),
        (("--exclude-patients", "/nowhere/at/all.txt"), "cannot be read"),
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
    begin = SegmenterTraining.__init__

    def poisoned(self: SegmenterTraining, *arguments: Any) -> None:
        begin(self, *arguments)
        loss = self.loss
        self.loss = lambda logits, masks: loss(logits, masks) * float("nan")  # type: ignore[assignment]

    monkeypatch.setattr(SegmenterTraining, "__init__", poisoned)
    assert run(tmp_path / "run", "--data", data) == 1
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "DONE").exists()


def test_a_dry_run_says_what_it_would_train_on_and_writes_no_run(
    tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", "--data", data, "--dry-run") == 0
    told = capsys.readouterr().err
    assert "36 images with masks of 12 patients to train on" in told and "parameters" in told
    assert not (tmp_path / "run").exists()


def results(folder: Path) -> dict[str, str]:
    """What must not depend on stops and kills; a checkpoint's manifest tells its start."""
    tops = ("checkpoints/", "model/", "overlays", "DONE")
    found = tree_sha256(folder, lambda name: name.startswith(tops))
    return {name: digest for name, digest in found.items() if not name.endswith("manifest.json")}


def test_stopped_between_checkpoints_and_resumed_it_leaves_the_same_bytes(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path / "whole", "--data", data) == 0
    step = SegmenterTraining.step

    def stops(self: SegmenterTraining, batch: Any, images: int) -> dict[str, torch.Tensor]:
        if images == 24:
            raise RuntimeError("the power is cut")
        return step(self, batch, images)

    with monkeypatch.context() as patch:
        patch.setattr(SegmenterTraining, "step", stops)
        assert run(tmp_path / "run", "--data", data) == 1
    assert run(tmp_path / "run", "--data", data, "--resume") == 0
    assert summary(tmp_path / "run")["resumed_at_images"] == 16
    whole = results(tmp_path / "whole")
    assert {"model/segmenter.safetensors", "model/seen.json", "overlays.png"} <= set(whole)
    assert results(tmp_path / "run") == whole
    # The same but for the seed is another run.
    assert run(tmp_path / "run", "--data", data, "--resume", "--seed", "1") == 2


def once(folder: Path) -> int:
    """A run to be killed; the same call starts and goes on."""
    flags = ("--phantom-images", "40", "--checkpoint-images", "8", "-q", "--resume")
    return segment.main([*SMALL, *flags, "--run-dir", str(folder)])


@pytest.mark.chaos
def test_killed_anywhere_and_run_again_it_leaves_the_same_bytes(tmp_path: Path) -> None:
    with Killer(once) as killer:
        code, _ = killer.run(tmp_path / "clean")
        assert code == 0
        whole = results(tmp_path / "clean")

        def same(folder: Path) -> None:
            assert results(folder) == whole

        killer.kill_at_random(tmp_path, 6, check=lambda folder: None, done=same)
