"""How a chest film is taken: the patient's position, the window, shutters, the lead marker.

x and y run over the film, u and v over the patient (see `_chest`).
"""

from dataclasses import dataclass

import numpy as np

from medray.phantoms._field import Draws, Field

# The letter that radiographers place on the patient's right, which is the left of the film.
_LETTER_R = ("11110", "10001", "10001", "11110", "10100", "10010", "10001")
_LETTER_CELL = 0.018


@dataclass(frozen=True)
class Exposure:
    """How one film was taken: the patient's position, the window, the shutters, the marker."""

    turn: float
    shift: tuple[float, float]
    zoom: float
    dark: float
    bright: float
    gamma: float
    shutter: tuple[float, float, float, float]
    marker: tuple[float, float] | None
    gas: float

    @classmethod
    def of(cls, d: Draws) -> "Exposure":
        """The exposure of one image."""
        return cls(
            turn=d.around(0.0, 0.09),
            shift=(d.around(0.0, 0.07), d.around(0.0, 0.07)),
            zoom=d.around(1.0, 0.10),
            dark=d.around(0.04, 0.09),
            bright=d.around(0.90, 0.08),
            gamma=d.between(0.85, 1.25),
            shutter=_shutter(d),
            marker=(d.between(-0.92, -0.80), d.between(-0.85, -0.55)) if d.chance(0.5) else None,
            gas=d.between(0.12, 0.34) if d.chance(0.55) else 0.0,
        )


def _shutter(d: Draws) -> tuple[float, float, float, float]:
    """Where the collimator's blades stand (left, right, top, bottom); 1 is the film's edge."""
    blades = [d.between(0.90, 1.0) if d.chance(0.15) else 1.1 for _ in range(4)]
    return blades[0], blades[1], blades[2], blades[3]


def positioned(exposure: Exposure, x: Field, y: Field, bend: Field) -> tuple[Field, Field]:
    """Film to patient coordinates; `bend` is a slight uneven stretch."""
    cos, sin = np.cos(exposure.turn) / exposure.zoom, np.sin(exposure.turn) / exposure.zoom
    u = cos * x + sin * y - exposure.shift[0] + 0.010 * bend
    v = cos * y - sin * x - exposure.shift[1] + 0.010 * bend
    return np.asarray(u), np.asarray(v)


def developed(exposure: Exposure, beam: Field, x: Field, y: Field) -> Field:
    """The beam's attenuation as grey on film, with marker and shutters."""
    grey = 1 - np.exp(-1.55 * np.maximum(beam, 0.0))
    grey = (grey - exposure.dark) * (1 / (exposure.bright - exposure.dark))
    grey = np.clip(grey, 0.0, 1.0) ** exposure.gamma
    if exposure.marker is not None:
        grey = np.maximum(grey, 0.95 * _marker(exposure.marker, x, y))
    left, right, top, bottom = exposure.shutter
    open_ = (x > -left) & (x < right) & (y > -top) & (y < bottom)
    return np.asarray(grey * open_)


def _marker(corner: tuple[float, float], x: Field, y: Field) -> Field:
    """1 on the lead letter whose upper left corner is given, 0 elsewhere."""
    cells = np.pad(np.array([list(map(int, row)) for row in _LETTER_R], np.float64), 1)
    row = np.clip(np.floor((y[:, 0] - corner[1]) / _LETTER_CELL) + 1, 0, cells.shape[0] - 1)
    column = np.clip(np.floor((x[0] - corner[0]) / _LETTER_CELL) + 1, 0, cells.shape[1] - 1)
    return np.asarray(cells[row.astype(np.intp)][:, column.astype(np.intp)])
