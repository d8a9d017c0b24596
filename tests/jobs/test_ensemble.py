"""jobs/ensemble.py: two planes put together, weights from validation, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import ensemble
from medray import log
from tests.jobs.clip_runs import clips, made, run

pytestmark = pytest.mark.usefixtures("own_cache")


def trained(tmp_path: Path, name: str, data: str, *more: str) -> str:
    more = ("--encoder", "random", "--freeze", "--total-images", "160", *more)
    assert run(tmp_path / name, "--data", data, *more) == 0
    return str(tmp_path / name)


def put_together(tmp_path: Path, out: str, runs: list[str], data: list[str], *more: str) -> int:
    argv = ["--runs", *runs, "--data", *data, "--out", str(tmp_path / out), "--json", *more]
    code = ensemble.main([*argv, "--interval-draws", "40"])
    log.setup()
    return code


def test_planes_are_weighed_by_validation_and_judged_on_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = (("train", 24), ("val", 16), ("test", 16))
    axial = made(tmp_path / "axial", *(clips(s, n) for s, n in splits))
    # In this plane nothing is seen, and it lacks the last four test patients.
    blank = (replace(c, image=c.image * 0) for s, n in splits for c in clips(s, n))
    sagittal = made(tmp_path / "sagittal", (c for c in blank if c.key not in LACKING))
    runs = [trained(tmp_path, f"run-{n}", url) for n, url in enumerate((axial, sagittal))]
    data = [axial, sagittal]
    assert put_together(tmp_path, "out", runs, data) == 0
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert found["split"] == "test" and found["way"] in ("accuracy", "log-loss")
    assert found["weights"]["left"][0] > 0.7
    assert found["figures"]["ensemble"]["classes"]["left"]["auroc"]["estimate"] > 0.8
    assert found["figures"]["ensemble"]["samples"] == 16
    assert found["figures"]["member 2"]["classes"]["left"]["samples"] == 12
    assert "Weights, by" in (tmp_path / "out" / "report.html").read_text()
    assert put_together(tmp_path, "out", runs, data) == 0
    # A member that was trained on the patients who are judged is refused.
    swapped = made(tmp_path / "swapped", *_swapped())
    seen = trained(tmp_path, "seen", swapped)
    capsys.readouterr()
    assert put_together(tmp_path, "leak", [runs[0], seen], [axial, axial]) == 3
    assert "held out" in capsys.readouterr().err
    other = trained(tmp_path, "other", axial, "--classes", "left", "right")
    assert put_together(tmp_path, "b", [runs[0], other], data) == 2
    assert "train the members on the same findings" in capsys.readouterr().err
    assert put_together(tmp_path, "c", runs, [axial]) == 2
    assert "2 runs, 1 sets" in capsys.readouterr().err


LACKING = {f"test{number}" for number in range(12, 16)}


def _swapped():
    """Patients of the test split, to train on."""
    for split, source in (("train", "test"), ("val", "val")):
        yield [replace(clip, split=split) for clip in clips(source, 16)]
