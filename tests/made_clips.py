"""Volumes and series made for tests: a body whose directions can be told from its values."""

from __future__ import annotations

import gzip
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.made_dicom import dicom_dataset, saved

Array = npt.NDArray[Any]
AXIAL = (1, 0, 0, 0, 1, 0)


def body(right: int = 4, front: int = 5, head: int = 6) -> Array:
    """Values [right, front, head]: 100 times the way to the right, 10 to the front, 1 up."""
    x, y, z = np.meshgrid(np.arange(right), np.arange(front), np.arange(head), indexing="ij")
    return (100 * x + 10 * y + z).astype(np.int16)


def nifti_bytes(
    values: Array,
    codes: str = "RAS",
    zooms: tuple[float, float, float] = (1.0, 2.0, 5.0),
    *,
    zipped: bool = False,
    slice_axis: int | None = None,
    slope: float | None = None,
) -> bytes:
    """A RAS array with voxels of `zooms` mm, stored along `codes` (LPI: every axis turned)."""
    volume = nibabel.Nifti1Image(values, np.diag([*zooms, 1.0]))
    wanted = nibabel.orientations.axcodes2ornt(tuple(codes))
    start = nibabel.orientations.axcodes2ornt(("R", "A", "S"))
    volume = volume.as_reoriented(nibabel.orientations.ornt_transform(start, wanted))
    if slice_axis is not None:
        volume.header.set_dim_info(slice=slice_axis)
    if slope is not None:
        volume.header.set_slope_inter(slope, 3)
    data: bytes = volume.to_bytes()
    return gzip.compress(data, mtime=0) if zipped else data


def slice_dataset(
    pixels: Array, number: int, place_mm: float, orientation: tuple[float, ...] = AXIAL, **more: Any
) -> Dataset:
    """One slice of a series, `place_mm` along the normal of its orientation."""
    normal = np.cross(orientation[:3], orientation[3:])
    return dicom_dataset(
        pixels,
        **{
            "InstanceNumber": number,
            "ImageOrientationPatient": list(orientation),
            "ImagePositionPatient": [float(part) for part in normal * place_mm],
            "PixelSpacing": [2, 1],
            "SliceThickness": 4,
            "SeriesInstanceUID": "1.2.3.4",
            "PatientID": "P7",
            **more,
        },
    )


def slice_bytes(pixels: Array, number: int, place_mm: float, *args: Any, **more: Any) -> bytes:
    """The file of `slice_dataset`."""
    return saved(slice_dataset(pixels, number, place_mm, *args, **more))


def multiframe_bytes(values_THW: Array, places_mm: list[float], **more: Any) -> bytes:
    """An enhanced file of frames at these places."""
    frames = []
    for place in places_mm:
        position, item = Dataset(), Dataset()
        position.ImagePositionPatient = [0.0, 0.0, place]
        item.PlanePositionSequence = Sequence([position])
        frames.append(item)
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = list(AXIAL)
    measures.PixelSpacing, measures.SliceThickness = [2, 1], 4
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.PixelMeasuresSequence = Sequence([measures])
    dataset = dicom_dataset(values_THW[0], NumberOfFrames=len(values_THW), **more)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    data = values_THW.tobytes()
    dataset.PixelData = data + bytes(len(data) % 2)
    return saved(dataset)
