"""jobs/_training.py: what is left open is decided once, and a resumed run keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs import _pggan_run, _training
from jobs.acgan import ACGANJob
from jobs.classify import ClassifyJob
from jobs.pggan import PgganJob
from jobs.segment import SegmentJob
from medray import config as configuration
from medray.errors import UsageError


def choose(config: ClassifyJob) -> ClassifyJob:
    chosen = _training.cadence(config, 20, workers=config.workers)
    return config.model_copy(update=chosen)


def stored(folder: Path, **named: Any) -> ClassifyJob:
    """A job whose resolved configuration lies in `folder`."""
    config = _training.resolved(ClassifyJob(run_dir=str(folder), **named), choose)
    folder.mkdir()
    (folder / "config.yaml").write_text(configuration.to_yaml(config))
    return config


def test_a_cadence_nobody_named_is_a_share_of_the_run_and_at_least_a_batch() -> None:
    found = _training.cadence(ClassifyJob(total_images=8000, threads_per_worker=2), 20)
    assert found == {
        "threads_per_worker": 2,
        "log_images": 80,
        "snapshot_images": 400,
        "checkpoint_images": 400,
    }
    short = _training.cadence(ClassifyJob(total_images=64), 20)
    assert (short["log_images"], short["snapshot_images"]) == (32, 32)
    named = _training.cadence(ClassifyJob(snapshot_images=96), 20)
    assert (named["snapshot_images"], named["checkpoint_images"]) == (96, 96)


def test_a_resumed_run_takes_what_no_flag_says_from_its_folder(tmp_path: Path) -> None:
    first = stored(tmp_path / "run", snapshot_images=96, threads_per_worker=3)
    again = ClassifyJob(run_dir=first.run_dir, resume=True, total_images=8000, log_images=64)
    found = _training.resolved(again, choose)
    assert (found.snapshot_images, found.threads_per_worker) == (96, 3)
    assert found.log_images == 64 and found.resume
    # Without --resume the folder says nothing.
    fresh = _training.resolved(again.model_copy(update={"resume": False}), choose)
    assert fresh.snapshot_images == 400


def test_what_a_folder_holds_is_checked_as_a_flag_is(tmp_path: Path) -> None:
    first = stored(tmp_path / "run", snapshot_images=96)
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace("snapshot_images: 96", "snapshot_images: often"))
    with pytest.raises(UsageError, match="config.yaml: snapshot_images"):
        _training.resolved(ClassifyJob(run_dir=first.run_dir, resume=True), choose)


def test_a_job_without_a_folder_gets_a_numbered_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDRAY_RUNS_DIR", str(tmp_path / "runs"))
    placed = _training.placed(ClassifyJob(), "classify-chest")
    assert str(placed.run_dir).startswith(str(tmp_path / "runs"))
    assert str(placed.run_dir).endswith("classify-chest")
    assert _training.placed(ClassifyJob(run_dir="/there"), "classify-chest").run_dir == "/there"


@pytest.mark.parametrize("job", [ClassifyJob, SegmentJob, PgganJob, ACGANJob])
def test_what_may_change_is_a_field_and_decides_no_weight(job: Any) -> None:
    may = _pggan_run.CHANGEABLE if job is PgganJob else _training.CHANGEABLE
    config = job(**({"features": "/set"} if job is ACGANJob else {}))
    same = config.model_copy(update={"keep_last": 5, "cache_dir": "/other", "log_images": 7})
    other = config.model_copy(update={"fraction_seed": 5})
    digests = [configuration.digest(c, leave_out=may) for c in (config, same, other)]
    assert digests[0] == digests[1] != digests[2]
    assert job is ACGANJob or may <= set(job.model_fields)
