"""Trials on images: arms differ in what a training sees, at the same number of images."""

import os
import signal

import numpy as np
import pytest

from medray import phantoms, shards
from medray.errors import Stopped
from medray.stream import Roster, Source
from medray.train import mixture
from medray.tune.cells import Cell
from medray.tune.images import ImageTrials, rows_of
from medray.tune.trial import run_here
from tests.tune.toys import searches

SETTINGS = {"lr": 1e-3, "weight_decay": 0.05, "augment": 1.0}
SMALL = {"size_px": 16, "width": 8, "total_images": 64, "batch": 16}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, seed, count in (("real", 0, 90), ("archive", 1, 60)):
        made = list(phantoms.dataset("brain", seed, count, 16))
        classes = phantoms.CLASSES["brain"]
        url = folder / name
        shards.write_set(url, made, name=name, classes=classes, size_px=16, encoding="raw")
    return folder


def trials(sets, **more):
    return ImageTrials((f"{sets}/real",), f"{sets}/archive", SMALL, seeds=2, **more)


def test_a_step_is_a_function_of_its_arguments_and_seeds_differ(sets):
    weights = [trials(sets).fit(Cell("none", 1.0), SETTINGS, seed) for seed in (0, 0, 1)]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize("arm", ["archive", "pretrain", "class-weights"])
def test_every_arm_trains_on_as_many_images_and_predicts(sets, arm, monkeypatch):
    from medray.train.classifier import ClassifierTraining

    seen, step = [], ClassifierTraining.step

    def spy(self, batch, images):
        seen.append((images, len(batch.keys), [r["provenance"] for r in batch.records]))
        return step(self, batch, images)

    monkeypatch.setattr(ClassifierTraining, "step", spy)
    made = trials(sets)
    cell, settings = Cell(arm, 1.0), {**SETTINGS, "ratio": 1.0, "share": 0.5}
    weights = made.fit(cell, settings, 0)
    assert [images for images, _, _ in seen] == [0, 16, 32, 48]
    test = rows_of(Roster([Source(f"{sets}/real")], "test"), made.task)
    said_NK = made.predict(cell, weights, test)
    assert said_NK.shape == (len(test.keys), len(made.task.classes))
    assert np.allclose(said_NK.sum(1), 1, atol=1e-5)


def test_sigterm_in_a_training_stops_the_search_and_no_trial_is_recorded(sets, monkeypatch):
    from medray.train.classifier import ClassifierTraining

    step = ClassifierTraining.step

    def terminated(self, batch, images):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, images)

    before, told = signal.getsignal(signal.SIGTERM), []
    monkeypatch.setattr(ClassifierTraining, "step", terminated)
    made = trials(sets)
    with pytest.raises(Stopped, match="SIGTERM"):
        run_here(made, searches(made, arms=("none",)), lambda trial, record: told.append(record))
    assert not told
    assert signal.getsignal(signal.SIGTERM) == before


def test_pre_training_reads_the_archive_first_and_the_real_images_then(sets):
    made = trials(sets)
    first, then = made._mixtures(Cell("pretrain", 1.0), {})
    assert [str(s.url) for s in first.sources] == [f"{sets}/archive"]
    assert [str(s.url) for s in then.sources] == [f"{sets}/real"]
    mixed = made._mixtures(Cell("archive", 1.0), {"ratio": 1.0})[0]
    assert {str(s.url) for s in mixed.sources} == {f"{sets}/real", f"{sets}/archive"}
    counts = mixture.counts_of(made.facts_of(1.0), made.task)
    largest = max(counts, key=counts.get)
    assert largest not in mixed.synthetic and len(mixed.synthetic) == 2


def test_at_a_fraction_fewer_patients_are_trained_on_and_none_of_others(sets):
    made = trials(sets)
    few, all_of_them = ({f.patient for f in made.facts_of(share)} for share in (0.3, 1.0))
    assert few < all_of_them


def test_the_object_that_searches_opens_no_test_split(sets, monkeypatch):
    opened = []
    original = Roster.__init__

    def spy(self, sources, split, *more):
        opened.append(split)
        original(self, sources, split, *more)

    monkeypatch.setattr(Roster, "__init__", spy)
    trials(sets).score(Cell("archive", 1.0), {**SETTINGS, "ratio": 1.0}, 1)
    assert set(opened) == {"train", "val"}
