"""DICOM files made for tests: small, valid, and as odd as a test asks."""

from __future__ import annotations

import io
import warnings
import zlib
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
CT = "1.2.840.10008.5.1.4.1.1.2"


def dicom_dataset(pixels: np.ndarray, **attributes: Any) -> Dataset:
    """A data set with (H, W) or (H, W, 3) integer `pixels`; `attributes` set its elements."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CT
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPClassUID, dataset.Modality = CT, "CT"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    data = pixels.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OW"
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def dicom_bytes(pixels: np.ndarray, **attributes: Any) -> bytes:
    """The file of `dicom_dataset`, whatever pydicom has to say about its values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return saved(dicom_dataset(pixels, **attributes))


def saved(dataset: Dataset) -> bytes:
    """A data set as a file."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def deflated(data: bytes) -> bytes:
    """The same file with its data set deflated."""
    explicit = b"1.2.840.10008.1.2.1\0"
    start = data.index(explicit) + len(explicit)
    while data[start : start + 2] == b"\2\0":  # elements of the meta group that follow
        start += 8 + int.from_bytes(data[start + 6 : start + 8], "little")
    grown = data[:start].replace(b"UI\x14\0" + explicit, b"UI\x16\0" + b"1.2.840.10008.1.2.1.99")
    length = int.from_bytes(grown[140:144], "little") + 2
    grown = grown[:140] + length.to_bytes(4, "little") + grown[144:]
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return grown + stream.compress(data[start:]) + stream.flush()
