"""jobs/jigsaw.py end to end on small clips: what it leaves, what it refuses, kills."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import jigsaw
from medray import lineage, log
from medray.models.encoder import load_encoder, load_with_config
from medray.models.jigsaw import Jigsaw
from medray.records import Sample
from medray.shards import write_set
from medray.train.jigsaw import JigsawTraining
from tests.faults.kill import tree_sha256
from tests.faults.killer import Killer
from tests.jobs.folders import summary

PX = 48
ORDERS = ("012345678", "120453786")
SMALL = (
    *("--width", "8", "--batch", "8", "--total-images", "64", "--permutations", "8"),
    *("--snapshot-images", "64", "--checkpoint-images", "16", "--log-images", "16"),
    *("--validation-views", "16", "--probe-frames", "12", "--interval-draws", "40"),
    *("--backend", "local", "--threads-per-worker", "1", "--precision", "fp32"),
)

pytestmark = pytest.mark.usefixtures("own_cache")


def clips(split: str, count: int, *, px: int = PX, blank: bool = False) -> Iterator[Sample]:
    """Ramps of one to four frames, each clip a patient; the second frame of some is blank."""
    y, x = np.mgrid[0:px, 0:px] / px
    for number in range(count):
        generator = np.random.default_rng(number)
        frames = 1 + number % 4
        shown = 180 * (0.35 * y**2 + 0.65 * x) + generator.integers(0, 20, (frames, px, px))
        image = (shown * (not blank)).astype(np.uint8)
        if number % 4 == 1:
            image[1] = 0
        yield Sample(
            key="",
            image=image,
            labels={"odd": number % 2, "never": None},
            patient=f"{split}-p{number}",
            split=split,
            frames=frames,
        )


def made(url: Path, *parts: Iterator[Sample], px: int = PX) -> str:
    every = (sample for part in parts for sample in part)
    write_set(url, every, name="made", classes=("odd", "never"), size_px=px, encoding="raw")
    return str(url)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return made(tmp_path / "set", clips("train", 12), clips("val", 6), clips("test", 6))


def run(folder: Path, *more: str) -> int:
    code = jigsaw.main([*SMALL, "--run-dir", str(folder), "--json", *more])
    log.setup()
    return code


def test_a_run_leaves_an_encoder_that_says_what_it_saw_without_labels(
    tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", "--data", data, "--evaluate-split", "test") == 0
    found = summary(tmp_path / "run")
    # 12 clips of 1 to 4 frames are 30, of which 3 are blank; 6 to validate are 13 less 2.
    assert found["train"] == {"frames": 27, "clips": 12, "patients": 12, "blank": 3}
    assert "27 frames of 12 clips of 12 patients to train on, 11 of 6" in capsys.readouterr().err
    assert found["chance"] == 1 / 8 and found["least_distance"] >= 7
    assert 0 <= found["validation"]["accuracy"]["estimate"] <= 1
    assert found["test"]["patients"] == 6 and 0 <= found["data_wait_share"] <= 1
    assert set(found["probe"]["trained"]) == {"odd"} == set(found["probe"]["at_start"])
    encoder, about = load_with_config(str(tmp_path / "run"))
    assert about["encoder_sha256"] == found["sha256"] and about["form"] == "compact"
    assert len(about["permutations"]) == 8
    assert encoder(torch.zeros(2, 1, PX, PX)).shape == (2, encoder.dims)
    saw = lineage.read(str(tmp_path / "run"))
    assert saw is not None and {entry.label for entry in saw.entries} == {None}
    wanted = {f"train-p{n}" for n in range(12)} | {f"val-p{n}" for n in range(6)}
    assert saw.patients == wanted, "the test split is judged and moves nothing"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Pretext on test" in page and page.count("data:image/png") == 2
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["images"] for r in rows if "snapshot/accuracy" in r] == [0, 64]
    shares = [r["perf/data_wait_share"] for r in rows if "perf/data_wait_share" in r]
    assert all(0 <= share <= 1 for share in shares)
    # Steps of a few milliseconds: any one of them may have to wait, the first for a start.
    assert statistics.median(shares[1:]) < 0.5


def test_images_are_taken_as_clips_of_one_frame_and_patients_are_left_out(tmp_path: Path) -> None:
    images = [
        Sample(key="", image=clip.image[0], label="odd", patient=clip.patient, split="train")
        for clip in clips("train", 10)
    ]
    write_set(tmp_path / "set", images, name="made", classes=("odd",), size_px=PX)
    (tmp_path / "out.txt").write_text("train-p0\ntrain-p3\n")
    flags = ("--exclude-patients", str(tmp_path / "out.txt"), "--validation-patients", "0.25")
    assert run(tmp_path / "run", "--data", str(tmp_path / "set"), *flags) == 0
    found = summary(tmp_path / "run")
    assert found["train"]["patients"] == 6 and found["validation"]["patients"] == 2
    saw = lineage.read(str(tmp_path / "run"))
    assert saw is not None and saw.patients == {f"train-p{n}" for n in (1, 2, 4, 5, 6, 7, 8, 9)}


@pytest.mark.parametrize(
    ("px", "blank", "says"),
    [
        (PX, True, "none of 30 frames shows anything"),
        (23, False, "frames of 23 px cannot be cut into 3 x 3 cells of 8 px"),
    ],
)
def test_sets_that_hold_nothing_to_cut_are_refused(
    tmp_path: Path, px: int, blank: bool, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = (clips("train", 12, px=px, blank=blank), clips("val", 6, px=px))
    data = made(tmp_path / "set", *parts, px=px)
    assert run(tmp_path / "run", "--data", data) == 3
    assert says in capsys.readouterr().err


def test_the_smallest_frames_are_cut(tmp_path: Path) -> None:
    data = made(tmp_path / "set", clips("train", 12, px=24), clips("val", 6, px=24), px=24)
    assert run(tmp_path / "run", "--data", data, "--total-images", "16", "--no-gap") == 0


def test_a_patient_in_both_splits_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    validating = (replace(clip, split="val") for clip in clips("train", 2))
    data = made(tmp_path / "set", clips("train", 12), validating)
    assert run(tmp_path / "run", "--data", data) == 2
    assert "2 patient(s) are in both splits" in capsys.readouterr().err


def test_a_run_that_stopped_goes_on_to_the_same_bytes_but_not_under_other_permutations(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight_on = JigsawTraining.step

    def stops(self: JigsawTraining, batch: object, images: int) -> object:
        if images >= 32:
            raise RuntimeError("here")
        return straight_on(self, batch, images)  # type: ignore[arg-type]

    monkeypatch.setattr(JigsawTraining, "step", stops)
    assert run(tmp_path / "run", "--data", data) == 1
    monkeypatch.undo()
    monkeypatch.setenv("MEDRAY_CACHE_DIR", str(tmp_path / "cache"))
    for other in (("--permutations", "9"), ("--no-gap",), ("--seed", "1")):
        assert run(tmp_path / "run", "--data", data, "--resume", *other) == 2
        assert other[0].removeprefix("--").removeprefix("no-") in capsys.readouterr().err
    assert run(tmp_path / "run", "--data", data, "--resume") == 0
    assert run(tmp_path / "clean", "--data", data) == 0
    assert results(tmp_path / "run") == results(tmp_path / "clean") != {}
    assert summary(tmp_path / "run")["resumed_at_images"] == 32


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--fraction", "0.5"), "fraction"),
        (("--batch", "9", "--workers", "2"), "not a multiple of workers"),
        (("--zero-stage", "1"), "needs the engine deepspeed"),
        (("--form", "published", "--init-from", "/run"), "goes with --form compact"),
        (("--permutations", "1"), "permutations"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    tmp_path: Path, flags: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", *flags) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_warm_start_begins_with_anothers_encoder(tmp_path: Path, data: str) -> None:
    short = ("--data", data, "--total-images", "8", "--lr", "1e-9", "--probe-frames", "0")
    assert run(tmp_path / "first", *short, "--seed", "5") == 0
    begun = ("--init-from", str(tmp_path / "first"))
    assert run(tmp_path / "second", *short, *begun) == 0
    first, second = (load_encoder(str(tmp_path / n)) for n in ("first", "second"))
    cold = Jigsaw(ORDERS, width=8).seed_weights(0).requires_grad_(False).encoder
    assert cold is not None
    probe = torch.linspace(-1, 1, PX * PX).view(1, 1, PX, PX)
    torch.testing.assert_close(second(probe), first(probe), atol=1e-3, rtol=1e-3)
    assert float((cold(probe) - first(probe)).abs().max()) > 0.05
    assert run(tmp_path / "wide", *short, *begun, "--width", "16") == 2


def test_a_dry_run_says_how_long_it_would_take_and_writes_nothing(
    tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", "--data", data, "--dry-run") == 0
    assert "frames/s on one worker here (measured)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# --- kills ----------------------------------------------------------------------------------------


def once(folder: Path) -> int:
    """A run in `folder`, resumed where it was killed; phantoms beside it."""
    flags = ("--phantom-images", "48", "--phantom-px", "48", "--cache-dir", f"{folder.parent}/c")
    return jigsaw.main([*SMALL, *flags, "--run-dir", str(folder), "--resume", "-q"])


def results(folder: Path) -> dict[str, str]:
    """What must not depend on kills; a manifest tells its start."""
    tops = ("checkpoints/", "model/", "puzzles", "DONE")
    found = tree_sha256(folder, lambda name: name.startswith(tops))
    return {name: digest for name, digest in found.items() if not name.endswith("manifest.json")}


@pytest.mark.chaos
def test_killed_anywhere_and_run_again_it_leaves_the_same_bytes(tmp_path: Path) -> None:
    with Killer(once) as killer:
        code, _ = killer.run(tmp_path / "clean")
        assert code == 0
        whole = results(tmp_path / "clean")
        assert any(name.startswith("model/encoder") for name in whole)

        def same(folder: Path) -> None:
            assert results(folder) == whole

        killer.kill_at_random(tmp_path, 6, check=lambda folder: None, done=same)
