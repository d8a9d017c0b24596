"""A mask as DICOM Segmentation of the image that it was made of, through highdicom.

Patient, study and frame of reference are the source's own: the result is as identifying as the
source. Every UID is a function of the source's and of what made the mask.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medray import __version__
from medray.errors import DataError, ResourceError
from medray.images.secondary_capture import DATE, TIME, uid_of

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# Codes of SNOMED CT.
CATEGORY = ("49755003", "SCT", "Morphologically abnormal structure")
KIND = ("52988006", "SCT", "Lesion")
FAMILY = ("123109", "DCM", "Artificial Intelligence")


def encode_segmentation(
    source: bytes, mask_HW: npt.NDArray[np.bool_], *, label: str, algorithm: str, made_of: str
) -> bytes:
    """The DICOM SEG file of a mask of the one frame of the DICOM file `source`, as large as it.

    `label` names the segment, `algorithm` what found it, `made_of` everything that decides the mask
    (the same gives the same bytes). ResourceError without highdicom, DataError for a source that
    has several frames, another size, or lacks what a segmentation must quote of it.
    """
    try:
        import highdicom
    except ImportError:
        raise ResourceError(
            "highdicom, which writes DICOM segmentations, is not installed",
            hint="install medray[dicom]",
        ) from None
    with warnings.catch_warnings():
        # What they say quotes the file.
        warnings.simplefilter("ignore")
        dataset = _source(source, mask_HW)
        try:
            made = _segmentation(highdicom, dataset, mask_HW, label, algorithm, made_of)
        except (AttributeError, ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"no segmentation can refer to this DICOM file ({type(error).__name__})",
                code="MR-D115",
                hint="a segmentation quotes its source's patient, study, series and place",
            ) from None
        buffer = io.BytesIO()
        made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _source(data: bytes, mask_HW: npt.NDArray[np.bool_]) -> Dataset:
    """The source without its pixels."""
    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
    frames = int(dataset.get("NumberOfFrames") or 1)
    size = (int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0))
    if frames > 1 or size != mask_HW.shape:
        raise DataError(
            f"a segmentation of {mask_HW.shape[0]}x{mask_HW.shape[1]} px cannot refer to {frames} "
            f"frame(s) of {size[0]}x{size[1]}",
            code="MR-D115",
        )
    # A file may lack what is allowed to be empty, and a segmentation copies it.
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber"):
        if name not in dataset:
            setattr(dataset, name, "")
    for name in ("StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"):
        if name not in dataset:
            setattr(dataset, name, "")
    return dataset


def _segmentation(
    highdicom: Any,
    dataset: Dataset,
    mask_HW: npt.NDArray[np.bool_],
    label: str,
    algorithm: str,
    made_of: str,
) -> Any:
    address = f"{dataset.SOPInstanceUID}:{made_of}"
    concept = highdicom.sr.CodedConcept
    described = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label=label[:64],
        segmented_property_category=concept(*CATEGORY),
        segmented_property_type=concept(*KIND),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=algorithm[:64], family=concept(*FAMILY), version=__version__
        ),
    )
    made = highdicom.seg.Segmentation(
        source_images=[dataset],
        pixel_array=mask_HW.astype(np.uint8)[None],
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[described],
        series_instance_uid=uid_of("seg-series", f"{dataset.SeriesInstanceUID}:{made_of}"),
        series_number=1,
        sop_instance_uid=uid_of("seg-instance", address),
        instance_number=1,
        manufacturer="medray",
        manufacturer_model_name="Grad-CAM",
        software_versions=__version__,
        device_serial_number="0",
        content_description="Where a classifier looked. Research use only. Not for diagnosis."[:64],
    )
    made.SeriesDescription = f"Grad-CAM {label}"[:64]
    _settled(made, address)
    return made


def _settled(made: Dataset, address: str) -> None:
    """Times and the UIDs that were drawn: the same mask gives the same bytes."""
    organization = uid_of("seg-dimensions", address)
    for element in made.iterall():
        if element.keyword == "DimensionOrganizationUID":
            element.value = organization
        elif element.keyword == "ContributionDateTime":
            element.value = DATE + TIME
    for name in ("ContentDate", "InstanceCreationDate", "SeriesDate"):
        if name in made:
            setattr(made, name, DATE)
    for name in ("ContentTime", "InstanceCreationTime", "SeriesTime"):
        if name in made:
            setattr(made, name, TIME)
