"""MS-SSIM against a loop over windows, known values, and images made worse by known amounts."""

import math

import numpy as np
import pytest
from scipy import ndimage

from medray import phantoms
from medray.metrics import structural
from medray.metrics.structural import ms_ssim


@pytest.fixture(scope="module")
def films_NHW():
    return np.stack([phantoms.chest(0, index, 64).image for index in range(6)])


def ssim_loop(first, second):
    """(SSIM, contrast part) by Wang et al. 2004, window by window."""
    weight = np.array(
        [[math.exp(-(x * x + y * y) / 4.5) for x in range(-5, 6)] for y in range(-5, 6)]
    )
    weight /= weight.sum()
    whole, contrast = [], []
    for top in range(first.shape[0] - 10):
        for left in range(first.shape[1] - 10):
            a, b = (
                image[top : top + 11, left : left + 11].astype(float) for image in (first, second)
            )
            mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
            var_a, var_b = (weight * (a - mean_a) ** 2).sum(), (weight * (b - mean_b) ** 2).sum()
            both = (weight * (a - mean_a) * (b - mean_b)).sum()
            contrast.append((2 * both + 58.5225) / (var_a + var_b + 58.5225))
            light = (2 * mean_a * mean_b + 6.5025) / (mean_a**2 + mean_b**2 + 6.5025)
            whole.append(light * contrast[-1])
    return np.mean(whole), np.mean(contrast)


def ms_ssim_loop(first, second):
    terms = [ssim_loop(first, second)]
    while len(terms) < 5 and min(first.shape) // 2 >= 11:
        first, second = (
            np.array(
                [
                    [
                        image[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean()
                        for x in range(image.shape[1] // 2)
                    ]
                    for y in range(image.shape[0] // 2)
                ]
            )
            for image in (first.astype(float), second.astype(float))
        )
        terms.append(ssim_loop(first, second))
    weights = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333][: len(terms)]
    values = [max(contrast, 0) for _, contrast in terms[:-1]] + [max(terms[-1][0], 0)]
    return math.prod(v ** (w / sum(weights)) for v, w in zip(values, weights, strict=True))


@pytest.mark.parametrize("shape", [(11, 11), (16, 13), (23, 31), (45, 44)])
def test_a_score_equals_a_loop_over_windows(shape):
    generator = np.random.default_rng(0)
    first_NHW = generator.integers(0, 256, (3, *shape), np.uint8)
    second_NHW = np.clip(first_NHW + generator.normal(size=first_NHW.shape) * 30, 0, 255)
    expected = [ms_ssim_loop(a, b) for a, b in zip(first_NHW, second_NHW, strict=True)]
    np.testing.assert_allclose(ms_ssim(first_NHW, second_NHW), expected, rtol=1e-9)


@pytest.mark.parametrize(
    "px, scales", [(11, 1), (21, 1), (22, 2), (64, 3), (175, 4), (176, 5), (1024, 5)]
)
def test_there_are_as_many_scales_as_the_size_allows(px, scales):
    assert len(structural._sizes(px)) == scales


def test_an_image_is_like_itself_and_less_like_others_and_worse_ones(films_NHW):
    np.testing.assert_allclose(ms_ssim(films_NHW, films_NHW), 1)
    assert (ms_ssim(films_NHW, np.roll(films_NHW, 1, axis=0)) < 0.9).all()
    noise_NHW = np.random.default_rng(0).normal(size=films_NHW.shape)
    for worse in (
        lambda k: ndimage.gaussian_filter(films_NHW.astype(float), (0, 0.7 * k, 0.7 * k)),
        lambda k: films_NHW + 10 * k * noise_NHW,
    ):
        means = [ms_ssim(films_NHW, worse(k)).mean() for k in range(5)]
        assert means == sorted(means, reverse=True) and means[4] < 0.9


def test_a_negative_is_not_like_its_image(films_NHW):
    assert (ms_ssim(films_NHW, 255 - films_NHW) < 0.1).all()


def test_scores_do_not_depend_on_the_scale_of_values_or_on_how_many_are_in_work(
    films_NHW, monkeypatch
):
    first_NHW, second_NHW = films_NHW[:3], films_NHW[3:]
    whole_N = ms_ssim(first_NHW, second_NHW)
    np.testing.assert_allclose(ms_ssim(first_NHW / 255, second_NHW / 255, peak=1.0), whole_N)
    monkeypatch.setattr(structural, "_PIXELS_AT_ONCE", 1)
    np.testing.assert_array_equal(ms_ssim(first_NHW, second_NHW), whole_N)
    assert ms_ssim(first_NHW[:0], second_NHW[:0]).shape == (0,)


BAD = [
    (np.zeros((1, 10, 16)), np.zeros((1, 10, 16)), 255, "at least 11 px"),
    (np.zeros((1, 16, 16)), np.zeros((2, 16, 16)), 255, "one shape"),
    (np.zeros((16, 16)), np.zeros((16, 16)), 255, "one shape"),
    (np.zeros((1, 16, 16)), np.full((1, 16, 16), np.nan), 255, "finite"),
    (np.zeros((1, 16, 16)), np.zeros((1, 16, 16)), 0, "above 0"),
]


@pytest.mark.parametrize("first, second, peak, message", BAD)
def test_pairs_that_cannot_be_compared_are_refused(first, second, peak, message):
    with pytest.raises(ValueError, match=message):
        ms_ssim(first, second, peak)
