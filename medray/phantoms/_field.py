"""What both phantoms are drawn with: numbers of an address, grids, smooth shapes, noise, film.

A field is a float64 array (S, S) over a square picture; x runs from -1 (left) to 1 (right), y from
-1 (top) to 1 (bottom). Everything is float64, so that libraries which differ in the last bit of a
double still give the same 8-bit picture.

Shape letters: S pixels a side of the drawing, K cells of a noise lattice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from medray import rng

Field = NDArray[np.float64]

# A small picture is a larger one, averaged down; from 256 px on the softest edge spans two pixels.
_LEAST_DRAWN_PX, _FINE_ENOUGH_PX = 96, 256
MIN_PX, MAX_PX = 8, 2048

# More than the most eventful picture takes.
UNIFORMS = 128


class Draws:
    """Numbers of one address, taken one after the other: 128 uniform, then `normals` normal."""

    def __init__(self, seed: int, stream: str, index: int, normals: int = 0) -> None:
        self._left: Iterator[float] = iter(rng.uniforms(seed, stream, index, UNIFORMS).tolist())
        self._normals = rng.normals(seed, stream, index, normals, start=UNIFORMS).astype(np.float64)

    def between(self, low: float, high: float) -> float:
        """Evenly spread over [low, high)."""
        return low + (high - low) * next(self._left)

    def around(self, mean: float, reach: float) -> float:
        """Bell-shaped about the mean and never further away than the reach."""
        return mean + reach * (sum(next(self._left) for _ in range(3)) * (2 / 3) - 1)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return next(self._left) < probability

    def sign(self) -> float:
        """-1 or 1."""
        return -1.0 if self.chance(0.5) else 1.0

    def normals(self, count: int) -> Field:
        """The next standard normal numbers, (count,)."""
        taken, self._normals = self._normals[:count], self._normals[count:]
        assert len(taken) == count, f"{count} normals wanted, {len(taken)} left: draw more"
        return taken


@dataclass(frozen=True)
class Canvas:
    """A square drawing of `size_px` pixels, drawn `finer` times as fine."""

    size_px: int
    finer: int

    @classmethod
    def of(cls, size_px: int) -> "Canvas":
        """The drawing for a picture size; ValueError outside MIN_PX to MAX_PX."""
        if not MIN_PX <= size_px <= MAX_PX:
            raise ValueError(f"size_px must be {MIN_PX} to {MAX_PX}, got {size_px}")
        finer = 1 if size_px >= _FINE_ENOUGH_PX else max(2, -(-_LEAST_DRAWN_PX // size_px))
        return cls(size_px, finer)

    @property
    def drawn_px(self) -> int:
        """Pixels a side of the fine drawing."""
        return self.size_px * self.finer

    def grid(self) -> tuple[Field, Field]:
        """x (1, S) and y (S, 1) of the fine drawing's pixel centres."""
        axis: Field = (np.arange(self.drawn_px, dtype=np.float64) + 0.5) * (2 / self.drawn_px) - 1
        return axis[None, :], axis[:, None]

    def reduce(self, field: Field) -> Field:
        """The mean of each block of the fine drawing: (size_px, size_px)."""
        blocks = field.reshape(self.size_px, self.finer, self.size_px, self.finer)
        return np.asarray(blocks.mean(axis=(1, 3)))

    def noise(self, draws: Draws, cells: int) -> Field:
        """Smooth noise of unit variance, a cubic spline of (cells + 3)^2 normals."""
        lattice_KK = draws.normals(lattice(cells)).reshape(cells + 3, cells + 3)
        spline_SK = spline(self.drawn_px, cells)
        return np.asarray(spline_SK @ lattice_KK @ spline_SK.T)


def lattice(cells: int) -> int:
    """How many normals a noise of so many cells takes."""
    return (cells + 3) ** 2


@lru_cache(maxsize=64)
def spline(points: int, cells: int) -> Field:
    """Uniform cubic B-spline basis (points, cells + 3), scaled so that noise has unit variance."""
    place = (np.arange(points) + 0.5) * cells / points
    cell = np.minimum(place.astype(np.int64), cells - 1)
    t = place - cell
    weights = np.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1
    )
    basis = np.zeros((points, cells + 3))
    np.put_along_axis(basis, cell[:, None] + np.arange(4), weights, axis=1)
    basis /= np.sqrt((basis**2).sum(axis=1).mean())
    basis.setflags(write=False)
    return basis


def step(field: Field, width: float) -> Field:
    """0 below -width / 2, 1 above width / 2, a smooth cubic between."""
    t = field * (1 / width)
    t += 0.5
    np.maximum(t, 0.0, out=t)
    np.minimum(t, 1.0, out=t)
    smooth = t * -2
    smooth += 3
    smooth *= t
    smooth *= t
    return np.asarray(smooth)


def within(*edges: tuple[Field, float]) -> Field:
    """1 where each field is positive, 0 where one is negative, over that field's width: (f, w)."""
    nearest = edges[0][0] * (1 / edges[0][1])
    for field, width in edges[1:]:
        np.minimum(nearest, field * (1 / width), out=nearest)
    return step(nearest, 1.0)


def fade(value: float, width: float) -> float:
    """`step` of one number."""
    return float(step(np.array([value]), width)[0])


def hump(field: Field, width: float) -> Field:
    """A smooth bump about 0 that ends at +-width: (1 - (f / width)^2)^2."""
    t = field * (1 / width)
    t *= t
    np.subtract(1, t, out=t)
    np.maximum(t, 0.0, out=t)
    t *= t
    return np.asarray(t)


def ellipse(
    u: Field, v: Field, centre: tuple[float, float], radii: tuple[float, float], turn: float = 0.0
) -> Field:
    """Squared distance from the centre in radii: 1 on the rim of the ellipse turned by `turn`."""
    cos, sin = np.cos(turn), np.sin(turn)
    along = u * (cos / radii[0]) if turn == 0 else u * (cos / radii[0]) + v * (sin / radii[0])
    across = v * (cos / radii[1]) if turn == 0 else v * (cos / radii[1]) - u * (sin / radii[1])
    along -= (centre[0] * cos + centre[1] * sin) / radii[0]
    across -= (centre[1] * cos - centre[0] * sin) / radii[1]
    along *= along
    across *= across
    along += across
    return np.asarray(along)


def dome(squared: Field) -> Field:
    """Path length through an ellipsoid, 1 in the middle, from `ellipse`'s squared distance."""
    left = 1 - squared
    np.maximum(left, 0.0, out=left)
    return np.asarray(np.sqrt(left, out=left))


def with_grain(field: Field, seed: int, stream: str, index: int, grain: float) -> NDArray[np.uint8]:
    """0..1 to 0..255, clipped and rounded, with noise of deviation `grain` at 256 px and more.

    A coarser pixel gathers more of the signal: its noise falls with its side.
    """
    size_px = len(field)
    noise = rng.normals(seed, stream, index, field.size).reshape(field.shape)
    seen = field + noise * (grain * min(size_px / 256, 1.0))
    grey: NDArray[np.uint8] = np.rint(np.clip(seen, 0.0, 1.0) * 255).astype(np.uint8)
    return grey
