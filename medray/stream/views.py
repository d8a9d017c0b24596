"""Nine patches of a frame, shuffled and changed a little: one warp a view, from the frame itself.

Shape letters: N puzzles, S = 9 places of a puzzle, F frames, C channels, H = W pixels of a frame,
p pixels of a view, K draws of a view.

A frame is cut into 3 x 3 cells. Of each cell a smaller patch is taken at a random offset, so that
no edge goes on from one patch to the next, and is turned, moved, zoomed, made brighter or darker
and given noise (Manna et al., arXiv 2104.10481). All of it is one pass over the view's pixels:
where a pixel comes from is an affine map, and outside of the patch it is black. Every draw is an
address: (seed, number of the puzzle, cell).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medray import rng
from medray.errors import DataError
from medray.kernels._cpu import compiled

SIDE = 3
PLACES = SIDE * SIDE
SMALLEST_CELL_PX = 8
# Networks see at least so many pixels of a patch: smaller ones are enlarged by the same warp.
SMALLEST_VIEW_PX = 32
# The published pretext cuts 85 px cells of 256 px frames: patches of 64 px at offsets 0 to 9,
# moved by 6. Other frames have these shares of their cells.
PUBLISHED_CELL_PX, PUBLISHED_PATCH_PX, PUBLISHED_OFFSET_PX, PUBLISHED_SHIFT_PX = 85, 64, 9, 6
TURNS_DEG, SHIFTS, ZOOMS = (-15, 0, 15), (-1, 0, 1), (1.0, 1.1)
DIMMEST, BRIGHTEST = 0.85, 1.15
DRAWS = 8
OFFSET_Y, OFFSET_X, TURN, SHIFT_Y, SHIFT_X, ZOOM, GAIN, FIELD = range(DRAWS)
# Noise is drawn once; a view gets a stretch of it that begins anywhere.
NOISE_DRAWS = 2**18
STREAM = "jigsaw.views"

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Cut:
    """How frames of `frame_px` are cut: cells, patches in them, and the views made of those."""

    frame_px: int
    cell_px: int
    patch_px: int
    offset_px: int
    shift_px: int
    view_px: int


def cut_of(frame_px: int, *, gap: bool = True) -> Cut:
    """The cut of square frames; without `gap` a patch is its whole cell. DataError below 24 px."""
    cell_px = frame_px // SIDE
    if cell_px < SMALLEST_CELL_PX:
        raise DataError(
            f"frames of {frame_px} px cannot be cut into 3 x 3 cells of {SMALLEST_CELL_PX} px "
            "or more",
            code="MR-D110",
            hint=f"pack them at {SIDE * SMALLEST_CELL_PX} px or more (--size-px)",
        )

    def share(published_px: int) -> int:
        return round(published_px * cell_px / PUBLISHED_CELL_PX)

    patch_px = share(PUBLISHED_PATCH_PX) if gap else cell_px
    offset_px = share(PUBLISHED_OFFSET_PX) if gap else 0
    view_px = max(SMALLEST_VIEW_PX, patch_px)
    return Cut(frame_px, cell_px, patch_px, offset_px, share(PUBLISHED_SHIFT_PX), view_px)


class Views:
    """Makes the nine views of puzzles; `noise` is its standard deviation, of a range of 1.

    Without `augment` patches are cut at their random offsets and left as they are.
    """

    def __init__(
        self, cut: Cut, *, seed: int, noise: float = 0.1, augment: bool = True, stream: str = STREAM
    ) -> None:
        self.cut, self._seed, self._stream, self._augment = cut, seed, stream, augment
        drawn = rng.normals(seed, f"{STREAM}.noise", 0, NOISE_DRAWS)
        self._noise = drawn * np.float32(noise) if augment else np.zeros(0, np.float32)

    def make(
        self,
        frames_FCHW: Array,
        frame_N: npt.NDArray[np.int64],
        numbers_N: npt.NDArray[np.int64],
        orders_NS: npt.NDArray[np.int64],
    ) -> Floats:
        """Views (N, S, C, p, p) in about [-1, 1] of frames uint8 or uint16.

        Puzzle n is number `numbers_N[n]` of the run, made of frame `frame_N[n]`; its place s shows
        cell `orders_NS[n, s]`. A cell's draws do not depend on where it is shown.
        """
        count, channels, view_px = len(frame_N), frames_FCHW.shape[1], self.cut.view_px
        out = np.empty((count, PLACES, channels, view_px, view_px), np.float32)
        maps_NS6, gains_NS, fields_NS, corners_NS2 = self._drawn(numbers_N, orders_NS)
        scale = np.float32(1 / np.iinfo(frames_FCHW.dtype).max)
        patch_px = self.cut.patch_px
        _fill(frames_FCHW, frame_N, maps_NS6, corners_NS2, patch_px, gains_NS * scale, fields_NS,
              self._noise, out)  # fmt: skip
        return out

    def _drawn(
        self, numbers_N: npt.NDArray[np.int64], orders_NS: npt.NDArray[np.int64]
    ) -> tuple[Floats, Floats, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Affine maps, gains, where noise begins, and corners of the patches, by place."""
        cut = self.cut
        drawn = rng.uniforms(self._seed, self._stream, numbers_N, PLACES * DRAWS)
        cells_NSK = drawn.reshape(-1, PLACES, DRAWS)
        drawn_NSK = np.take_along_axis(cells_NSK, orders_NS[..., None], 1)
        offsets_NS2 = np.floor(drawn_NSK[..., : OFFSET_X + 1] * (cut.offset_px + 1))
        rows_NS, columns_NS = np.divmod(orders_NS, SIDE)
        corners_NS2 = np.stack([rows_NS, columns_NS], -1) * cut.cell_px + offsets_NS2
        if self._augment:
            maps_NS6 = self._maps(drawn_NSK)
            gains_NS = DIMMEST + (BRIGHTEST - DIMMEST) * drawn_NSK[..., GAIN]
        else:
            maps_NS6 = self._maps(np.full_like(drawn_NSK, 0.5), zoomed=False)
            gains_NS = np.ones_like(drawn_NSK[..., GAIN])
        room = max(1, NOISE_DRAWS - 3 * cut.view_px**2)
        fields_NS = (drawn_NSK[..., FIELD].astype(np.float64) * room).astype(np.int64)
        return maps_NS6, gains_NS, fields_NS, corners_NS2.astype(np.int64)

    def _maps(self, drawn_NSK: Floats, zoomed: bool = True) -> Floats:
        """Where a view's pixel (y, x) comes from in its patch: rows of (yy, yx, y0, xy, xx, x0).

        The patch is turned about its middle, then zoomed, then moved.
        """

        def chosen(values: tuple[float, ...], draw: int) -> Floats:
            at = np.floor(drawn_NSK[..., draw] * len(values)).astype(np.int64)
            return np.asarray(values, np.float32)[at]

        cut, enlarged = self.cut, self.cut.view_px / self.cut.patch_px
        half, middle = (cut.view_px - 1) / 2, (cut.patch_px - 1) / 2
        zoom = chosen(ZOOMS, ZOOM) if zoomed else np.float32(1)
        step = 1 / (enlarged * zoom)
        turn = chosen(TURNS_DEG, TURN) * np.float32(math.pi / 180)
        cos, sin = np.cos(turn) * step, np.sin(turn) * step
        half_y = half + chosen(SHIFTS, SHIFT_Y) * (cut.shift_px * enlarged)
        half_x = half + chosen(SHIFTS, SHIFT_X) * (cut.shift_px * enlarged)
        y0 = middle - cos * half_y - sin * half_x
        x0 = middle + sin * half_y - cos * half_x
        return np.stack([cos, sin, y0, -sin, cos, x0], -1).astype(np.float32)


@compiled
def _fill(
    frames_FCHW: Array,
    frame_N: Array,
    maps_NS6: Array,
    corners_NS2: Array,
    patch_px: int,
    gains_NS: Array,
    fields_NS: Array,
    noise: Array,
    out: Array,
) -> None:
    """Bilinear samples of the patches, black outside, times gains, plus noise; to [-1, 1]."""
    count, places, channels, view_px, _ = out.shape
    for n in range(count):
        for s in range(places):
            yy, yx, y0, xy, xx, x0 = maps_NS6[n, s]
            top, left = corners_NS2[n, s]
            for c in range(channels):
                patch = frames_FCHW[frame_N[n], c, top : top + patch_px, left : left + patch_px]
                gain = np.float32(2) * gains_NS[n, s]
                first = fields_NS[n, s] + c * view_px * view_px
                for i in range(view_px):
                    for j in range(view_px):
                        # One more, so that cutting off is rounding down.
                        y = yy * i + yx * j + y0 + np.float32(1)
                        x = xy * i + xx * j + x0 + np.float32(1)
                        value = np.float32(0)
                        if 0 < y < patch_px + 1 and 0 < x < patch_px + 1:
                            at_y, at_x = int(y), int(x)
                            dy, dx = y - np.float32(at_y), x - np.float32(at_x)
                            if 0 < at_y < patch_px and 0 < at_x < patch_px:
                                a = np.float32(patch[at_y - 1, at_x - 1])
                                b = np.float32(patch[at_y - 1, at_x])
                                d = np.float32(patch[at_y, at_x - 1])
                                e = np.float32(patch[at_y, at_x])
                            else:
                                a = b = d = e = np.float32(0)
                                if at_y > 0 and at_x > 0:
                                    a = np.float32(patch[at_y - 1, at_x - 1])
                                if at_y > 0 and at_x < patch_px:
                                    b = np.float32(patch[at_y - 1, at_x])
                                if at_y < patch_px and at_x > 0:
                                    d = np.float32(patch[at_y, at_x - 1])
                                if at_y < patch_px and at_x < patch_px:
                                    e = np.float32(patch[at_y, at_x])
                            upper, lower = a + dx * (b - a), d + dx * (e - d)
                            value = (upper + dy * (lower - upper)) * gain
                        if len(noise):
                            value += np.float32(2) * noise[first + i * view_px + j]
                        out[n, s, c, i, j] = value - np.float32(1)
