"""The jigsaw on two workers of Ray: one encoder, judged by one of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import jigsaw
from medray import log
from medray.models.encoder import load_with_config
from tests.jobs.folders import summary
from tests.jobs.test_jigsaw_job import SMALL, clips, made

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    # Ray warns of its own settings.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def test_two_workers_of_ray_leave_an_encoder(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)
    monkeypatch.delenv("MEDRAY_SUBMIT_DIR", raising=False)
    data = made(tmp_path / "set", clips("train", 12), clips("val", 6))
    ray = ("--backend", "ray", "--workers", "2", "--run-dir", str(tmp_path / "run"), "--json")
    assert jigsaw.main([*SMALL, "--data", data, *ray]) == 0
    log.setup()
    found = summary(tmp_path / "run")
    assert found["workers"] == 2 and found["images"] == 64
    _, about = load_with_config(str(tmp_path / "run"))
    assert about["encoder_sha256"] == found["sha256"]
