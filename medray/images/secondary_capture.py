"""Synthetic images as DICOM Secondary Capture, marked as synthetic beyond doubt.

Every UID is a function of the image's address, so the same image is the same instance for ever.
"""

from __future__ import annotations

import hashlib
import io
import warnings

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from medray import __version__

Pixels = npt.NDArray[np.uint8]
# Synthetic images have no time of their own; the same bytes come out whenever they are made.
DATE, TIME = "20000101", "000000"
# Under this root (ITU-T X.667) anybody may make UIDs of 128 bits without asking.
UUID_ROOT = "2.25."
# Of parts that come in pairs the side is to be stated, and "" says that it is not known.
UNPAIRED = frozenset("ABDOMEN BRAIN CHEST HEAD HEART LIVER NECK PELVIS SKULL SPINE".split())
IMPLEMENTATION = UID(UUID_ROOT + str(int.from_bytes(hashlib.sha256(b"medray").digest()[:16])))


def encode_secondary_capture(
    image: Pixels,
    *,
    address: str,
    model: str,
    seed: int,
    label: str,
    series: str,
    audited: bool,
    body_part: str = "",
) -> bytes:
    """The DICOM file of a uint8 image (H, W) or (H, W, 3); the same arguments give the same bytes.

    `model` names the generator with its digest, `series` the archive; `body_part` is a DICOM
    defined term such as CHEST, where it is known. ValueError for another shape or type.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.ndim == 3 != image.shape[-1]:
        raise ValueError(
            f"image must be uint8 of shape (H, W) or (H, W, 3), got {image.dtype} {image.shape}"
        )
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = uid_of("instance", address)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION
    meta.ImplementationVersionName = f"MEDRAY {__version__}"[:16]
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    _who(dataset, address, series)
    _how(dataset, model, seed, label, audited)
    _what(dataset, address, body_part)
    _pixels(dataset, image)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def uid_of(kind: str, text: str) -> UID:
    """The UID that belongs to a text, for ever: 2.25 and 128 bits of its SHA-256."""
    digest = hashlib.sha256(f"medray/{kind}/{text}".encode()).digest()
    return UID(UUID_ROOT + str(int.from_bytes(digest[:16])))


def _who(dataset: Dataset, address: str, series: str) -> None:
    """Patient, study and series: nobody's, and one of each for an archive's generator and seed."""
    short = hashlib.sha256(address.encode()).hexdigest()[:16].upper()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName = "SYNTHETIC^IMAGE"
    dataset.PatientID = f"SYN-{short}"
    dataset.PatientBirthDate = ""
    dataset.PatientSex = ""
    whole = address.rpartition(":")[0]
    dataset.StudyInstanceUID = uid_of("study", address)
    dataset.SeriesInstanceUID = uid_of("series", address)
    dataset.StudyDate = dataset.ContentDate = DATE
    dataset.StudyTime = dataset.ContentTime = TIME
    dataset.ReferringPhysicianName = ""
    dataset.AccessionNumber = ""
    dataset.StudyID = "SYNTHETIC"
    dataset.StudyDescription = f"SYNTHETIC {whole}"[:64]
    dataset.SeriesDescription = f"SYNTHETIC {series}"[:64]
    dataset.SeriesNumber = 1
    dataset.Manufacturer = "medray"
    dataset.SoftwareVersions = __version__


def _how(dataset: Dataset, model: str, seed: int, label: str, audited: bool) -> None:
    """That it is synthetic, and by what it was made."""
    dataset.SyntheticData = "YES"
    dataset.ConversionType = "SYN"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.DerivationDescription = (
        f"Synthetic image by medray {__version__}, model {model}, seed {seed}, class "
        f"{label or 'unlabelled'}, {'audited' if audited else 'not audited'} for copies of "
        "training images. Research use only. Not for diagnosis."
    )
    purpose = Dataset()
    purpose.CodeValue = "109103"
    purpose.CodingSchemeDesignator = "DCM"
    purpose.CodeMeaning = "Modifying Equipment"
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = Sequence([purpose])
    equipment.Manufacturer = "medray"
    equipment.ManufacturerModelName = model[:64]
    equipment.SoftwareVersions = __version__
    equipment.ContributionDescription = "Generated the image"
    dataset.ContributingEquipmentSequence = Sequence([equipment])


def _what(dataset: Dataset, address: str, body_part: str) -> None:
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = uid_of("instance", address)
    dataset.Modality = "OT"
    dataset.InstanceNumber = 1
    dataset.ImageComments = address
    dataset.BurnedInAnnotation = "NO"
    dataset.BodyPartExamined = body_part
    dataset.PatientOrientation = ""
    if body_part not in UNPAIRED:
        dataset.Laterality = ""


def _pixels(dataset: Dataset, image: Pixels) -> None:
    grey = image.ndim == 2
    dataset.Rows, dataset.Columns = image.shape[:2]
    dataset.SamplesPerPixel = 1 if grey else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if grey else "RGB"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    if grey:
        dataset.WindowCenter, dataset.WindowWidth = "128", "256"
        dataset.RescaleIntercept, dataset.RescaleSlope = "0", "1"
        dataset.RescaleType = "US"
    else:
        dataset.PlanarConfiguration = 0
    data = image.tobytes()
    dataset.PixelData = data + bytes(len(data) % 2)
