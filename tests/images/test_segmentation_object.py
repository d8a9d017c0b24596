"""Masks as DICOM segmentations: what they refer to, the same bytes, what is refused."""

import io
import sys

import numpy as np
import pydicom
import pytest

from medray.errors import DataError, ResourceError
from medray.images.secondary_capture import uid_of
from medray.images.segmentation_object import encode_segmentation
from tests.made_dicom import dicom_bytes

UIDS = {
    "SOPInstanceUID": uid_of("instance", "t"),
    "StudyInstanceUID": uid_of("study", "t"),
    "SeriesInstanceUID": uid_of("series", "t"),
}
PLACE = {
    **UIDS,
    "FrameOfReferenceUID": uid_of("frame", "t"),
    "ImagePositionPatient": ["1", "2", "3"],
    "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"],
    "PixelSpacing": ["2", "2"],
    "SliceThickness": "4",
}
NAMED = {"label": "tumor", "algorithm": "gradcam body.blocks.1", "made_of": "x"}


@pytest.fixture
def source():
    return dicom_bytes(np.arange(20 * 24, dtype=np.uint8).reshape(20, 24), **PLACE)


@pytest.fixture
def mask():
    found = np.zeros((20, 24), bool)
    found[3:9, 4:8] = True
    return found


def test_a_segmentation_refers_to_its_source_and_has_the_mask(source, mask):
    seg = pydicom.dcmread(io.BytesIO(encode_segmentation(source, mask, **NAMED)))
    assert np.array_equal(seg.pixel_array != 0, mask)
    assert seg.StudyInstanceUID == PLACE["StudyInstanceUID"]
    assert seg.SeriesInstanceUID != PLACE["SeriesInstanceUID"]
    assert seg.FrameOfReferenceUID == PLACE["FrameOfReferenceUID"]
    described = seg.SegmentSequence[0]
    assert (described.SegmentLabel, described.SegmentAlgorithmType) == ("tumor", "AUTOMATIC")
    assert "Not for diagnosis" in seg.ContentDescription


def test_the_same_mask_gives_the_same_bytes_and_another_way_another_instance(source, mask):
    one = encode_segmentation(source, mask, **NAMED)
    assert encode_segmentation(source, mask, **NAMED) == one
    other = encode_segmentation(source, mask, **{**NAMED, "made_of": "y"})
    uids = {pydicom.dcmread(io.BytesIO(data)).SOPInstanceUID for data in (one, other)}
    assert len(uids) == 2


def test_another_size_several_frames_and_a_source_without_a_study_are_refused(source, mask):
    with pytest.raises(DataError, match="20x20 px cannot refer to 1 frame") as error:
        encode_segmentation(source, mask[:, :20], **NAMED)
    assert error.value.code == "MR-D115"
    frames = dicom_bytes(np.zeros((20, 24), np.uint8), NumberOfFrames=2, **PLACE)
    with pytest.raises(DataError, match="2 frame"):
        encode_segmentation(frames, mask, **NAMED)
    bare = dicom_bytes(np.zeros((20, 24), np.uint8), PatientName="Doe^Jane")
    with pytest.raises(DataError) as error:
        encode_segmentation(bare, mask, **NAMED)
    assert "Doe" not in str(error.value)


def test_without_highdicom_it_says_what_to_install(source, mask, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ResourceError, match="medray\\[dicom\\]"):
        encode_segmentation(source, mask, **NAMED)
