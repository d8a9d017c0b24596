"""A frontal chest film as a sum of what the beam passes: body, air, heart, bones, findings.

u runs to the patient's left (the right of the picture), v towards the feet, both about -1..1 over
the film; a = |u|. Findings change the anatomy (a larger heart, a fallen lung) or replace air.
"""

from dataclasses import dataclass

import numpy as np

from medray.phantoms._field import Canvas, Draws, Field, dome, ellipse, hump, lattice, step, within
from medray.phantoms._film import Exposure, developed, positioned

STREAM = "phantom.chest"

# Noise: how many cells across; and lines of vessels around each hilum, twice.
BEND_CELLS, MOTTLE_CELLS, TEXTURE_CELLS, TISSUE_CELLS, VESSEL_LINES = 4, 9, 22, 5, 96
IMAGE_NORMALS = (
    lattice(MOTTLE_CELLS) + lattice(TEXTURE_CELLS) + lattice(TISSUE_CELLS) + 2 * VESSEL_LINES
)

# How often each finding occurs in an image. Effusion is likelier beside a large heart.
FINDINGS = ("cardiomegaly", "consolidation", "effusion", "nodule", "pneumothorax")
RAREST_FIRST = ("pneumothorax", "nodule", "effusion", "cardiomegaly", "consolidation")
CARDIOMEGALY, CONSOLIDATION, EFFUSION, NODULE, PNEUMOTHORAX = 0.14, 0.16, 0.10, 0.07, 0.03
EFFUSION_WITH_CARDIOMEGALY = 0.30


@dataclass(frozen=True)
class Anatomy:
    """What stays with a patient: lengths in half film widths, densities in units of the beam."""

    width: float
    apex: float
    base: tuple[float, float]
    heart: tuple[float, float, float]
    enlarged: float
    mediastinum: float
    knob: float
    rib_step: float
    rib_half: float
    rib_tilt: float
    rib_density: float
    clavicle: tuple[float, float]
    breast: float
    fat: float
    scoliosis: float

    @classmethod
    def of(cls, d: Draws) -> "Anatomy":
        """The anatomy of one patient."""
        right = d.around(0.42, 0.12)
        return cls(
            width=d.around(0.76, 0.09),
            apex=d.around(-0.74, 0.07),
            base=(right, right + d.around(0.05, 0.05)),
            heart=(d.around(0.36, 0.04), d.around(0.27, 0.03), d.around(0.65, 0.2)),
            enlarged=d.between(1.30, 1.55) if d.chance(CARDIOMEGALY) else 1.0,
            mediastinum=d.around(0.135, 0.035),
            knob=d.between(0.05, 0.1),
            rib_step=d.around(0.142, 0.014),
            rib_half=d.around(0.031, 0.006),
            rib_tilt=d.around(0.50, 0.22),
            rib_density=d.around(0.19, 0.07),
            clavicle=(d.around(-0.60, 0.05), d.around(0.15, 0.09)),
            breast=d.between(0.05, 0.14) if d.chance(0.4) else 0.0,
            fat=d.between(0.0, 0.25),
            scoliosis=d.around(0.0, 0.05),
        )


@dataclass(frozen=True)
class Findings:
    """What one image shows, with where and how much."""

    labels: dict[str, int | None]
    heart_scale: float
    effusions: tuple[tuple[float, float], ...]
    consolidations: tuple[tuple[float, float, float, float], ...]
    nodules: tuple[tuple[float, float, float], ...]
    pneumothorax: tuple[float, float] | None

    @classmethod
    def of(cls, anatomy: Anatomy, d: Draws) -> "Findings":
        """The findings of one image; a large heart stays with its patient."""
        large = anatomy.enlarged > 1
        has_effusion = d.chance(EFFUSION_WITH_CARDIOMEGALY if large else EFFUSION)
        has_consolidation, has_nodule = d.chance(CONSOLIDATION), d.chance(NODULE)
        has_pneumothorax = d.chance(PNEUMOTHORAX)
        shown = (large, has_consolidation, has_effusion, has_nodule, has_pneumothorax)
        return cls(
            labels={name: int(flag) for name, flag in zip(FINDINGS, shown, strict=True)},
            heart_scale=anatomy.enlarged,
            effusions=_effusions(d) if has_effusion else (),
            consolidations=_consolidations(d) if has_consolidation else (),
            nodules=_nodules(d) if has_nodule else (),
            pneumothorax=(d.sign(), d.between(0.10, 0.26)) if has_pneumothorax else None,
        )


def _effusions(d: Draws) -> tuple[tuple[float, float], ...]:
    """(side, height of the fluid) of one or two sides."""
    first, height = d.sign(), d.between(0.16, 0.62)
    both = d.chance(0.35)
    return ((first, height), (-first, d.between(0.12, 0.3))) if both else ((first, height),)


def _consolidations(d: Draws) -> tuple[tuple[float, float, float, float], ...]:
    """(u, v, radius, density) of one to three opacities, the lower lobes more often."""
    count = 1 + d.chance(0.4) + d.chance(0.25)
    return tuple(
        (
            d.sign() * d.between(0.27, 0.52),
            d.between(-0.42, 0.32) + 0.06,
            d.between(0.17, 0.34),
            d.between(0.26, 0.44),
        )
        for _ in range(count)
    )


def _nodules(d: Draws) -> tuple[tuple[float, float, float], ...]:
    """(u, v, radius) of one nodule, seldom of several."""
    count = 3 if d.chance(0.2) else 1
    return tuple(
        (d.sign() * d.between(0.28, 0.54), d.between(-0.45, 0.25), d.between(0.045, 0.085))
        for _ in range(count)
    )


@dataclass(frozen=True)
class Thorax:
    """The patient's frame on the film and the borders of the lungs in it."""

    u: Field
    v: Field
    a: Field
    outer: Field
    inner: Field
    floor: Field
    lung: Field

    @classmethod
    def of(cls, anatomy: Anatomy, u: Field, v: Field) -> "Thorax":
        """Borders: outer and inner (as a), floor (as v); lung is 1 inside both, 0 outside."""
        a, left = np.abs(u), step(u, 0.02)
        base = anatomy.base[0] + left * (anatomy.base[1] - anatomy.base[0])
        t = np.clip((v - anatomy.apex) * (1 / (0.55 - anatomy.apex)), 0.0, 1.0)
        middle = 0.34 * anatomy.width / 0.76
        outer = middle + (anatomy.width - middle) * np.sqrt(1 - (1 - t) ** 2.3)
        inner = middle - (middle - 0.115) * np.sqrt(1 - (1 - np.minimum(2.2 * t, 1.0)) ** 2)
        away = a - 0.52 * anatomy.width
        floor = base + np.where(away > 0, 1.3, 0.7) * away**2
        top = v - anatomy.apex - 0.015
        lung = within((outer - a, 0.05), (a - inner, 0.06), (floor - v, 0.035), (top, 0.04))
        return cls(u, v, a, outer, inner, floor, lung)

    def beside(self, side: float) -> Field:
        """1 on one side of the midline (1: the patient's left), 0 on the other."""
        return step(self.u * side, 0.02)


def body(anatomy: Anatomy, thorax: Thorax) -> Field:
    """Soft tissue in the beam: neck, shoulders, trunk, thicker in the middle; breasts."""
    v, a = thorax.v, thorax.a
    shoulder = step(v + 0.86 - 0.10 * a, 0.34)
    half = 0.23 + (anatomy.width + 0.11 + 0.3 * anatomy.fat - 0.23) * shoulder
    half = half + 0.30 * step(v + 0.84, 0.2) * step(-0.05 - v, 1.3)
    inside = step(half - a, 0.04)
    thick = np.sqrt(np.maximum(1 - (a * (1 / (half + 0.02))) ** 2, 0.0))
    tissue = inside * (0.22 + 0.40 * thick + 0.12 * anatomy.fat)
    if anatomy.breast:
        r2 = ellipse(a, v, (0.44, 0.26), (0.30, 0.27), -0.2)
        tissue = tissue + anatomy.breast * dome(r2)
    return np.asarray(tissue)


def ribs(anatomy: Anatomy, thorax: Thorax) -> Field:
    """Posterior ribs (arched), anterior ribs (falling to the midline, fainter), chest wall."""
    v, a = thorax.v, thorax.a
    cage, top = (thorax.outer + 0.035 - a, 0.03), v - anatomy.apex
    bend = anatomy.rib_tilt * np.maximum(a - 0.22, 0.0) ** 2 * (1.3 - 0.8 * v) + 0.12 * a
    back = _bars(v - bend - anatomy.apex, anatomy.rib_step, anatomy.rib_half)
    back *= within((a - 0.09, 0.05), cage, (top + 0.03, 0.05), (0.74 - v, 0.1))
    fall = v - 0.62 * (anatomy.width - a) - 0.25 * np.maximum(a - 0.5, 0.0) - anatomy.apex
    front = _bars(fall - 0.06, anatomy.rib_step * 1.1, anatomy.rib_half * 1.15)
    front *= within((a - 0.33, 0.18), cage, (v + 0.52, 0.2), (0.36 - v, 0.15))
    wall = hump(a - thorax.outer - 0.015, 0.05) * within((top - 0.05, 0.1), (0.75 - v, 0.2))
    return np.asarray(anatomy.rib_density * (back + 0.55 * front + 0.5 * wall * (0.6 + back)))


def _bars(along: Field, spacing: float, half: float) -> Field:
    """Bars across `along` every `spacing`: tubes of bone, denser at both edges."""
    place = along * (1 / spacing)
    off = np.abs(place - np.floor(place) - 0.5) * spacing
    return step(half - off, 0.018) * (0.6 + 0.4 * (off * (1 / half)) ** 2)


def spine(anatomy: Anatomy, thorax: Thorax) -> Field:
    """Vertebral bodies with discs between them, pedicles beside, a spinous process in each."""
    u, v = thorax.u - anatomy.scoliosis * np.sin(2.2 * thorax.v), thorax.v
    place = v * (1 / (0.9 * anatomy.rib_step))
    phase = np.abs(place - np.floor(place) - 0.5)
    width = 0.072 + 0.012 * v
    column = step(width - np.abs(u) + 0.02 * (phase - 0.25), 0.025)
    bodies = 0.11 + 0.08 * step(0.40 - phase, 0.12)
    pedicles = hump(np.abs(u) - 0.045, 0.02) * hump(phase - 0.1, 0.2)
    process = hump(u, 0.018) * hump(phase - 0.12, 0.2)
    return np.asarray(column * (bodies + 0.08 * pedicles + 0.08 * process))


def girdle(anatomy: Anatomy, thorax: Thorax) -> Field:
    """Clavicles, shoulder blades, heads of the arm bones."""
    v, a = thorax.v, thorax.a
    height, rise = anatomy.clavicle
    line = v - height + rise * (a - 0.07) - 0.035 * np.sin(7.0 * (a - 0.1))
    half = 0.027 + 0.012 * hump(a - 0.08, 0.12)
    bar = within((half - np.abs(line), 0.02), (a - 0.07, 0.03), (0.80 - a, 0.1))
    bar *= 0.65 + 0.35 * (line / half) ** 2
    edge = a - 0.66 * anatomy.width / 0.76 - 0.10 * (v + 0.5) ** 2 + 0.10 * (v + 0.35)
    blade = within((edge, 0.05), (v + 0.78, 0.1), (0.02 - v - 0.5 * (1 - a), 0.25))
    head = dome(ellipse(a, v, (0.97, -0.70), (0.13, 0.12)))
    return np.asarray(0.20 * bar + 0.09 * blade + 0.22 * head)


def mediastinum(anatomy: Anatomy, thorax: Thorax, scale: float) -> Field:
    """Heart, great vessels, aortic knob and the air of the windpipe."""
    u, v = thorax.u, thorax.v
    long, short, turn = anatomy.heart
    floor = (anatomy.base[0] + anatomy.base[1]) / 2
    centre = (0.12 + 0.10 * (scale - 1), floor - 0.13 - 0.12 * (scale - 1))
    left = dome(ellipse(u, v, centre, (long * scale, short * scale), turn))
    right = dome(ellipse(u, v, (-0.06, floor - 0.20), (0.15 * scale, 0.24 * scale), 0.0))
    heart = np.sqrt(np.maximum(left, 0.8 * right))
    band = anatomy.mediastinum + 0.05 * hump(v + 0.06, 0.3)
    vessels = within((band - np.abs(u - 0.01), 0.06), (v - anatomy.apex + 0.25, 0.4))
    knob = dome(ellipse(u, v, (0.075 + anatomy.knob, -0.30), (0.085, 0.09)))
    trunk = dome(ellipse(u, v, (0.12, -0.13), (0.095, 0.12), 0.3))
    pipe = within((0.038 - np.abs(u + 0.012), 0.03), (-0.22 - v, 0.12))
    central = np.maximum(np.maximum(0.28 * vessels, 0.44 * heart), 0.27 * np.maximum(knob, trunk))
    # The liver hides what of the heart lies under the diaphragm's dome.
    central *= 0.2 + 0.8 * step(thorax.floor + 0.01 - v, 0.06)
    return np.asarray(central - 0.16 * pipe)


def vessels(thorax: Thorax, wander: Field, lines: Field) -> Field:
    """Hila and the vessels that leave them, finer and fainter outwards."""
    u, v, a = thorax.u, thorax.v, thorax.a
    du, dv = a - 0.15, v + 0.04 + 0.03 * step(u, 0.1)
    radius = np.sqrt(du**2 + dv**2)
    angle = np.arctan2(dv, du) + 0.16 * np.sin(6 * radius + 2.0 * np.sign(u))
    angle = angle + 0.13 * wander
    place = (angle * (1 / (2 * np.pi)) + 0.5) * 48 + 48 * (u > 0)
    table = np.arange(97.0)
    coarse = np.interp(place, table, np.append(lines[:96], lines[0]))
    fine = np.interp((place * 2.3) % 96, table, np.append(lines[96:], lines[96]))
    streaks = hump(coarse, 0.55) * hump(radius - 0.12, 0.42)
    streaks = streaks + 0.7 * hump(fine, 0.45) * hump(radius - 0.3, 0.42)
    hilum = dome(ellipse(a, v, (0.165, -0.03), (0.085, 0.16), 0.25))
    return np.asarray(0.10 * streaks + 0.15 * hilum)


def abdomen(thorax: Thorax, gas: float) -> Field:
    """What lies under the diaphragm: dense, with a gas bubble in the stomach."""
    below = within((thorax.v - thorax.floor, 0.05), (thorax.outer + 0.03 - thorax.a, 0.14))
    bubble = dome(ellipse(thorax.u, thorax.v, (0.40, 0.66), (0.17, 0.075), 0.15))
    return np.asarray(below * (0.34 - gas * bubble))


def lungs(thorax: Thorax, found: Findings, canvas: Canvas, draws: Draws) -> Field:
    """Attenuation that the air takes away (negative), with vessels and findings put back."""
    mottle, texture = canvas.noise(draws, MOTTLE_CELLS), canvas.noise(draws, TEXTURE_CELLS)
    air, markings = thorax.lung, vessels(thorax, mottle, draws.normals(2 * VESSEL_LINES))
    markings = markings + 0.012 * texture
    added: Field | float = 0.0
    if found.pneumothorax is not None:
        markings, added = _pneumothorax(thorax, found.pneumothorax, markings)
    for u, v, radius, density in found.consolidations:
        r2 = ellipse(thorax.u, thorax.v, (u, v), (radius, radius * 1.15))
        added = added + density * step(1 - r2 + 0.30 * mottle + 0.25 * texture, 1.8) * (
            0.85 + 0.12 * texture
        )
    for u, v, radius in found.nodules:
        added = added + 0.26 * step(1 - ellipse(thorax.u, thorax.v, (u, v), (radius, radius)), 0.9)
    for side, height in found.effusions:
        air = air * (1 - _fluid(thorax, side, height))
    return np.asarray(air * np.minimum(markings + added - 0.50, 0.02))


def _pneumothorax(
    thorax: Thorax, fallen: tuple[float, float], markings: Field
) -> tuple[Field, Field]:
    """A lung drawn off the chest wall: no markings outside its edge, a fine bright line on it."""
    side, gap = fallen
    high = 1 - 0.6 * step(thorax.v + 0.1, 1.0)
    edge = thorax.a - (thorax.outer - gap * high)
    edge = np.maximum(edge, 0.9 * (thorax.v * -1 - 0.66 + gap * 0.8))
    where = thorax.beside(side)
    outside = step(edge, 0.02) * where
    line = 0.12 * hump(edge, 0.016) - 0.07 * outside + 0.05 * (where - outside)
    return markings * (1 - outside), line * where


def _fluid(thorax: Thorax, side: float, height: float) -> Field:
    """1 where fluid has replaced the air: a level that climbs along the chest wall."""
    across = np.maximum(thorax.a - 0.15, 0.0) * (1 / 0.6)
    level = 0.60 - height - 0.24 * across**2.5
    return np.asarray(step(thorax.v - level, 0.17) * thorax.beside(side))


def draw(
    seed: int, patient: int, index: int, canvas: Canvas
) -> tuple[Field, dict[str, int | None]]:
    """One film (size_px, size_px), 0..1, and its findings."""
    own = Draws(seed, STREAM + ".patient", patient, normals=lattice(BEND_CELLS))
    draws = Draws(seed, STREAM, index, normals=IMAGE_NORMALS)
    anatomy, exposure = Anatomy.of(own), Exposure.of(draws)
    found = Findings.of(anatomy, draws)
    x, y = canvas.grid()
    u, v = positioned(exposure, x, y, canvas.noise(own, BEND_CELLS))
    thorax = Thorax.of(anatomy, u, v)
    beam = body(anatomy, thorax) + ribs(anatomy, thorax) + spine(anatomy, thorax)
    beam += girdle(anatomy, thorax) + mediastinum(anatomy, thorax, found.heart_scale)
    beam += lungs(thorax, found, canvas, draws) + abdomen(thorax, exposure.gas)
    beam *= 1 + 0.03 * canvas.noise(draws, TISSUE_CELLS)
    return canvas.reduce(developed(exposure, beam, x, y)), found.labels
