"""Views of patches: cut where they should be, changed as published, a function of their address."""

from __future__ import annotations

import itertools
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from medray import rng
from medray.errors import DataError
from medray.stream import views
from medray.stream.views import PLACES, Views, cut_of

IN_ORDER = np.arange(PLACES)


def frames(px: int, count: int = 3, channels: int = 1, bits: int = 8) -> npt.NDArray[Any]:
    drawn = rng.integers(1, "test.frames", 0, count * channels * px * px, 0, 2**bits)
    return drawn.reshape(count, channels, px, px).astype(np.uint8 if bits == 8 else np.uint16)


def made(maker: Views, given: npt.NDArray[Any], numbers: list[int], order: Any = IN_ORDER) -> Any:
    numbers_N = np.array(numbers)
    orders_NS = np.tile(np.asarray(order), (len(numbers), 1))
    return maker.make(given, numbers_N % len(given), numbers_N, orders_NS)


@pytest.mark.parametrize(
    ("px", "wanted"),
    [(256, (85, 64, 9, 6, 64)), (128, (42, 32, 4, 3, 32)), (64, (21, 16, 2, 1, 32))],
)
def test_cells_patches_offsets_and_shifts_have_the_published_shares(
    px: int, wanted: tuple[int, ...]
) -> None:
    cut = cut_of(px)
    got = (cut.cell_px, cut.patch_px, cut.offset_px, cut.shift_px, cut.view_px)
    assert got == wanted
    assert cut.patch_px + cut.offset_px < cut.cell_px, "patches of neighbours never touch"
    whole = cut_of(px, gap=False)
    assert (whole.patch_px, whole.offset_px) == (whole.cell_px, 0)


def test_frames_too_small_for_cells_of_8_px_are_refused() -> None:
    assert cut_of(24).cell_px == 8
    with pytest.raises(DataError, match="frames of 23 px .* cells of 8 px"):
        cut_of(23)


@pytest.mark.parametrize(("channels", "bits"), [(1, 8), (3, 8), (1, 16)])
def test_unchanged_views_are_the_patches_themselves_each_in_its_cell(
    channels: int, bits: int
) -> None:
    cut, given = cut_of(128), frames(128, channels=channels, bits=bits)
    got = made(Views(cut, seed=4, augment=False), given, list(range(6)))
    offsets = set()
    for number, place in itertools.product(range(6), range(PLACES)):
        row, column = divmod(place, 3)
        found = []
        for dy, dx in itertools.product(range(cut.offset_px + 1), repeat=2):
            top, left = row * cut.cell_px + dy, column * cut.cell_px + dx
            patch = given[number % 3, :, top : top + cut.patch_px, left : left + cut.patch_px]
            if np.allclose(got[number, place], patch / (2**bits - 1) * 2 - 1, atol=1e-5):
                found.append((dy, dx))
        assert len(found) == 1
        offsets.update(found)
    assert len(offsets) > 12, "offsets are drawn"


def test_a_shuffled_puzzle_shows_the_same_views_in_other_places() -> None:
    order = [3, 1, 4, 0, 5, 8, 2, 6, 7]
    maker, given = Views(cut_of(96), seed=2), frames(96)
    straight, shuffled = made(maker, given, [5, 6]), made(maker, given, [5, 6], order)
    np.testing.assert_array_equal(shuffled, straight[:, order])
    assert not np.array_equal(shuffled, straight)


def test_a_view_is_a_function_of_its_address_whatever_stands_beside_it() -> None:
    maker, given = Views(cut_of(96), seed=2), frames(96)
    together = made(maker, given, [3, 10, 2**40])
    np.testing.assert_array_equal(made(Views(cut_of(96), seed=2), given, [10]), together[1:2])
    other = made(Views(cut_of(96), seed=3), given, [10])
    assert not np.array_equal(other, together[1:2])
    apart = made(Views(cut_of(96), seed=2, stream="another"), given, [10])
    assert not np.array_equal(apart, together[1:2])


def test_the_fused_warp_is_opencvs() -> None:
    cut, given = cut_of(128), frames(128)
    maker = Views(cut, seed=7, noise=0)
    numbers_N = np.arange(40)
    orders_NS = np.tile(IN_ORDER, (40, 1))
    got = maker.make(given, numbers_N % 3, numbers_N, orders_NS)
    maps_NS6, gains_NS, _, corners_NS2 = maker._drawn(numbers_N, orders_NS)
    for number, place in itertools.product(range(40), range(PLACES)):
        yy, yx, y0, xy, xx, x0 = maps_NS6[number, place]
        top, left = corners_NS2[number, place]
        patch = given[number % 3, 0, top : top + 32, left : left + 32].astype(np.float32) / 255
        # OpenCV's points are (x, y); it rounds places to 1/32 px, so the image is smoothed first.
        matrix = np.array([[xx, xy, x0], [yx, yy, y0]])
        wanted = cv2.warpAffine(patch, matrix, (32, 32), flags=cv2.WARP_INVERSE_MAP | 1)
        difference = (got[number, place, 0] + 1) / 2 - wanted * gains_NS[number, place]
        assert float(np.abs(difference).max()) < 0.07 and float(np.abs(difference).mean()) < 0.01


def test_turns_shifts_zooms_gains_and_noise_are_drawn_as_published() -> None:
    cut, flat = cut_of(256), np.full((1, 1, 256, 256), 128, np.uint8)
    maker = Views(cut, seed=0, noise=0.1)
    numbers_N = np.arange(400)
    maps_NS6, gains_NS, _, _ = maker._drawn(numbers_N, np.tile(IN_ORDER, (400, 1)))
    yy, yx = maps_NS6[..., 0], maps_NS6[..., 1]
    turns = np.round(np.degrees(np.arctan2(yx, yy))).astype(int)
    zooms = np.round(1 / np.hypot(yy, yx), 3)
    for values, wanted in ((turns, (-15, 0, 15)), (zooms, (1.0, 1.1))):
        names, counts = np.unique(values, return_counts=True)
        assert names.tolist() == pytest.approx(wanted)
        assert counts.min() > 0.85 * counts.mean()
    half = (cut.view_px - 1) / 2
    centre_y = half - (maps_NS6[..., :2].sum(-1) * half + maps_NS6[..., 2])
    straight = np.round(zooms * centre_y, 2)[turns == 0]
    assert np.unique(np.abs(straight)).tolist() == [0, 6]
    assert 0.85 <= gains_NS.min() < 0.86 and 1.14 < gains_NS.max() <= 1.15
    middle = made(maker, flat, list(range(300)))[..., 24:40, 24:40].astype(np.float64)
    inside = (middle + 1) / 2
    gain_var = (128 / 255) ** 2 * 0.3**2 / 12
    assert inside.mean() == pytest.approx(128 / 255, abs=0.005)
    assert inside.std() == pytest.approx(np.sqrt(gain_var + 0.1**2), rel=0.02)


def test_noise_of_two_views_is_not_the_same_noise() -> None:
    flat = np.full((1, 1, 96, 96), 128, np.uint8)
    got = made(Views(cut_of(96), seed=0), flat, list(range(20)))
    middles = got[..., 8:24, 8:24].reshape(20 * PLACES, -1).astype(np.float64)
    likeness = np.corrcoef(middles) - np.eye(len(middles))
    assert np.abs(likeness).max() < 0.4
    assert views.NOISE_DRAWS > 3 * views.cut_of(512).view_px ** 2
