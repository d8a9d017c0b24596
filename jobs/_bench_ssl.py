"""The row `views` of `bench.py --suite ssl`: views of patches a second and core, against MONAI.

Ours is one fused pass a view. The other is a MONAI Compose of the same distribution: random crop of
the cell, one of the 54 affine maps (turn, zoom and moves in one, which is MONAI's faster way: in a
chain each would resample and cut again), intensity, noise. Both take the same cells of the same
frames; before they are timed, means, spreads, mean view and where views vary, over many draws of a
constant and of a smooth frame, must agree.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from medray import rng
from medray.stream.views import PLACES, SHIFTS, SIDE, TURNS_DEG, ZOOMS, Cut, Views, cut_of

ROWS = ("views",)
FRAME_PX, FRAMES, PUZZLES, CHECKED = 256, 8, 32, 150
NOISE = 0.1

Case = tuple[str, str, float, Callable[[], float], Callable[[], float], Callable[[], None]]
Floats = npt.NDArray[np.float32]


def rows(rounds: int) -> Iterator[Case]:
    """The row: name, against what, target, a timed round of each in views/s, and the check."""
    import torch

    # Of a core each: neither may use another.
    torch.set_num_threads(1)
    cut, frames_FCHW = cut_of(FRAME_PX), smooth_frames()
    maker, chain = Views(cut, seed=0, noise=NOISE), compose(cut)
    ours = functools.partial(fused, maker, frames_FCHW)
    theirs = functools.partial(chained, chain, cut, frames_FCHW)
    # The first call compiles.
    ours(0)
    yield (
        "views",
        "MONAI Compose of the same distribution, one thread each",
        10.0,
        rate(ours, PUZZLES),
        rate(theirs, 1),
        functools.partial(check, maker, chain, cut),
    )


def fused(maker: Views, frames_FCHW: npt.NDArray[np.uint8], first: int) -> Floats:
    """Views (PUZZLES * 9, p, p) by our warp."""
    number_N = np.arange(first, first + PUZZLES)
    orders_NS = np.tile(np.arange(PLACES), (PUZZLES, 1))
    made = maker.make(frames_FCHW, number_N % len(frames_FCHW), number_N, orders_NS)
    return made.reshape(-1, *made.shape[-2:])


def chained(chain: Any, cut: Cut, frames_FCHW: npt.NDArray[np.uint8], first: int) -> Floats:
    """Views (9, p, p) of one frame by MONAI's chain."""
    frame = frames_FCHW[first % len(frames_FCHW)]
    return np.stack([np.asarray(chain(cell))[0] for cell in cells(frame, cut)])


def cells(frame_CHW: npt.NDArray[np.uint8], cut: Cut) -> list[Floats]:
    """Where each of a frame's nine patches may lie, (1, R, R) in [0, 1]."""
    room = cut.patch_px + cut.offset_px
    corners = itertools.product(range(0, SIDE * cut.cell_px, cut.cell_px), repeat=2)
    unit_CHW: Floats = frame_CHW.astype(np.float32) / np.float32(255)
    return [unit_CHW[:, top : top + room, left : left + room] for top, left in corners]


def compose(cut: Cut) -> Any:
    """The chain: cell -> patch in [-1, 1]."""
    # MONAI's package does not say which names it exports.
    monai: Any = importlib.import_module("monai.transforms")

    def warp(turn: float, down: float, right: float, zoom: float) -> Any:
        # MONAI maps what comes out to what goes in, so its factors are the other way round.
        return monai.Affine(
            rotate_params=np.deg2rad(turn),
            translate_params=(-down / zoom, -right / zoom),
            scale_params=(1 / zoom, 1 / zoom),
            padding_mode="zeros",
            image_only=True,
        )

    moves = [by * cut.shift_px for by in SHIFTS]
    warps = [warp(*each) for each in itertools.product(TURNS_DEG, moves, moves, ZOOMS)]
    chain = monai.Compose(
        [
            monai.RandSpatialCrop((cut.patch_px, cut.patch_px), random_size=False),
            monai.OneOf(warps),
            monai.RandScaleIntensity(0.15, prob=1.0),
            monai.RandGaussianNoise(prob=1.0, std=NOISE, sample_std=False),
            monai.ScaleIntensityRange(0, 1, -1, 1),
        ]
    )
    return chain.set_random_state(0)


def smooth_frames() -> npt.NDArray[np.uint8]:
    """Frames of slow waves, that interpolation once or thrice does not blur, (F, 1, H, W)."""
    y, x = np.mgrid[0:FRAME_PX, 0:FRAME_PX] * (2 * np.pi / FRAME_PX)
    phases_F4 = 2 * np.pi * rng.uniforms(0, "bench.frames", np.arange(FRAMES), 4)
    frames = [
        128 + 55 * np.sin(3 * y + a) * np.cos(2 * x + b) + 45 * np.sin(4 * x + c + d * y / 7)
        for a, b, c, d in phases_F4
    ]
    return np.stack(frames)[:, None].astype(np.uint8)


def rate(make: Callable[[int], Floats], puzzles: int) -> Callable[[], float]:
    """A round of `make` in views a second of this process's time, other frames each round."""
    first = [0]

    def timed() -> float:
        start_s = time.process_time()
        made = make(first[0])
        first[0] += puzzles
        return len(made) / (time.process_time() - start_s)

    return timed


def check(maker: Views, chain: Any, cut: Cut) -> None:
    """Both draw the same distribution: AssertionError where moments over many draws differ."""
    flat = np.full((1, 1, FRAME_PX, FRAME_PX), 128, np.uint8)
    for frames_FCHW, spread in ((flat, True), (smooth_frames()[:1], False)):
        one = _draws(lambda n, f=frames_FCHW: fused(maker, f, n), PUZZLES)  # type: ignore[misc]
        other = _draws(lambda n, f=frames_FCHW: chained(chain, cut, f, n), 1)  # type: ignore[misc]
        means = [side.mean(0) for side in (one, other)]
        stds = [side.std(0) for side in (one, other)]
        # Nine cells of so many draws: a mean over the patch is known to about half a percent.
        assert abs(one.mean() - other.mean()) < 0.02, "the means differ"
        assert abs(one.std() / other.std() - 1) < 0.03, "the spreads differ"
        assert _likeness(*means) > 0.98, "the mean views differ"
        assert _likeness(*stds) > 0.98, "where views vary differs"
        if spread:
            middle = slice(cut.patch_px // 2 - 8, cut.patch_px // 2 + 8)
            gain_std, noise_std = 2 * 128 / 255 * 0.3 / 12**0.5, 2 * NOISE
            for side in (one, other):
                got = float(side[..., middle, middle].std())
                assert abs(got / np.hypot(gain_std, noise_std) - 1) < 0.03, f"spread {got}"


def _draws(make: Callable[[int], Floats], step: int) -> Floats:
    """Views of CHECKED puzzles, (CHECKED * 9, p, p)."""
    return np.concatenate([make(first) for first in range(0, CHECKED, step)])


def _likeness(one: Floats, other: Floats) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
