"""Sagittal slices through a knee as fat-suppressed proton density shows them, side to side: a clip.

x runs from the front (-1) to the back (1), y downwards, s from one side of the joint (-1) through
the notch (0) to the other (1). Fluid is the brightest, menisci, ligaments and cortex are black.
The cruciate ligaments are in the middle slices, the menisci in the outer ones, so that a finding is
seen in some frames of a clip and not in others.
"""

from dataclasses import dataclass

import numpy as np

from medray.phantoms._field import Canvas, Draws, Field, ellipse, fade, hump, lattice, step

STREAM = "phantom.knee"
FINDINGS = ("abnormal", "acl", "meniscus")
RAREST_FIRST = ("acl", "meniscus", "abnormal")

# Of the exams; a quarter or so have none of the three.
ACL, MENISCUS, OTHER = 0.15, 0.30, 0.50
LEAST_FRAMES, MOST_FRAMES = 8, 20

MARROW, CORTEX, CARTILAGE, FLUID = 0.30, 0.05, 0.60, 0.96
MUSCLE, FAT, LIGAMENT = 0.34, 0.22, 0.05
GAP = 0.27  # where femur and tibia face each other

TISSUE_CELLS, SHAPE_CELLS, COIL_CELLS = 18, 5, 2
NORMALS = 2 * lattice(TISSUE_CELLS) + lattice(SHAPE_CELLS) + lattice(COIL_CELLS)


@dataclass(frozen=True)
class Knee:
    """What stays with a patient: sizes of the bones, in half picture widths."""

    femur: float
    tibia: float
    slope: float
    cartilage: float
    fat: float

    @classmethod
    def of(cls, d: Draws) -> "Knee":
        """The knee of one patient."""
        return cls(
            femur=d.around(0.42, 0.05),
            tibia=d.around(0.47, 0.05),
            slope=d.around(0.06, 0.06),
            cartilage=d.around(0.055, 0.015),
            fat=d.between(0.10, 0.22),
        )


@dataclass(frozen=True)
class Exam:
    """One clip: how many frames, how the knee lies in them, what is wrong with it and where."""

    frames: int
    turn: float
    shift: tuple[float, float]
    zoom: float
    bright: float
    coil: float
    labels: dict[str, int]
    side: float
    tear: tuple[float, float]
    effusion: float
    bruise: tuple[float, float, float, float]

    @classmethod
    def of(cls, d: Draws) -> "Exam":
        """An exam; what is not one of the two tears but abnormal has fluid and a bruised bone."""
        acl, meniscus, other = d.chance(ACL), d.chance(MENISCUS), d.chance(OTHER)
        abnormal = acl or meniscus or other
        low = d.chance(0.5)
        return cls(
            frames=LEAST_FRAMES + int(d.between(0.0, MOST_FRAMES - LEAST_FRAMES + 1)),
            turn=d.around(0.0, 0.10),
            shift=(d.around(0.0, 0.06), d.around(0.0, 0.06)),
            zoom=d.around(1.0, 0.06),
            bright=d.between(0.92, 1.1),
            coil=d.between(0.02, 0.08),
            labels={"abnormal": int(abnormal), "acl": int(acl), "meniscus": int(meniscus)},
            side=d.sign(),
            tear=(d.between(0.45, 0.65), d.around(0.5, 0.4)),
            effusion=d.between(0.6, 1.0) if abnormal else d.between(0.0, 0.25),
            bruise=(
                d.between(-0.15, 0.25),
                d.between(0.40, 0.55) if low else d.between(-0.25, 0.0),
                d.between(0.12, 0.22),
                d.between(0.5, 0.9) if acl or other else 0.0,
            ),
        )


def bones(knee: Knee, s: float, x: Field, y: Field, shape: Field) -> tuple[Field, Field]:
    """Depth in the femur and in the tibia, 0 on their surface, positive inside, in half widths."""
    round_ = 0.82 + 0.18 * float(hump(np.array([abs(s) - 0.5]), 0.7)[0])
    round_ *= np.sqrt(max(1 - (abs(s) / 1.12) ** 4, 0.1))
    radius = knee.femur * round_
    bottom = GAP - 0.05 - 0.10 * fade(0.2 - abs(s), 0.3)  # the notch between the condyles
    centre = (0.08, bottom - 0.92 * radius)
    condyle = radius * (1 - np.sqrt(ellipse(x, y, centre, (radius, 0.92 * radius))))
    shaft = np.minimum(0.62 * radius - np.abs(x - 0.02), centre[1] - y)
    femur = np.maximum(condyle, shaft) + 0.008 * shape
    top = GAP + 0.05 + knee.slope * x
    half = knee.tibia * round_ - 0.22 * step(y - 0.55, 0.5)
    tibia = np.minimum(half - np.abs(x - 0.08), y - top) + 0.008 * shape
    return np.asarray(femur), np.asarray(tibia)


def menisci(exam: Exam, s: float, x: Field, y: Field) -> tuple[Field, Field]:
    """(how much of a pixel is meniscus, how much of that is torn): wedges at front and back."""
    here = fade(abs(s) - 0.22, 0.12) * fade(0.95 - abs(s), 0.1)
    front = 0.075 * np.clip((-0.06 - x) / 0.24, 0, 1) * step(x + 0.36, 0.03)
    back = 0.085 * np.clip((x - 0.18) / 0.26, 0, 1) * step(0.46 - x, 0.03)
    wedge = here * step(np.maximum(front, back) - np.abs(y - GAP) - 0.01, 0.03)
    place, slant = exam.tear
    near = fade(0.32 - abs(s - exam.side * place), 0.2) * exam.labels["meniscus"]
    line = hump((y - GAP) - slant * (x - 0.36), 0.045) * step(x - 0.2, 0.04)
    return np.asarray(wedge), np.asarray(near * line)


def band(x: Field, y: Field, ends: tuple[float, float, float, float], half: float) -> Field:
    """A straight band from (x0, y0) to (x1, y1)."""
    x0, y0, x1, y1 = ends
    length = np.hypot(x1 - x0, y1 - y0)
    u, v = (x1 - x0) / length, (y1 - y0) / length
    along, across = (x - x0) * u + (y - y0) * v, (y - y0) * u - (x - x0) * v
    inside = step(along, 0.04) * step(length - along, 0.04)
    return np.asarray(inside * step(half - np.abs(across), 0.025))


def ligaments(exam: Exam, s: float, x: Field, y: Field, shape: Field) -> tuple[Field, Field]:
    """(black bands, bright ones): cruciates in the middle slices; a torn ACL is a bright blur."""
    middle = fade(0.26 - abs(s), 0.12)
    acl = band(x + 0.01 * shape, y, (0.24, -0.06, -0.14, 0.32), 0.05) * middle
    posterior = band(x, y - 0.25 * (x - 0.15) ** 2, (0.02, 0.02, 0.38, 0.34), 0.045) * middle
    tendon = band(x, y, (-0.58, -0.12, -0.44, 0.44), 0.030) * fade(0.45 - abs(s), 0.2)
    torn = exam.labels["acl"]
    blur = torn * middle * np.maximum(1 - ellipse(x, y, (0.05, 0.13), (0.20, 0.17), 0.8), 0)
    stump = acl * (1 - torn * step(0.36 - np.hypot(x - 0.05, y - 0.13), 0.2))
    return np.asarray(np.maximum(np.maximum(stump, posterior), tendon)), np.asarray(blur)


def fluid(exam: Exam, s: float, x: Field, y: Field) -> Field:
    """Fluid above the patella and behind the joint, much of it where something is wrong."""
    reach = exam.effusion * np.sqrt(max(1 - (s / 1.1) ** 2, 0.05))
    pouch = ellipse(x, y, (-0.47, -0.52), (0.03 + 0.11 * reach, 0.12 + 0.24 * reach), 0.12)
    behind = ellipse(x, y, (0.55, 0.20), (0.02 + 0.06 * reach, 0.04 + 0.12 * reach))
    return np.asarray(np.maximum(step(1 - pouch, 0.4), reach * step(1 - behind, 0.5)))


def frame(
    knee: Knee, exam: Exam, s: float, grid: tuple[Field, Field], tissue: Field, shape: Field
) -> Field:
    """One slice at s, 0..1: from skin to joint, each tissue over the one before."""
    x, y = grid
    skin = 0.90 - 0.10 * np.abs(y) - np.abs(x) + 0.01 * shape
    flesh = MUSCLE + (FAT - MUSCLE) * step(knee.fat - skin, 0.06) + 0.05 * tissue
    level = flesh * step(skin, 0.04)
    femur, tibia = bones(knee, s, x, y, shape)
    joint = step(knee.cartilage + femur, 0.02) * step(y + 0.25, 0.1)
    joint = np.maximum(joint, step(knee.cartilage + tibia, 0.02) * step(0.42 - y, 0.05))
    level = level + (CARTILAGE + 0.03 * tissue - level) * joint
    wet = fluid(exam, s, x, y)
    level = level + (FLUID - level) * wet
    patella = 0.13 * (1 - np.sqrt(ellipse(x, y, (-0.60, -0.28), (0.10, 0.20), 0.05)))
    patella = patella - 0.3 * max(abs(s) - 0.45, 0.0)
    at_x, at_y, radius, strength = exam.bruise
    away = (x - at_x) ** 2 + (y - at_y) ** 2 + (0.6 * (s - 0.5 * exam.side)) ** 2
    bruise = strength * np.exp(-away / radius**2)
    marrow = MARROW + 0.04 * tissue + (0.85 - MARROW) * bruise
    for bone in (femur, tibia, patella):
        level = level + (CORTEX + (marrow - CORTEX) * step(bone - 0.025, 0.02) - level) * step(
            bone, 0.02
        )
    outside = step(-np.maximum(femur, tibia), 0.02)
    black, blur = ligaments(exam, s, x, y, shape)
    level = level + (LIGAMENT - level) * black * outside
    level = level + (0.85 - level) * np.minimum(1.5 * blur, 1.0) * outside
    wedge, torn = menisci(exam, s, x, y)
    level = level + (LIGAMENT + (FLUID - LIGAMENT) * torn - level) * wedge
    return np.asarray(level)


def draw(seed: int, patient: int, index: int, canvas: Canvas) -> tuple[list[Field], dict[str, int]]:
    """The frames of one exam, each (size_px, size_px), 0..1; its findings."""
    knee = Knee.of(Draws(seed, STREAM + ".patient", patient))
    draws = Draws(seed, STREAM, index, normals=NORMALS)
    exam = Exam.of(draws)
    x, y = canvas.grid()
    cos, sin = np.cos(exam.turn) / exam.zoom, np.sin(exam.turn) / exam.zoom
    grid = (cos * x + sin * y - exam.shift[0], cos * y - sin * x - exam.shift[1])
    first, second = canvas.noise(draws, TISSUE_CELLS), canvas.noise(draws, TISSUE_CELLS)
    shape, coil = canvas.noise(draws, SHAPE_CELLS), canvas.noise(draws, COIL_CELLS)
    frames = []
    for s in np.linspace(-0.92, 0.92, exam.frames).tolist():
        # Tissue changes from slice to slice without a jump.
        tissue = np.cos(2.0 * s) * first + np.sin(2.0 * s) * second
        level = frame(knee, exam, s, grid, tissue, shape) * (1 + exam.coil * coil)
        frames.append(canvas.reduce(np.clip(exam.bright * level, 0.0, 1.0)))
    return frames, exam.labels
