"""Whom the source names is in nothing that any later stage makes or says: 60 canaries."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jobs import archive, evaluate, pack, pggan, reader_study
from medray import phantoms
from medray.evaluate.reader_set import ReaderSet
from tests.canaries import assert_all_are_in, canaries, canary, with_canaries

pytestmark = pytest.mark.slow
PX, IMAGES = 16, 320
TRAINING = (
    *("--final-px", PX, "--start-px", 8, "--precision", "fp32", "--fmap-base", 64, "--fmap-max", 8),
    *("--latent-dims", 8, "--threads-per-worker", 1, "--total-images", 64, "--batch", 8),
    *("--snapshot-images", 32, "--checkpoint-images", 32, "--backend", "local"),
)
Main = Callable[[list[str]], int]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Set, run, archive, report and reader study, each in a folder of its stage, and their logs."""
    base = tmp_path_factory.mktemp("stages")
    source, made = base / f"in{canary(55)}", base / "made"
    made.mkdir()
    (source / canary(56)).mkdir(parents=True)
    lines = ["file,label,patient,note"]
    for number in range(IMAGES):
        sample = phantoms.chest(0, number, PX)
        name = f"{canary(56)}/{canary(57)}{number}.dcm"
        (source / name).write_bytes(with_canaries(sample.image.astype(np.uint16) * 16))
        lines.append(f"{name},{('clear', 'opacity')[number % 2]},{canary(58)}{number},{canary(59)}")
    (source / "labels.csv").write_text("\n".join(lines) + "\n")
    assert_all_are_in(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDRAY_SECRET_KEY", "0123456789abcdef")
        patch.setenv("MEDRAY_CACHE_DIR", str(base / "cache"))
        _run(made, "set", pack.main, "--source", source / "labels.csv", "--size-px", PX)
    _run(made, "run", pggan.main, "--data", made / "set", *TRAINING)
    given = ("--generator", made / "run", "--labels", "natural", "--count", 120)
    _run(made, "archive", archive.main, *given, "--workers", 0)
    given = ("--real", made / "set", "--synthetic", made / "archive")
    _run(made, "report", evaluate.main, *given, "--bootstrap", 20, "--validation-images", 0)
    _run(made, "study", reader_study.main, *given, "--images", 20)
    _report(made / "study")
    return made


def _report(study: Path) -> None:
    """The report on one reader's answers."""
    items = ReaderSet.open(str(study)).items
    left = {"version": 0, "choice": None, "label": None, "hidden": False, "idle": False}
    answers = [
        {"reader": "ann", "item": item.id, "position": at, "score": 1 + at % 5, "seconds": 2.0}
        | {**left, "received_s": 60.0 * at}
        for at, item in enumerate(items)
    ]
    file = study.parent / "answers.jsonl"
    file.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    assert reader_study.main(["--out", str(study), "--report", str(file)]) == 0


def _run(made: Path, stage: str, main: Main, *flags: object) -> None:
    """Runs a job with all that it can say; what it says goes into a file of its own."""
    place = "--run-dir" if main is pggan.main else "--out"
    words = [*map(str, flags), place, str(made / stage), "--verbose", "--json"]
    with (made / f"{stage}.log").open("w") as log, contextlib.redirect_stderr(log):
        # A gate that this generator does not pass is its answer, too.
        assert main(words) in (0, 5), (made / f"{stage}.log").read_text()[-2000:]


@pytest.mark.parametrize("stage", ["set", "run", "archive", "report", "study"])
def test_no_stage_makes_or_says_a_canary(stages: Path, stage: str) -> None:
    files = [path for path in (stages / stage).rglob("*") if path.is_file()]
    files.append(stages / f"{stage}.log")
    assert len(files) > 5 and files[-1].stat().st_size > 200
    for path in files:
        hay = path.read_bytes() + str(path.relative_to(stages)).encode()
        assert not [word for word in canaries() if word in hay], path


def test_the_search_finds_what_a_stage_is_told(stages: Path) -> None:
    """The control, by what is no secret: a class."""
    for stage in ("set", "run", "report", "study"):
        told = b"".join(p.read_bytes() for p in (stages / stage).rglob("*") if p.is_file())
        assert b"opacity" in told
