"""A square of a chest CT slice around a nodule: lung with vessels, chest wall with ribs, heart.

x and y run over the picture, about 90 mm wide; values are Hounsfield units until the window makes
grey of them. The lung is the inside of a large circle, the wall; `depth` is the distance beyond it.
"""

from dataclasses import dataclass

import numpy as np

from medray.phantoms._field import Canvas, Draws, Field, ellipse, hump, lattice, step
from medray.phantoms._nodule import Nodule, with_nodule

STREAM = "phantom.lung"

UNEVEN_CELLS, MOTTLE_CELLS, BEND_CELLS, LUNG_CELLS = 20, 26, 4, 9
VESSELS, VESSEL_NUMBERS = 40, 5
IMAGE_NORMALS = (
    sum(lattice(c) for c in (UNEVEN_CELLS, MOTTLE_CELLS, BEND_CELLS, LUNG_CELLS))
    + VESSELS * VESSEL_NUMBERS
)

AIR, FAT, MUSCLE, CORTEX, MARROW = -1000.0, -90.0, 45.0, 750.0, 260.0


@dataclass(frozen=True)
class Chest:
    """What stays with a patient: the scanner's window and noise, the lung's air, the wall."""

    lung: float
    low: float
    high: float
    grain: float
    vessel: float
    wall: float
    fat: float
    rib_half: float

    @classmethod
    def of(cls, d: Draws) -> "Chest":
        """The chest of one patient; one in eight was stored in a window that keeps lungs grey."""
        wide = d.chance(0.125)
        return cls(
            lung=d.around(-855.0, 45.0),
            low=d.around(-1900.0, 150.0) if wide else d.around(-950.0, 50.0),
            high=d.around(900.0, 200.0) if wide else d.around(850.0, 350.0),
            grain=d.between(0.015, 0.045),
            vessel=d.around(20.0, 90.0),
            wall=d.between(0.35, 0.95),
            fat=d.between(0.0, 0.6),
            rib_half=d.between(0.045, 0.075),
        )


@dataclass(frozen=True)
class Branch:
    """A vessel along the slice: from where, which way, how long, how bent, half its width."""

    start: tuple[float, float]
    angle: float
    length: float
    bend: float
    half: float

    def fork(self, share: float, turn: float) -> "Branch":
        """A thinner one that leaves it after a share of its length."""
        along = share * self.length
        across = self.bend * along**2
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        start = (
            self.start[0] + along * cos - across * sin,
            self.start[1] + along * sin + across * cos,
        )
        angle = self.angle + turn + 2 * self.bend * along
        return Branch(start, angle, 0.7 * self.length, -self.bend, 0.65 * self.half)


@dataclass(frozen=True)
class Place:
    """Where in the chest one picture was cut out: the wall, ribs along it, the heart's border."""

    towards: float
    distance: float
    radius: float
    ribs: tuple[tuple[float, float, float], ...]
    heart: tuple[float, float, float] | None
    branches: tuple["Branch", ...]

    @classmethod
    def of(cls, nodule: Nodule, d: Draws) -> "Place":
        """The surroundings of a nodule, which lies in the lung, now and then against its wall."""
        towards, radius = d.between(0.0, 2 * np.pi), d.between(1.1, 2.1)
        return cls(
            towards=towards,
            distance=0.8 * nodule.radius + d.between(0.0, 1.05),
            radius=radius,
            ribs=_ribs(d, radius),
            heart=_heart(d, nodule, towards) if d.chance(0.45) else None,
            branches=_branches(d, towards),
        )


def _branches(d: Draws, towards: float) -> tuple[Branch, ...]:
    """Vessels that run from the middle of the chest towards its wall, each with a fork."""
    found = []
    for _ in range(1 + d.chance(0.7) + d.chance(0.5)):
        place, aside = d.between(-1.1, 0.3), d.between(-0.9, 0.9)
        cos, sin = np.cos(towards), np.sin(towards)
        start = (place * cos - aside * sin, place * sin + aside * cos)
        angle = towards + d.between(-0.8, 0.8)
        size = d.between(0.3, 1.0)
        stem = Branch(start, angle, 0.4 + 0.7 * size, d.between(-0.4, 0.4), 0.012 + 0.024 * size)
        found += [stem, stem.fork(d.between(0.25, 0.6), d.sign() * d.between(0.4, 0.9))]
    return tuple(found)


def _ribs(d: Draws, radius: float) -> tuple[tuple[float, float, float], ...]:
    """(place along the wall, depth, half length) of the ribs that the slice cuts."""
    first = d.around(0.0, 0.4)
    return tuple(
        (first + number * 0.75 + d.around(0.0, 0.12), d.between(0.07, 0.13), d.between(0.12, 0.30))
        for number in (-2, -1, 0, 1, 2)
    )


def _heart(d: Draws, nodule: Nodule, towards: float) -> tuple[float, float, float]:
    """(x, y, radius) of a rounded border of soft tissue across from the wall."""
    angle, radius = towards + np.pi + d.around(0.0, 0.9), d.between(0.5, 1.2)
    far = radius + nodule.radius + d.between(0.12, 0.7)
    return far * np.cos(angle), far * np.sin(angle), radius


def vessels(chest: Chest, place: Place, lung: Field, x: Field, y: Field, d: Draws) -> Field:
    """The lung with vessels cut across (dots), aslant (short strokes) and along (branches)."""
    numbers = d.normals(VESSELS * VESSEL_NUMBERS).reshape(VESSELS, VESSEL_NUMBERS)
    for at_x, at_y, angle, size, length in numbers.tolist():
        radius = 0.013 * np.exp(0.4 * size)
        long = radius * min(1 + length**2, 6.0)
        centre, turn = (1.05 * np.tanh(0.9 * at_x), 1.05 * np.tanh(0.9 * at_y)), 3 * angle
        _stamp(lung, chest.vessel, x, y, centre, (1.5 * long, 1.5 * radius), turn)
    for branch in place.branches:
        cos, sin = np.cos(branch.angle), np.sin(branch.angle)
        u, v = x - branch.start[0], y - branch.start[1]
        along, across = u * cos + v * sin, v * cos - u * sin
        line = across - branch.bend * along**2 - 0.02 * np.sin(6 * along / branch.length)
        left = 1 - along * (1 / branch.length)
        tube = hump(line / (branch.half * np.maximum(left, 0.3)), 1.5)
        tube = tube * step(left - 0.12, 0.25) * step(along, 0.03)
        lung = np.maximum(lung, lung + (chest.vessel - lung) * tube)
    return lung


def _stamp(
    lung: Field,
    density: float,
    x: Field,
    y: Field,
    centre: tuple[float, float],
    radii: tuple[float, float],
    turn: float,
) -> None:
    """Draws one soft ellipse into `lung`, only where it is."""
    reach = max(radii)
    columns = slice(*np.searchsorted(x[0], (centre[0] - reach, centre[0] + reach)).tolist())
    rows = slice(*np.searchsorted(y[:, 0], (centre[1] - reach, centre[1] + reach)).tolist())
    part = lung[rows, columns]
    shape = np.maximum(1 - ellipse(x[rows, columns], y[rows, columns], centre, radii, turn), 0.0)
    part += (density - part) * np.minimum(1.5 * shape, 1.0) * (part < density)


def wall(chest: Chest, place: Place, x: Field, y: Field, bend: Field) -> tuple[Field, Field]:
    """(depth beyond the lung's border, density of what is there)."""
    cos, sin = np.cos(place.towards), np.sin(place.towards)
    off = place.radius - place.distance
    u, v = x + off * cos, y + off * sin
    depth = np.hypot(u, v) - place.radius + 0.025 * bend
    turn = np.arctan2(v, u) - place.towards
    along = place.radius * (np.mod(turn + np.pi, 2 * np.pi) - np.pi)
    layer = hump(depth - 0.6 * chest.wall, 0.3 * chest.wall)
    flesh = MUSCLE + chest.fat * (FAT - MUSCLE) * np.minimum(2 * layer, 1.0) + 25 * bend
    for at, deep, half in place.ribs:
        e = np.sqrt(ellipse(along, depth, (at, deep), (half, chest.rib_half)))
        bone = MARROW + (CORTEX - MARROW) * hump(e - 0.85, 0.5)
        flesh = flesh + (bone - flesh) * step(1.05 - e, 0.35)
    return depth, np.asarray(flesh + (AIR - flesh) * step(depth - chest.wall, 0.05))


def draw(seed: int, patient: int, index: int, canvas: Canvas) -> tuple[Field, Field, Nodule, float]:
    """One picture (size_px, size_px), 0..1; its mask's coverage; the nodule; its noise."""
    chest = Chest.of(Draws(seed, STREAM + ".patient", patient))
    draws = Draws(seed, STREAM, index, normals=IMAGE_NORMALS)
    nodule = Nodule.of(Draws(seed, STREAM + ".nodule", index))
    place = Place.of(nodule, draws)
    x, y = (axis.copy() for axis in np.broadcast_arrays(*canvas.grid()))
    uneven, mottle = canvas.noise(draws, UNEVEN_CELLS), canvas.noise(draws, MOTTLE_CELLS)
    bend = canvas.noise(draws, BEND_CELLS)
    lung = chest.lung + 14 * canvas.noise(draws, LUNG_CELLS) + 8 * mottle
    lung = vessels(chest, place, lung, x, y, draws)
    depth, flesh = wall(chest, place, x, y, bend)
    beyond = step(depth, 0.05)
    if place.heart is not None:
        at_x, at_y, radius = place.heart
        far = np.hypot(x - at_x, y - at_y) - radius + 0.03 * bend
        lung = lung + (MUSCLE + 8 * mottle - lung) * step(-far, 0.06)
    picture = lung + (flesh - lung) * beyond
    picture, covered = with_nodule(nodule, picture, x, y, uneven, mottle)
    grey = np.clip((picture - chest.low) * (1 / (chest.high - chest.low)), 0.0, 1.0)
    return canvas.reduce(grey), canvas.reduce(covered), nodule, chest.grain
