"""A classifier's run leaves what tells images unlike its training data; serving takes it up."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jobs import classify
from medray import phantoms
from medray.evaluate import ood
from medray.store import Store
from serve.compute.diagnosis import Diagnosis
from tests.jobs.classify_runs import SMALL


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDRAY_CACHE_DIR", str(folder / "cache"))
        arguments = [*SMALL, "--phantom-images", "200", "--total-images", "64"]
        assert classify.main([*arguments, "--run-dir", str(folder / "run")]) == 0
    return folder / "run"


def test_the_distance_stands_beside_the_weights_and_in_the_summary(run):
    summary = json.loads((run / "summary.json").read_text())
    store = Store(run / "model")
    found = ood.Familiarity.load(store, summary["classifier_sha256"])
    assert found.facts.training_images == summary["train"]["samples"]
    assert found.facts.validation_images == summary["validation"]["samples"]
    assert summary["unlike"]["threshold"] == found.facts.threshold
    # So few images cannot promise one in a hundred, and it says what they can.
    assert ood.LEAST_VALIDATION <= found.facts.validation_images < 99
    assert found.facts.expected == pytest.approx(1 / (found.facts.validation_images + 1))


def test_its_service_tells_noise_from_phantoms(run):
    model = Diagnosis.load(str(run))
    noise = np.random.default_rng(0).integers(0, 256, (5, 16, 16), np.uint8)
    assert all(flag for _, flag in model.ood(list(noise)))
    films = [sample.image for sample in phantoms.dataset("brain", 77, 60, 16)]
    flags = [bool(flag) for _, flag in model.ood(films)]
    # Expected are one in thirty or so: the threshold is the highest of the few of validation.
    assert sum(flags) <= 12
    assert model.facts["ood"]["expected"] == pytest.approx(
        1 / (model.familiarity.facts.validation_images + 1), abs=1e-6
    )


def test_a_run_with_too_few_validation_images_leaves_none_and_says_why(tmp_path, own_cache):
    assert classify.main([*SMALL, "--total-images", "16", "--run-dir", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["unlike"]["threshold"] is None
    assert "19 or more validation images are needed" in summary["unlike"]["reason"]
    model = Diagnosis.load(str(tmp_path / "run"))
    assert model.facts["ood"] is None and model.ood([np.zeros((16, 16), np.uint8)]) == [
        (None, None)
    ]
