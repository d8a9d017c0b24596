"""DICOM to frames with their places: a slice of a series, or all frames of an enhanced file.

Only allow-listed attributes are read, as `dicom` does; of a series' name a digest is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medray.errors import DataError
from medray.images import dicom
from medray.images.frames import Frames, Vector, check_frames, native
from medray.images.functional_groups import GROUPS, take_first_frame
from medray.images.pixels import Array

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PLACED = "ImagePositionPatient ImageOrientationPatient SliceThickness SpacingBetweenSlices".split()
SERIES = ["InstanceNumber", "SeriesInstanceUID"]
# DICOM's axes point to the left and to the back, RAS to the right and to the front.
_TO_RAS = np.array([-1.0, -1.0, 1.0])


def dicom_frames(data: bytes) -> Frames:
    """All frames of a DICOM file; DataError for anything that cannot be decoded."""
    with dicom.quiet():
        return dicom.guarded(lambda: _frames(dicom.read(data, *GROUPS, *PLACED, *SERIES)))


def _frames(dataset: Dataset) -> Frames:
    dicom.check_pixels(dataset)
    count = dicom.frame_count(dataset)
    check_frames((count, int(dataset.Rows), int(dataset.Columns)))
    groups = [_Group.of(dataset, number) for number in range(count)]
    take_first_frame(dataset)
    values = _values(dataset, groups)
    directions, places = _placed(groups)
    windows = {group.window for group in groups}
    first = groups[0]
    return Frames(
        native(values),
        dicom.bits_of(dataset),
        modality=dicom.text_of(dataset, "Modality"),
        spacing_mm=dicom.spacing_mm_of(dataset),
        slice_mm=first.slice_mm,
        window=windows.pop() if len(windows) == 1 else None,
        burned_in=dicom.burned_in_of(dataset),
        inverted=dataset.get("PhotometricInterpretation") == "MONOCHROME1",
        directions=directions,
        places_mm=places,
        number=_whole(dataset, "InstanceNumber"),
        series=_digest(str(dataset.get("SeriesInstanceUID") or "")),
    )


class _Group:
    """What one frame's functional groups (or the file, where it has none) say of it."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self._parts = parts
        self.position = self._numbers("ImagePositionPatient", 3)
        self.orientation = self._numbers("ImageOrientationPatient", 6)
        slope, intercept = self._one("RescaleSlope"), self._one("RescaleIntercept")
        self.rescale = (1.0 if slope is None else slope, intercept or 0.0)
        centre, width = self._one("WindowCenter"), self._one("WindowWidth")
        good = centre is not None and width is not None and width > 0
        self.window = (centre, width) if good and centre is not None and width is not None else None
        # Distances between centres first: slices may overlap, or leave gaps.
        self.slice_mm = self._one("SpacingBetweenSlices") or self._one("SliceThickness")

    @classmethod
    def of(cls, dataset: Dataset, number: int) -> _Group:
        parts = [dataset]
        for name in GROUPS:
            items: Any = dataset.get(name) or ()
            place = number if name.startswith("PerFrame") else 0
            if place < len(items):
                macros = [element.value for element in items[place] if element.VR == "SQ"]
                parts = [*(items[0] for items in macros if items), *parts]
        return cls(parts)

    def _numbers(self, name: str, count: int) -> tuple[float, ...] | None:
        for part in self._parts:
            value = part.get(name)
            if value is not None and not isinstance(value, str) and len(value) == count:
                numbers = tuple(float(number) for number in value)
                return numbers if np.isfinite(numbers).all() else None
        return None

    def _one(self, name: str) -> float | None:
        found = (dicom.number_of(part, name) for part in self._parts if name in part)
        return next(found, None)


def _placed(
    groups: Sequence[_Group],
) -> tuple[tuple[Vector, Vector, Vector] | None, tuple[float, ...] | None]:
    """Directions of T, H and W, and each frame's place along T; None where they do not say."""
    orientation = groups[0].orientation
    if orientation is None or any(g.position is None for g in groups):
        return None, None
    turned = [
        g for g in groups if not np.allclose(g.orientation or (9,) * 6, orientation, atol=0.01)
    ]
    along_W, along_H = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(along_W, along_H)
    length = float(np.linalg.norm(normal))
    if turned or not 0.9 < length < 1.1:
        return None, None
    normal = normal / length
    places = tuple(float(np.dot(normal, g.position or ())) for g in groups)
    return (_ras(normal), _ras(along_H), _ras(along_W)), places


def _ras(direction: Array) -> Vector:
    right, front, head = (direction * _TO_RAS).tolist()
    return right, front, head


def _values(dataset: Dataset, groups: Sequence[_Group]) -> Array:
    """Values (T, H, W) after the modality's rescale, as whole numbers where they are."""
    from pydicom.pixels.processing import apply_modality_lut
    from pydicom.pixels.utils import pixel_array

    stored: Array = pixel_array(dataset)
    samples = int(dataset.get("SamplesPerPixel") or 1)
    if samples not in (1, 3):
        raise DataError(f"{samples} samples per pixel; 1 or 3 are wanted", code="MR-D105")
    stored = stored if stored.ndim == (4 if samples == 3 else 3) else stored[None]
    if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        return _luminance(dicom.palette_levels(stored, dataset, dicom.bits_of(dataset)))
    if samples == 3:
        return _luminance(stored)
    if len(stored) != len(groups):
        raise DataError(f"{len(stored)} frames, its header says {len(groups)}", code="MR-D102")
    if dataset.get("ModalityLUTSequence"):
        return apply_modality_lut(stored, dataset)
    return _rescaled(stored, [group.rescale for group in groups])


def _rescaled(stored: Array, rescales: Sequence[tuple[float, float]]) -> Array:
    if set(rescales) == {(1.0, 0.0)}:
        return stored
    whole = stored.dtype.kind in "iu" and all(
        slope == 1 and intercept == round(intercept) for slope, intercept in rescales
    )
    kind = np.int32 if whole and stored.itemsize <= 2 else np.float32
    slopes, intercepts = (
        np.array(part, kind)[:, None, None] for part in zip(*rescales, strict=True)
    )
    rescaled: Array = stored.astype(kind) * slopes + intercepts
    return rescaled


def _luminance(stored_THWC: Array) -> Array:
    import cv2

    if stored_THWC.dtype not in (np.uint8, np.uint16):
        raise DataError(f"colour of {stored_THWC.dtype} is not supported", code="MR-D105")
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in stored_THWC])


def _whole(dataset: Dataset, name: str) -> int | None:
    number = dicom.number_of(dataset, name)
    return None if number is None else int(number)


def _digest(text: str) -> str | None:
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text else None
