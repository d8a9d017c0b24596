"""A whole set against gate and hold-out: what passes, what fails."""

import functools

import numpy as np
import pytest

from medray import phantoms
from medray.errors import DataError
from medray.evaluate import control
from medray.evaluate.audit import Pair, audit, closest, share_by_chance
from medray.evaluate.memorisation import Gate


@functools.cache
def chest(first, count, px=16):
    return np.stack([phantoms.chest(0, first + i, px).image for i in range(count)])


@pytest.fixture(scope="module")
def pair():
    train, holdout = chest(0, 160), chest(1200, 64)
    return Pair.of(Gate.fit(train, holdout), [holdout[:40], holdout[40:]])


def verdict(pair, images):
    return audit(pair.judge(images), pair.gate.facts, seed=0, draws=200)


def test_images_of_other_patients_pass(pair):
    found = verdict(pair, chest(2400, 200))
    assert found.passes and found.near_copies <= 10
    assert found.excess_ci[0] <= found.excess <= found.excess_ci[1]


def test_an_overfitted_generator_does_not_pass(pair):
    """A third of the images replay training images; the other patients' part stays the same."""
    replayed = control.near_copies(chest(0, 100), "all", seed=7)
    found = verdict(pair, np.concatenate([replayed, chest(2400, 200)]))
    assert not found.passes and found.near_copies >= 90
    assert found.train_rate > found.holdout_rate


def test_replaying_the_hold_out_is_no_memorisation_of_training(pair):
    found = verdict(pair, control.near_copies(chest(1200, 64), "noisy", seed=7))
    assert found.passes and found.holdout_rate > 0.9 > found.near_copies / found.images


def test_rates_are_at_equal_sizes(pair):
    """64 of the 160 training images: a replayed image is in a subset two times in five."""
    found = verdict(pair, control.near_copies(chest(0, 100), "noisy", seed=7))
    assert found.train_rate == pytest.approx(0.4, abs=0.08)
    assert found.near_copies / found.images > 0.9


def test_by_chance_as_many_pass_a_threshold_as_simulated(pair):
    """The highest of n uniform scores, twice: the share of others above either, 97.5% of times."""
    n = pair.gate.facts.holdout_images
    tops = np.random.default_rng(0).random((20_000, 2, n)).max(axis=2)
    either = 1 - tops[:, 0] * tops[:, 1]
    assert np.quantile(either, 0.975) <= share_by_chance(pair.gate.facts)
    assert np.quantile(either, 0.5) > share_by_chance(pair.gate.facts) / 10


def test_the_closest_are_copies_first(pair):
    copies = control.near_copies(chest(0, 4), "noisy", seed=7)
    found = pair.judge(np.concatenate([chest(2400, 20), copies]))
    assert set(closest(found, 4)) == {20, 21, 22, 23}
    assert found["nearest"][20:].tolist() == [0, 1, 2, 3]


def test_both_gates_are_saved_and_loaded(pair, tmp_path):
    from medray.store import Store

    pair.save(Store(tmp_path))
    again = Pair.load(str(tmp_path))
    images = chest(2400, 10)
    assert again.sha256 == pair.sha256
    for name, values in pair.judge(images).items():
        assert np.array_equal(again.judge(images)[name], values)
    (tmp_path / "holdout" / "gate.safetensors").write_bytes(b"short")
    with pytest.raises(DataError):
        Pair.load(str(tmp_path))


def test_a_set_of_no_images_has_no_verdict(pair):
    with pytest.raises((ValueError, DataError)):
        verdict(pair, chest(0, 1)[:0])
