"""Distortions: pure, nested, of unchanged size; and scores rise with every one of them."""

import numpy as np
import pytest

from medray import phantoms
from medray.metrics import distortions
from medray.metrics.frechet import frechet_of

STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)


@pytest.fixture(scope="module")
def films():
    samples = [phantoms.chest(0, index, 32) for index in range(240)]
    return np.stack([s.image for s in samples]), np.array([s.label for s in samples])


def features(images_NHW):
    """Seeded random 5 x 5 filters, cut off at 0, the mean of each quarter: a network."""
    weights = np.random.default_rng(0).normal(size=(25, 16)) / 500
    windows = np.lib.stride_tricks.sliding_window_view(images_NHW, (5, 5), (1, 2))
    found = np.maximum(windows.reshape(*windows.shape[:3], 25) @ weights, 0)
    return found.reshape(len(images_NHW), 2, 14, 2, 14, 16).mean(axis=(2, 4)).reshape(-1, 64)


WAYS = {
    "blur": lambda images, labels, s: distortions.blur(images, s),
    "noise": lambda images, labels, s: distortions.noise(images, s, seed=0),
    "drop": lambda images, labels, s: images[distortions.drop_modes(labels, s, seed=0)],
    "mix": lambda images, labels, s: images[distortions.mix_labels(labels, s, seed=0)],
}


@pytest.mark.parametrize("way", ["blur", "noise"])
def test_the_frechet_distance_rises_with_every_strength_of_worse_images(films, way):
    images_NHW, labels_N = films
    real_ND = features(images_NHW[120:])
    found = [
        frechet_of(real_ND, features(WAYS[way](images_NHW[:120], labels_N[:120], s)))
        for s in (0.0, *STRENGTHS)
    ]
    assert found == sorted(found) and found[-1] > 1.5 * found[0], found


@pytest.mark.parametrize("way", ["drop", "mix"])
@pytest.mark.parametrize("modes", [2, 6])
def test_the_frechet_distance_rises_with_every_strength_of_another_mix(way, modes):
    generator = np.random.default_rng(modes)
    modes_N = generator.choice(modes, 1600, p=np.arange(1, modes + 1) / sum(range(1, modes + 1)))
    rows_ND = generator.normal(size=(1600, 8)) + 3 * generator.normal(size=(modes, 8))[modes_N]
    found = [
        frechet_of(rows_ND[800:], WAYS[way](rows_ND[:800], modes_N[:800], s))
        for s in (0.0, *STRENGTHS)
    ]
    assert found == sorted(found) and found[-1] > 10 * found[0], found


@pytest.mark.parametrize("way", WAYS)
def test_strength_0_changes_nothing_and_no_strength_the_size(films, way):
    images_NHW, labels_N = films
    np.testing.assert_array_equal(WAYS[way](images_NHW, labels_N, 0.0), images_NHW)
    changed_NHW = WAYS[way](images_NHW, labels_N, 0.5)
    assert changed_NHW.shape == images_NHW.shape and changed_NHW.dtype == np.uint8
    assert not np.array_equal(changed_NHW, images_NHW)


def test_noise_has_the_addresses_of_its_images():
    images_NHW = np.full((5, 16, 16), 128, np.uint8)
    whole_NHW = distortions.noise(images_NHW, 0.5, seed=1)
    np.testing.assert_array_equal(
        whole_NHW[3:], distortions.noise(images_NHW[3:], 0.5, seed=1, first=3)
    )
    assert whole_NHW.std() == pytest.approx(0.5 * 0.15 * 255, rel=0.1)
    assert not np.array_equal(whole_NHW, distortions.noise(images_NHW, 0.5, seed=2))


def test_colours_are_not_blurred_into_each_other():
    images = np.zeros((2, 16, 16, 3), np.uint8)
    images[..., 1] = 200
    np.testing.assert_array_equal(distortions.blur(images, 1.0), images)


def test_modes_go_rarest_first_and_the_commonest_stays():
    modes_N = np.repeat([4, 1, 3, 0, 2], [10, 20, 30, 40, 50])
    left = [
        set(modes_N[distortions.drop_modes(modes_N, strength, seed=0)])
        for strength in (0.25, 0.5, 0.75, 1.0)
    ]
    assert left == [{1, 3, 0, 2}, {3, 0, 2}, {0, 2}, {2}]


def test_of_two_modes_one_goes_bit_by_bit_and_what_is_gone_stays_gone():
    modes_N = np.repeat(["rare", "common"], [400, 600])
    gone = [
        set(np.flatnonzero(distortions.drop_modes(modes_N, s, seed=0) != np.arange(1000)))
        for s in STRENGTHS
    ]
    for strength, rows in zip(STRENGTHS, gone, strict=True):
        assert len(rows) == pytest.approx(400 * strength, abs=30) and max(rows) < 400
    assert all(fewer < more for fewer, more in zip(gone, gone[1:], strict=False))


def test_the_label_mix_moves_by_the_strength():
    labels_N = np.repeat(["rare", "common"], [200, 800])
    for strength in STRENGTHS:
        mixed_N = labels_N[distortions.mix_labels(labels_N, strength, seed=0)]
        expected = 0.2 + 0.8 * strength
        assert np.mean(mixed_N == "rare") == pytest.approx(expected, abs=0.04)


BAD = [
    (lambda: distortions.blur(np.zeros((1, 4, 4)), 1), "uint8"),
    (lambda: distortions.blur(np.zeros((4, 4), np.uint8), 1), r"\(N, H, W\)"),
    (lambda: distortions.noise(np.zeros((1, 4, 4), np.uint8), -1, seed=0), "0 to infinity, got -1"),
    (lambda: distortions.drop_modes(np.arange(3), 1.1, seed=0), "0 to 1.0, got 1.1"),
    (lambda: distortions.mix_labels(np.zeros(3), 0.5, seed=0), "two different labels"),
    (lambda: distortions.drop_modes(np.zeros((3, 2)), 0.5, seed=0), r"\(N,\)"),
]


@pytest.mark.parametrize("call, message", BAD)
def test_what_cannot_be_distorted_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
