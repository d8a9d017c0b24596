"""Scores against naive loops, analytic values, and images made worse by known amounts."""

import math

import numpy as np
import pytest
from scipy import ndimage

from medray import metrics, phantoms, rng
from medray.metrics import _checks, _wasserstein


@pytest.fixture(scope="module")
def films_NHW():
    return np.stack([phantoms.chest(0, index, 32).image for index in range(60)])


def made(count, px, seed=0):
    return np.random.default_rng(seed).normal(size=(count, px, px)).astype(np.float32)


def mirrored(position, size):
    position = abs(position)
    return 2 * (size - 1) - position if position >= size else position


def filtered_loop(image, gain):
    weights = [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16]
    size = len(image)
    out = np.zeros((size, size))
    for y in range(size):
        for x in range(size):
            for j in range(5):
                for i in range(5):
                    value = image[mirrored(y + j - 2, size)][mirrored(x + i - 2, size)]
                    out[y][x] += gain * weights[j] * weights[i] * value
    return out


def pyramid_loop(image, levels):
    found, current = [], image.astype(np.float64)
    for _ in range(levels - 1):
        smaller = filtered_loop(current, 1)[::2, ::2]
        spread = np.zeros_like(current)
        spread[::2, ::2] = smaller
        found.append(current - filtered_loop(spread, 4))
        current = smaller
    return [*found, current]


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_laplacian_pyramid_equals_a_loop_over_pixels(levels):
    images_NHW = made(2, 16)
    pyramid = metrics.laplacian_pyramid(images_NHW, levels)
    assert [level.shape for level in pyramid] == [(2, 16 >> k, 16 >> k) for k in range(levels)]
    for number, image in enumerate(images_NHW):
        for level, expected in zip(pyramid, pyramid_loop(image, levels), strict=True):
            np.testing.assert_allclose(level[number], expected, atol=1e-5)


def test_a_pyramid_adds_up_to_its_image():
    images_NHW = made(3, 64)
    pyramid = metrics.laplacian_pyramid(images_NHW, 3)
    whole_NHW = pyramid[-1]
    for level_NHW in reversed(pyramid[:-1]):
        whole_NHW = level_NHW + metrics.doubled(whole_NHW)
    np.testing.assert_allclose(whole_NHW, images_NHW, atol=1e-5)


def test_patches_are_whole_and_lie_where_the_address_says():
    images_NHW = made(3, 16)
    patches = metrics.descriptors(images_NHW, [16], seed=5)[16]
    assert patches.shape == (3 * 128, 49)
    for image in range(3):
        stream = "metrics.sliced_wasserstein.places.16"
        corners = rng.integers(5, stream, image, 256, 0, 10).reshape(128, 2)
        assert corners.min() == 0 and corners.max() == 9
        for number, (top, left) in enumerate(corners):
            expected = [images_NHW[image, top + j, left + i] for j in range(7) for i in range(7)]
            np.testing.assert_array_equal(patches[128 * image + number], expected)


@pytest.mark.parametrize("colour", [False, True])
def test_no_figure_depends_on_how_much_is_taken_at_once(monkeypatch, colour):
    shape = (5, 3, 32, 32) if colour else (15, 32, 32)
    real, fake = (made(15, 32, seed).reshape(shape) for seed in (0, 1))

    def figures():
        scores = metrics.sliced_wasserstein(real, fake)
        return *scores.items(), *metrics.spectral_power(real), metrics.top_octave_ratio(real, fake)

    whole = figures()
    monkeypatch.setattr(_checks, "_PIXELS_AT_ONCE", 2 * 32**2)
    monkeypatch.setattr(_wasserstein, "_PATCHES_AT_ONCE", 100)
    assert figures() == whole


def test_colour_images_count_as_the_mean_of_their_channels():
    generator = np.random.default_rng(0)
    real, fake = (generator.integers(0, 256, (4, 3, 32, 32), np.uint8) for _ in "ab")
    for score in (metrics.sliced_wasserstein, metrics.top_octave_ratio):
        assert score(real, fake) == score(real.mean(1), fake.mean(1))


def test_the_whole_score_equals_a_naive_one():
    real_NHW, fake_NHW = made(3, 32), np.abs(made(3, 32, seed=1))
    scores = metrics.sliced_wasserstein(real_NHW, fake_NHW, seed=2)
    for level, px in enumerate((32, 16)):
        sets = []
        for images_NHW in (real_NHW, fake_NHW):
            stream, rows = f"metrics.sliced_wasserstein.places.{px}", []
            for number, image in enumerate(images_NHW):
                plane = pyramid_loop(image, 2)[level]
                corners = rng.integers(2, stream, number, 256, 0, px - 6).reshape(128, 2)
                rows += [plane[y : y + 7, x : x + 7].ravel() for y, x in corners]
            sets.append((np.array(rows) - np.mean(rows)) / np.std(rows))
        distances = []
        for repeat in range(4):
            drawn = rng.normals(2, "metrics.sliced_wasserstein.directions", repeat, 49 * 128)
            for direction in drawn.reshape(49, 128).T:
                unit = direction / math.sqrt(sum(float(value) ** 2 for value in direction))
                pairs = zip(sorted(sets[0] @ unit), sorted(sets[1] @ unit), strict=True)
                distances.append(np.mean([abs(a - b) for a, b in pairs]))
        assert scores[px] == pytest.approx(1000 * np.mean(distances), rel=1e-4)


def test_two_gaussians_have_the_analytic_sliced_distance():
    count, dims, scale = 10_000, 6, 1.7
    first_MD = np.random.default_rng(0).normal(size=(count, dims)).astype(np.float32)
    second_MD = np.random.default_rng(1).normal(size=(count, dims)).astype(np.float32) * scale
    # On every line: |N(0, 1) - N(0, s^2)| transports x to s x, a mean way of (s - 1) E|x|.
    expected = (scale - 1) * math.sqrt(2 / math.pi)
    assert metrics.sliced_distance(first_MD, second_MD) == pytest.approx(expected, rel=0.03)


def test_a_shift_has_the_analytic_sliced_distance():
    dims, shift = 49, 3.0
    rows_MD = made(1, 64)[0, :, :49]
    moved_MD = rows_MD.copy()
    moved_MD[:, 0] += shift
    # The mean of |cos| between a fixed and a random direction in D dimensions.
    cosine = math.exp(math.lgamma(dims / 2) - math.lgamma((dims + 1) / 2)) / math.sqrt(math.pi)
    distance = metrics.sliced_distance(rows_MD, moved_MD)
    assert distance == pytest.approx(shift * cosine, rel=0.1)


def test_equal_sets_have_distance_zero_at_every_level(films_NHW):
    assert metrics.sliced_wasserstein(films_NHW, films_NHW) == {32: 0.0, 16: 0.0}


def test_the_distance_grows_with_blur_and_with_noise_but_not_with_brightness(films_NHW):
    real_NHW, other_NHW = films_NHW[:30], films_NHW[30:].astype(np.float32)
    floor = metrics.sliced_wasserstein(real_NHW, other_NHW)
    noise_NHW = made(30, 32)
    for worse in (
        lambda k: ndimage.gaussian_filter(other_NHW, (0, 0.6 * k, 0.6 * k)),
        lambda k: other_NHW + 10 * k * noise_NHW,
    ):
        scores = [metrics.sliced_wasserstein(real_NHW, worse(k)) for k in (1, 2, 3)]
        finest = [floor[32], *(score[32] for score in scores)]
        assert all(before < after for before, after in zip(finest, finest[1:], strict=False))
    brighter = metrics.sliced_wasserstein(real_NHW, other_NHW * 0.5 + 90)
    assert brighter[32] == pytest.approx(floor[32], rel=1e-3)


def test_the_score_is_a_function_of_images_and_seed(films_NHW):
    real_NHW, other_NHW = films_NHW[:10], films_NHW[10:20]
    first = metrics.sliced_wasserstein(real_NHW, other_NHW, seed=1)
    assert metrics.sliced_wasserstein(real_NHW, other_NHW, seed=1) == first
    assert metrics.sliced_wasserstein(real_NHW, other_NHW, seed=2) != first


def test_levels_go_from_the_images_size_to_16():
    for px, levels in ((16, [16]), (64, [64, 32, 16])):
        assert list(metrics.sliced_wasserstein(made(1, px), made(1, px, 1))) == levels


def test_a_collapsed_generator_gets_a_finite_and_bad_score(films_NHW):
    flat_NHW = np.full_like(films_NHW, 90)
    scores = metrics.sliced_wasserstein(films_NHW, flat_NHW)
    floor = metrics.sliced_wasserstein(films_NHW[:30], films_NHW[30:])
    assert all(math.isfinite(scores[px]) and scores[px] > 3 * floor[px] for px in (32, 16))


def spectrum_loop(image):
    px = len(image)
    window = [math.sin(math.pi * (i + 1) / (px + 1)) ** 2 for i in range(px)]
    image = (image - image.mean()) * np.outer(window, window)
    sums, counts = np.zeros(px // 2 + 1), np.zeros(px // 2 + 1)
    grid = np.arange(px)
    for fy in range(-(px // 2), px // 2):
        for fx in range(-(px // 2), px // 2):
            radius = round(math.hypot(fy, fx))
            if radius <= px // 2:
                wave = np.exp(-2j * np.pi * (fy * grid[:, None] + fx * grid[None, :]) / px)
                sums[radius] += abs((image * wave).sum()) ** 2 / px**2
                counts[radius] += 1
    return sums / counts


def test_spectral_power_equals_a_loop_over_frequencies():
    images_NHW = made(3, 16)
    expected = np.mean([spectrum_loop(image) for image in images_NHW], axis=0)
    np.testing.assert_allclose(metrics.spectral_power(images_NHW), expected, rtol=1e-4)


def test_a_wave_has_its_power_at_its_frequency():
    wave_H = np.cos(2 * np.pi * 12 * np.arange(64) / 64)
    power_R = metrics.spectral_power(np.tile(wave_H, (1, 64, 1)))
    assert power_R.argmax() == 12
    assert power_R[10:15].sum() > 0.99 * power_R.sum()


def test_the_top_octave_ratio_is_the_squared_gain_and_falls_with_blur(films_NHW):
    films_NHW = films_NHW.astype(np.float64)
    assert metrics.top_octave_ratio(films_NHW, films_NHW) == pytest.approx(1)
    assert metrics.top_octave_ratio(films_NHW, 0.5 * films_NHW) == pytest.approx(0.25)
    blurred = [ndimage.gaussian_filter(films_NHW, (0, s, s)) for s in (0.4, 0.6, 0.9, 1.5)]
    ratios = [1, *(metrics.top_octave_ratio(films_NHW, images) for images in blurred)]
    assert all(before > after for before, after in zip(ratios, ratios[1:], strict=False))
    assert ratios[-1] < 0.02


def test_power_below_the_top_octave_does_not_count():
    noise_NHW, slow_H = made(4, 64), 20 * np.cos(2 * np.pi * 5 * np.arange(64) / 64)
    assert metrics.top_octave_ratio(noise_NHW, noise_NHW + slow_H) == pytest.approx(1, rel=1e-3)


BAD = [
    (np.zeros((2, 32, 32)), np.zeros((3, 32, 32))),
    (np.zeros((2, 32, 16)), np.zeros((2, 32, 16))),
    (np.zeros((0, 32, 32)), np.zeros((0, 32, 32))),
    (np.zeros((32, 32)), np.zeros((32, 32))),
    (np.zeros((2, 0, 32, 32)), np.zeros((2, 0, 32, 32))),
    (np.zeros((1, 32, 32)), np.full((1, 32, 32), np.nan)),
    (np.zeros((1, 32, 32), complex), np.zeros((1, 32, 32), complex)),
]


@pytest.mark.parametrize("real_NHW, fake_NHW", BAD)
@pytest.mark.parametrize("score", [metrics.sliced_wasserstein, metrics.top_octave_ratio])
def test_sets_that_cannot_be_compared_are_refused(score, real_NHW, fake_NHW):
    with pytest.raises(ValueError, match="must"):
        score(real_NHW, fake_NHW)


@pytest.mark.parametrize("px", [8, 24, 48])
def test_a_size_that_does_not_halve_down_to_16_is_refused(px):
    with pytest.raises(ValueError, match=f"got {px} px"):
        metrics.sliced_wasserstein(made(1, px), made(1, px))


def test_a_ratio_to_nothing_is_refused():
    with pytest.raises(ValueError, match="no power"):
        metrics.top_octave_ratio(np.ones((1, 16, 16)), made(1, 16))
