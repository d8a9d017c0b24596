"""The segmenter on two workers of Ray: one model, judged by one of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import segment
from medray import log
from medray.models.segmenter import load_segmenter
from tests.jobs.test_segment import SMALL, made, samples

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    # Ray warns of its own settings.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def test_two_workers_of_ray_leave_a_model(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)
    monkeypatch.delenv("MEDRAY_SUBMIT_DIR", raising=False)
    data = made(tmp_path / "set", samples("train", 36), samples("val", 12))
    flags = ("--data", data, "--width", "4", "--total-images", "320", "--snapshot-images", "160")
    ray = ("--backend", "ray", "--workers", "2", "--run-dir", str(tmp_path / "run"), "--json")
    assert segment.main([*SMALL, *flags, *ray]) == 0
    log.setup()
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert found["workers"] == 2 and found["images"] == 320
    assert found["validation"]["dice"]["estimate"] > 0.5
    _, about = load_segmenter(str(tmp_path / "run"))
    assert about["segmenter_sha256"] == found["segmenter_sha256"]
