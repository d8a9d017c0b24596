"""An axial brain slice as FLAIR shows it, with a tumour and the mask of all its abnormal tissue.

u runs to the right of the picture, v from the forehead (top, negative) to the back; a = |u|. The
level of a slice is 0 through the bodies of the lateral ventricles, -0.6 at the third ventricle, 0.9
near the top of the head. FLAIR darkens fluid, so ventricles and sulci are black, grey matter is
brighter than white, and abnormal tissue is the brightest. Slices of one patient cut one tumour.
"""

from dataclasses import dataclass

import numpy as np

from medray.phantoms._field import Canvas, Draws, Field, ellipse, fade, hump, lattice, step

STREAM = "phantom.brain"
GRADES = ("none", "low_grade", "high_grade")

# Of the patients; some slices of a patient with a tumour miss it.
LOW_GRADE, HIGH_GRADE = 0.36, 0.13

WARP_CELLS, SHAPE_CELLS, LOBE_CELLS, FOLD_CELLS, FINE_CELLS, COIL_CELLS = 5, 7, 16, 24, 34, 2
PATIENT_NORMALS = lattice(WARP_CELLS) + lattice(SHAPE_CELLS) + lattice(LOBE_CELLS)
IMAGE_NORMALS = lattice(FOLD_CELLS) + lattice(FINE_CELLS) + lattice(COIL_CELLS)

FLUID, WHITE, GREY, FAT, BONE = 0.07, 0.40, 0.53, 0.74, 0.05
BRAIN_EDGE, SKULL_EDGE, SCALP_EDGE = 0.875, 0.905, 0.955


@dataclass(frozen=True)
class Tumour:
    """Where it lies (slice plane and level), how large it is, what it does around it."""

    grade: str
    centre: tuple[float, float]
    level: float
    radius: float
    stretch: float
    turn: float
    push: float

    @classmethod
    def of(cls, d: Draws) -> "Tumour":
        """A patient's tumour; of grade "none" in about half of them."""
        place = d.between(0.0, 1.0)
        grade = "high_grade" if place < HIGH_GRADE else "low_grade"
        grade = grade if place < HIGH_GRADE + LOW_GRADE else "none"
        high = grade == "high_grade"
        return cls(
            grade=grade,
            centre=(d.sign() * d.between(0.19, 0.35), d.between(-0.40, 0.42)),
            level=d.between(-0.5, 0.55),
            radius=d.between(0.20, 0.31) if high else d.between(0.15, 0.26),
            stretch=d.between(1.0, 1.4),
            turn=d.between(0.0, np.pi),
            push=d.between(0.35, 0.6) if high else d.between(0.15, 0.4),
        )

    def reach(self, level: float) -> float:
        """The tumour's radius in the slice at this level: 0 where the slice misses it."""
        off = (level - self.level) / (2.4 * self.radius)
        reach = self.radius * np.sqrt(max(1 - off**2, 0.0))
        return float(reach) if self.grade != "none" and reach > 0.6 * self.radius else 0.0


@dataclass(frozen=True)
class Head:
    """What stays with a patient: lengths in half picture widths, fluid spaces grow with age."""

    width: float
    length: float
    egg: float
    fluid: float
    ventricles: float
    contrast: float
    tumour: Tumour

    @classmethod
    def of(cls, d: Draws) -> "Head":
        """The head of one patient."""
        return cls(
            width=d.around(0.67, 0.06),
            length=d.around(0.84, 0.06),
            egg=d.around(0.07, 0.06),
            fluid=d.between(0.17, 0.38),
            ventricles=d.between(0.75, 1.5),
            contrast=d.between(0.8, 1.3),
            tumour=Tumour.of(d),
        )


@dataclass(frozen=True)
class Scan:
    """How one slice was taken: its level, the head's position, brightness, noise."""

    level: float
    turn: float
    shift: tuple[float, float]
    zoom: float
    bright: float
    gamma: float
    coil: float

    @classmethod
    def of(cls, tumour: Tumour, d: Draws) -> "Scan":
        """The scan of one image; with a tumour, most levels lie near it."""
        free, near = d.between(-0.55, 0.85), d.around(tumour.level, 0.45)
        level = near if tumour.grade != "none" and d.chance(0.85) else free
        return cls(
            level=float(np.clip(level, -0.55, 0.85)),
            turn=d.around(0.0, 0.16),
            shift=(d.around(0.0, 0.05), d.around(0.0, 0.05)),
            zoom=d.around(1.0, 0.07),
            bright=d.between(0.95, 1.3),
            gamma=d.between(0.85, 1.2),
            coil=d.between(0.03, 0.12),
        )


@dataclass(frozen=True)
class Slice:
    """The head's frame in a picture: skull distance, and coordinates that the tumour has pushed."""

    level: float
    rho: Field
    depth: Field
    u: Field
    v: Field
    a: Field

    @classmethod
    def of(cls, head: Head, level: float, u: Field, v: Field, warp: Field, reach: float) -> "Slice":
        """rho is 1 on the skin; depth is the distance to the brain's surface."""
        size = np.sqrt(1 - (0.72 * max(level, 0.0)) ** 2)
        width = head.width * size * (1 + head.egg * v)
        rho = np.sqrt((u / width) ** 2 + (v * (1 / (head.length * size))) ** 2) + 0.008 * warp
        depth = (BRAIN_EDGE - rho) * (0.8 * size)
        u, v = u / size + 0.012 * warp, v / size
        if reach > 0:
            (left, top), spread = head.tumour.centre, 1.5 * reach
            away2 = ((u - left) ** 2 + (v - top) ** 2) * (1 / spread**2)
            pull = head.tumour.push * np.exp(-away2)
            u, v = u - (u - left) * pull, v - (v - top) * pull
        return cls(level, rho, depth, u, v, np.abs(u))


def matter(head: Head, cut: Slice, fold: Field, fine: Field) -> Field:
    """Brain without fluid and tumour: white matter, the cortex along its folds, deep nuclei."""
    rim = step(0.20 - cut.depth + 0.02 * fine, 0.16)
    cortex = np.maximum(hump(fold, 0.95) * rim, step(0.045 - cut.depth, 0.03))
    grey = np.maximum(cortex, nuclei(cut))
    return np.asarray(WHITE + (GREY - WHITE) * head.contrast * grey + 0.012 * fine)


def furrows(head: Head, cut: Slice, fold: Field) -> Field:
    """Fluid in the folds of the surface, wider in an old brain."""
    return np.asarray(0.9 * hump(fold, head.fluid) * step(0.17 - cut.depth, 0.14))


def nuclei(cut: Slice) -> Field:
    """Caudate, lentiform nucleus and thalamus, seen at and below the ventricles' bodies."""
    seen = fade(0.25 - cut.level, 0.4)
    shapes = (
        ((0.135, -0.17), (0.05, 0.10), 0.3),
        ((0.27, -0.03), (0.065, 0.14), -0.15),
        ((0.11, 0.10), (0.085, 0.11), 0.35),
    )
    parts = [step(1 - ellipse(cut.a, cut.v, *shape), 0.5) for shape in shapes]
    return np.asarray(seen * np.maximum(np.maximum(parts[0], parts[1]), parts[2]))


def fissures(cut: Slice) -> Field:
    """The cleft between the hemispheres and, low enough, the Sylvian fissures."""
    u, v, a = cut.u, cut.v, cut.a
    bridge = 0.40 * fade(0.45 - cut.level, 0.5)
    middle = hump(u, 0.020) * step(np.abs(v + 0.02) - bridge, 0.08)
    low = fade(0.15 - cut.level, 0.3)
    line = v + 0.02 - 0.35 * (a - 0.40) - 0.03 * np.sin(16 * a)
    sylvian = low * hump(line, 0.030) * step(a - 0.34, 0.05)
    return np.asarray(np.maximum(0.95 * middle, 0.85 * sylvian))


def ventricles(head: Head, cut: Slice) -> Field:
    """Lateral ventricles as a pair of bows, front horns and back horns lower down; the third."""
    v, a, level = cut.v, cut.a, cut.level
    body = max(1 - ((level - 0.08) / 0.55) ** 2, 0.0) ** 2
    low = fade(0.0 - level, 0.35)
    bow = 0.055 + 0.55 * (v - 0.02) ** 2 + 0.10 * low * step(v - 0.1, 0.2)
    half = 0.055 * body * hump(v - 0.02, 0.36)
    half = half + low * (0.045 * hump(v + 0.24, 0.14) + 0.05 * hump(v - 0.30, 0.15))
    lateral = step(head.ventricles * half - np.abs(a - bow), 0.022) * step(half - 0.006, 0.008)
    third = low * step(0.014 * head.ventricles - a, 0.014) * hump(v - 0.06, 0.16)
    return np.asarray(np.maximum(lateral, third))


def lesion(
    tumour: Tumour, reach: float, frame: tuple[Field, Field], shape: Field
) -> tuple[Field, Field]:
    """(radius in units of the tumour's own, 1 on its border; how much of a pixel is abnormal)."""
    radii = (reach * np.sqrt(tumour.stretch), reach / np.sqrt(tumour.stretch))
    r = np.sqrt(ellipse(frame[0], frame[1], tumour.centre, radii, tumour.turn)) + shape
    return r, step(1 - r, 0.03 / reach)


def with_tumour(tumour: Tumour, brain: Field, r: Field, fine: Field, fold: Field) -> Field:
    """Low grade: even and bright with a soft border. High grade: a rim, dead tissue, oedema."""
    bright = 0.10 + 0.015 * fine + 0.02 * fold
    if tumour.grade == "low_grade":
        return np.asarray(brain + (0.60 * (0.74 - brain) + bright) * step(1.02 - r, 0.45))
    oedema = step(1 - r, 0.22) * (0.62 + 0.10 * fold)
    core, dead = step(0.66 - r + 0.05 * fine, 0.12), step(0.46 - r + 0.07 * fine, 0.14)
    level = brain + (0.80 - brain) * np.clip(oedema, 0.0, 1.0)
    level = level + (0.97 + 0.04 * fine - level) * core
    return np.asarray(level + (0.20 + 0.03 * fine - level) * dead)


def around(brain: Field, cut: Slice) -> Field:
    """The brain inside fluid, skull with marrow, and scalp; air outside is black."""
    rho = cut.rho
    marrow = 0.22 * hump(rho - (SKULL_EDGE + SCALP_EDGE) / 2, 0.018)
    scalp = step(rho - SCALP_EDGE, 0.015) * step(1.0 - rho, 0.02)
    inside = step(BRAIN_EDGE - rho, 0.014)
    sheath = FLUID * step(SKULL_EDGE - rho, 0.014)
    shell = np.maximum(sheath, BONE) * step(1.0 - rho, 0.02) + marrow + (FAT - BONE) * scalp
    return np.asarray(shell + (brain - shell) * inside)


def draw(seed: int, patient: int, index: int, canvas: Canvas) -> tuple[Field, Field, str]:
    """One slice (size_px, size_px), 0..1; its mask's coverage per pixel; its grade."""
    own = Draws(seed, STREAM + ".patient", patient, normals=PATIENT_NORMALS)
    draws = Draws(seed, STREAM, index, normals=IMAGE_NORMALS)
    head = Head.of(own)
    scan, tumour = Scan.of(head.tumour, draws), head.tumour
    x, y = canvas.grid()
    cos, sin = np.cos(scan.turn) / scan.zoom, np.sin(scan.turn) / scan.zoom
    frame = (cos * x + sin * y - scan.shift[0], cos * y - sin * x - scan.shift[1])
    warp = canvas.noise(own, WARP_CELLS)
    shape = 0.18 * canvas.noise(own, SHAPE_CELLS) + 0.13 * canvas.noise(own, LOBE_CELLS)
    fold, fine = canvas.noise(draws, FOLD_CELLS), canvas.noise(draws, FINE_CELLS)
    reach = tumour.reach(scan.level)
    cut = Slice.of(head, scan.level, *frame, warp, reach)
    fold = fold + 0.25 * fine
    brain, folds = matter(head, cut, fold, fine), furrows(head, cut, fold)
    spaces, covered = np.maximum(fissures(cut), ventricles(head, cut)), np.zeros_like(warp)
    if reach > 0:
        r, covered = lesion(tumour, reach, frame, shape)
        brain, folds = with_tumour(tumour, brain, r, fine, fold), folds * step(r - 0.75, 0.4)
        spaces *= step(r - 0.88, 0.2)
        covered = covered * (cut.depth > 0) * (spaces < 0.5)
    brain = brain + (FLUID - brain) * np.maximum(folds, spaces)
    signal = around(brain, cut) * (1 + scan.coil * canvas.noise(draws, COIL_CELLS))
    grey = np.clip(scan.bright * signal, 0.0, 1.0) ** scan.gamma
    return canvas.reduce(grey), canvas.reduce(covered), tumour.grade if reach > 0 else "none"
