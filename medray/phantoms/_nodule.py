"""A lung nodule as CT shows it, with the signs by which radiologists describe it.

Density: solid, calcified (part of it as bright as bone), ground glass (a haze through which vessels
show) or part solid (a haze with a solid core). Margin: smooth, spiculated (rays run into the lung)
or lobulated (lobes with notches between them). Values are Hounsfield units, air -1000, water 0.
"""

from dataclasses import dataclass

import numpy as np

from medray.phantoms._field import Draws, Field, ellipse, hump, step

# In the order in which a nodule is called by the first that applies; SMOOTH where none does.
CALCIFIED, GROUND_GLASS, PART_SOLID = "calcification", "ground_glass", "part_solid"
SPICULATED, LOBULATED, SMOOTH = "spiculation", "lobulation", "solid_smooth"
SIGNS = (CALCIFIED, GROUND_GLASS, PART_SOLID, SPICULATED, LOBULATED)

# Shares as among 2,274 nodules of LIDC-IDRI (see the project's data); lobes go with spicules.
CALCIFIED_SHARE, GROUND_GLASS_SHARE, PART_SOLID_SHARE = 0.13, 0.09, 0.07
SPICULATED_SHARE, LOBULATED_WITH, LOBULATED_WITHOUT = 0.08, 0.5, 0.05

SPICULES, LOBES = (9, 15), (3, 5)
# Half the width over which a scanner blurs an edge, in half picture widths.
BLUR = 0.03


@dataclass(frozen=True)
class Nodule:
    """What one nodule is like; lengths in half picture widths, densities in Hounsfield units."""

    labels: dict[str, int | None]
    centre: tuple[float, float]
    radius: float
    stretch: float
    turn: float
    density: float
    haze: float
    calcium: tuple[float, float]
    core: tuple[float, float, float]
    spicules: tuple[tuple[float, float, float], ...]
    lobes: tuple[tuple[float, float, float], ...]

    @classmethod
    def of(cls, d: Draws) -> "Nodule":
        """The nodule of one image."""
        labels = _signs(d)
        large = any(labels[n] for n in (GROUND_GLASS, PART_SOLID, SPICULATED, LOBULATED))
        size = (0.15, 0.30) if large else (0.08, 0.13) if labels[CALCIFIED] else (0.08, 0.20)
        return cls(
            labels=labels,
            centre=(d.around(0.0, 0.05), d.around(0.0, 0.05)),
            radius=d.between(*size),
            stretch=d.between(1.0, 1.3),
            turn=d.between(0.0, np.pi),
            density=d.around(30.0, 50.0),
            haze=d.between(190.0, 340.0),
            calcium=(d.between(650.0, 1100.0), d.between(0.55, 0.95)),
            core=(d.around(0.0, 0.25), d.around(0.0, 0.25), d.between(0.32, 0.48)),
            spicules=_spicules(d) if labels[SPICULATED] else (),
            lobes=_lobes(d) if labels[LOBULATED] else (),
        )

    @property
    def ill_defined(self) -> bool:
        """Whether it is a haze, with a core or without."""
        return bool(self.labels[GROUND_GLASS] or self.labels[PART_SOLID])

    @property
    def label(self) -> str:
        """The first sign in the order of SIGNS."""
        return next((name for name in SIGNS if self.labels[name]), SMOOTH)


def _signs(d: Draws) -> dict[str, int | None]:
    place = d.between(0.0, 1.0)
    edges = np.cumsum((CALCIFIED_SHARE, GROUND_GLASS_SHARE, PART_SOLID_SHARE))
    spiculated = d.chance(SPICULATED_SHARE)
    lobulated = d.chance(LOBULATED_WITH if spiculated else LOBULATED_WITHOUT)
    shown = {
        CALCIFIED: place < edges[0],
        GROUND_GLASS: edges[0] <= place < edges[1],
        PART_SOLID: edges[1] <= place < edges[2],
        SPICULATED: spiculated,
        LOBULATED: lobulated,
    }
    labels: dict[str, int | None] = {name: int(flag) for name, flag in shown.items()}
    return labels | {SMOOTH: int(not any(shown.values()))}


def _spicules(d: Draws) -> tuple[tuple[float, float, float], ...]:
    """(angle, reach in radii, half width in radii) of the rays, about evenly round."""
    count = SPICULES[0] + int(d.between(0, SPICULES[1] - SPICULES[0] + 1))
    first = d.between(0.0, 2 * np.pi)
    return tuple(
        (
            first + (number + d.between(-0.4, 0.4)) * 2 * np.pi / count,
            1.35 + 1.3 * d.between(0.0, 1.0) ** 2,
            d.between(0.10, 0.17),
        )
        for number in range(count)
    )


def _lobes(d: Draws) -> tuple[tuple[float, float, float], ...]:
    """(u, v, radius) of the lobes round the middle, in radii; none like another."""
    count = LOBES[0] + int(d.between(0, LOBES[1] - LOBES[0] + 1))
    first = d.between(0.0, 2 * np.pi)
    found = []
    for number in range(count):
        angle = first + (number + d.between(-0.25, 0.25)) * 2 * np.pi / count
        radius = d.between(0.40, 0.62)
        far = 1.12 - radius
        found.append((far * np.cos(angle), far * np.sin(angle), radius))
    return tuple(found)


def outline(nodule: Nodule, x: Field, y: Field, uneven: Field) -> Field:
    """Distance from the middle in radii: 1 on the border, lobes included; spicules are not."""
    u, v = (x - nodule.centre[0]) / nodule.radius, (y - nodule.centre[1]) / nodule.radius
    across = nodule.stretch**0.5
    body = (0.66, 0.66) if nodule.lobes else (across, 1 / across)
    r = np.sqrt(ellipse(u, v, (0.0, 0.0), body, nodule.turn))
    for at_u, at_v, radius in nodule.lobes:
        r = np.minimum(r, np.sqrt(ellipse(u, v, (at_u, at_v), (radius, radius))))
    roughness = 0.12 if nodule.ill_defined or nodule.labels[SPICULATED] else 0.03
    return np.asarray(r + roughness * uneven)


def rays(nodule: Nodule, x: Field, y: Field) -> Field:
    """0 to 1: the spicules, thick at the border and gone at their ends."""
    u, v = (x - nodule.centre[0]) / nodule.radius, (y - nodule.centre[1]) / nodule.radius
    found = np.zeros(np.broadcast_shapes(u.shape, v.shape))
    for angle, reach, half in nodule.spicules:
        along = u * np.cos(angle) + v * np.sin(angle)
        aside = v * np.cos(angle) - u * np.sin(angle)
        left = np.clip((reach - along) * (1 / (reach - 0.6)), 0.0, 1.0) * (along > 0)
        np.maximum(found, hump(aside, half) * left, out=found)
    return found


def with_nodule(
    nodule: Nodule, lung: Field, x: Field, y: Field, uneven: Field, mottle: Field
) -> tuple[Field, Field]:
    """(the lung with the nodule in it, how much of a pixel belongs to the nodule)."""
    r = outline(nodule, x, y, uneven)
    inside = step(1.0 - r, 2 * BLUR / nodule.radius)
    if nodule.ill_defined:
        return _hazy(nodule, lung, r, x, y, uneven, mottle), inside
    solid = np.maximum(inside, 0.8 * rays(nodule, x, y))
    level = np.maximum(lung, lung + (nodule.density - lung) * solid)
    if nodule.labels[CALCIFIED]:
        peak, share = nodule.calcium
        stone = step(share - r + 0.05 * mottle, 2 * BLUR / nodule.radius)
        level = level + (peak - level) * stone
    return np.asarray(level), inside


def _hazy(
    nodule: Nodule, lung: Field, r: Field, x: Field, y: Field, uneven: Field, mottle: Field
) -> Field:
    """Ground glass, with a solid core where the nodule is part solid."""
    haze = step(1.0 - r, 0.7) * (1 + 0.2 * mottle) + 0.5 * rays(nodule, x, y)
    # Added to what is there: vessels show through.
    level = np.minimum(lung + nodule.haze * haze, np.maximum(lung, nodule.density))
    if not nodule.labels[PART_SOLID]:
        return np.asarray(level)
    off_x, off_y, share = nodule.core
    size = share * nodule.radius
    at = (nodule.centre[0] + off_x * size, nodule.centre[1] + off_y * size)
    away = np.sqrt(ellipse(x, y, at, (size, size))) + 0.15 * uneven
    return np.asarray(level + (nodule.density - level) * step(1 - away, 2 * BLUR / size))
