"""Made-up images with known truth: chest films, brain slices with a tumour, nodules of the lung.

And made-up clips: knees, slice by slice.

They are the embedded default data. Each image is an address (seed, index): its bytes, labels,
patient and split are functions of that alone, whatever else is drawn; at another size it is the
same picture, finer or coarser.

About three addresses share a patient, who keeps anatomy (and tumour) from image to image; patients,
not images, go to train, val or test (70 : 15 : 15). Findings are imbalanced as in a clinic.
"""

from collections.abc import Callable, Iterator

import numpy as np

from medray import rng
from medray.phantoms import _brain, _chest, _knee, _lung, _nodule
from medray.phantoms._field import Canvas, with_grain
from medray.records import Sample

# Addresses are dealt in blocks of 12 to 5 patients: patients differ in how many images they have.
_BLOCK_IMAGES, _BLOCK_PATIENTS = 12, 5
_TRAIN, _VAL = 0.70, 0.15

# The width of the picture on the patient.
_CHEST_MM, _BRAIN_MM, _LUNG_MM, _KNEE_MM = 400.0, 230.0, 90.0, 160.0
_KNEE_DEPTH_MM = 90.0
# A frame's noise has an address of its own: the clip's, times this, plus the frame's number.
_KNEE_GRAINS = 64

NORMAL = "normal"
CLASSES = {
    "chest": (NORMAL, *_chest.FINDINGS),
    "brain": _brain.GRADES,
    "lung": (_nodule.SMOOTH, *_nodule.SIGNS),
    "knee": _knee.FINDINGS,
}


def chest(seed: int, index: int, size_px: int) -> Sample:
    """A frontal chest film, uint8 (size_px, size_px), with 0 or 1 for each of five findings.

    `label` is "normal" or the rarest finding present. ValueError for a size outside 8 to 2048 px.
    """
    canvas = Canvas.of(size_px)
    patient = patient_of("chest", seed, index)
    field, labels = _chest.draw(seed, patient, index, canvas)
    present = [name for name in _chest.RAREST_FIRST if labels[name]]
    split = split_of("chest", seed, patient)
    return Sample(
        key=f"{split}-{index:08d}",
        image=with_grain(field, seed, "phantom.chest.grain", index, 0.012),
        label=present[0] if present else NORMAL,
        labels=labels,
        patient=f"chest-{seed}-{patient}",
        split=split,
        spacing_mm=(_CHEST_MM / size_px, _CHEST_MM / size_px),
        burned_in=False,
    )


def brain(seed: int, index: int, size_px: int) -> Sample:
    """An axial FLAIR slice, uint8 (size_px, size_px), with the mask (0, 255) of its tumour.

    `label` is the tumour's grade, "none" where the slice shows none. ValueError as in `chest`.
    """
    canvas = Canvas.of(size_px)
    patient = patient_of("brain", seed, index)
    field, covered, grade = _brain.draw(seed, patient, index, canvas)
    split = split_of("brain", seed, patient)
    return Sample(
        key=f"{split}-{index:08d}",
        image=with_grain(field, seed, "phantom.brain.grain", index, 0.010),
        label=grade,
        labels={name: int(grade == name) for name in _brain.GRADES[1:]},
        patient=f"brain-{seed}-{patient}",
        split=split,
        mask=np.where(covered >= 0.5, np.uint8(255), np.uint8(0)),
        spacing_mm=(_BRAIN_MM / size_px, _BRAIN_MM / size_px),
        burned_in=False,
    )


def lung(seed: int, index: int, size_px: int) -> Sample:
    """A square of a chest CT slice around a nodule, uint8, with the nodule's mask (0, 255).

    `labels` holds 0 or 1 for each of six signs, `label` the first that applies: calcification,
    ground_glass, part_solid, spiculation, lobulation, else solid_smooth. Nodules are larger than
    most real ones, so that their signs are seen at 32 px. ValueError as in `chest`.
    """
    canvas = Canvas.of(size_px)
    patient = patient_of("lung", seed, index)
    field, covered, nodule, grain = _lung.draw(seed, patient, index, canvas)
    split = split_of("lung", seed, patient)
    return Sample(
        key=f"{split}-{index:08d}",
        image=with_grain(field, seed, "phantom.lung.grain", index, grain),
        label=nodule.label,
        labels=nodule.labels,
        patient=f"lung-{seed}-{patient}",
        split=split,
        mask=np.where(covered >= 0.5, np.uint8(255), np.uint8(0)),
        spacing_mm=(_LUNG_MM / size_px, _LUNG_MM / size_px),
        burned_in=False,
    )


def knee(seed: int, index: int, size_px: int) -> Sample:
    """A clip: 8 to 20 sagittal slices of a knee, uint8 (T, size_px, size_px), from side to side.

    `labels` holds 0 or 1 for abnormal, acl (a torn cruciate ligament) and meniscus (a torn one);
    either tear is abnormal too. `label` is the rarest that applies, None for a healthy knee.
    ValueError as in `chest`.
    """
    canvas = Canvas.of(size_px)
    patient = patient_of("knee", seed, index)
    fields, labels = _knee.draw(seed, patient, index, canvas)
    grain = [
        with_grain(field, seed, "phantom.knee.grain", index * _KNEE_GRAINS + number, 0.02)
        for number, field in enumerate(fields)
    ]
    split = split_of("knee", seed, patient)
    return Sample(
        key=f"{split}-{index:08d}",
        image=np.stack(grain),
        label=next((name for name in _knee.RAREST_FIRST if labels[name]), None),
        labels=dict(labels),
        patient=f"knee-{seed}-{patient}",
        split=split,
        spacing_mm=(_KNEE_MM / size_px, _KNEE_MM / size_px),
        burned_in=False,
        frames=len(fields),
        slice_mm=_KNEE_DEPTH_MM / len(fields),
    )


# Those of images, and those of clips.
KINDS: dict[str, Callable[[int, int, int], Sample]] = {
    "chest": chest,
    "brain": brain,
    "lung": lung,
}
CLIP_KINDS: dict[str, Callable[[int, int, int], Sample]] = {"knee": knee}


def dataset(kind: str, seed: int, count: int, size_px: int) -> Iterator[Sample]:
    """The samples of addresses (seed, 0) to (seed, count - 1); ValueError for an unknown kind."""
    every = KINDS | CLIP_KINDS
    if kind not in every:
        raise ValueError(f"unknown phantoms {kind!r}; there are {', '.join(every)}")
    if count < 0:
        raise ValueError(f"count must be 0 or more, got {count}")
    draw = every[kind]
    return (draw(seed, index, size_px) for index in range(count))


def patient_of(kind: str, seed: int, index: int) -> int:
    """The patient's number for an address of this kind."""
    block, place = divmod(index, _BLOCK_IMAGES)
    stream = f"phantom.{kind}.dealt"
    slot = rng.integers(seed, stream, block, 1, 0, _BLOCK_PATIENTS, start=place)
    return block * _BLOCK_PATIENTS + int(slot[0])


def split_of(kind: str, seed: int, patient: int) -> str:
    """train, val or test, for all images of the patient."""
    place = rng.uniforms(seed, f"phantom.{kind}.split", patient, 1)[0]
    return "train" if place < _TRAIN else "val" if place < _TRAIN + _VAL else "test"
