"""The classifier on two workers of Ray: one end for both, one model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import classify
from medray import log
from medray.models.weights import load_classifier
from tests.jobs.test_classify import SMALL, made, samples

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    # Ray warns of its own settings.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def test_two_workers_of_ray_end_early_together_and_leave_a_model(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)
    monkeypatch.delenv("MEDRAY_SUBMIT_DIR", raising=False)
    data = made(tmp_path / "set", samples("train", 60), samples("val", 24))
    flags = ("--data", data, "--patience-images", "40", "--total-images", "400", "--json")
    ray = ("--backend", "ray", "--workers", "2", "--run-dir", str(tmp_path / "run"))
    assert classify.main([*SMALL, *flags, *ray]) == 0
    log.setup()
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    # Only rank 0 validates: that the other ended with it is the point.
    assert found["ended_early"] and found["images"] - found["best_images"] == 40 < 400
    assert found["workers"] == 2 and found["validation"]["balanced_accuracy"]["estimate"] > 0.9
    model, about = load_classifier(str(tmp_path / "run"))
    assert about["classifier_sha256"] == found["classifier_sha256"]
    assert model.classes == ("dark", "light")
