"""Synthetic images as DICOM: marked, the same bytes each time, read back, valid by dciodvfy."""

import io
import shutil
import subprocess

import numpy as np
import pydicom
import pytest

from medray.images import decode
from medray.images.secondary_capture import encode_secondary_capture, uid_of

ADDRESS = "mr1:abcdefabcdef:prior:7:17"
UNKNOWN_TAG = "(0x0008,0x001c)"  # SyntheticData is younger than dciodvfy's edition of 2022


def picture(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def encoded(image, **changed):
    about = {
        "address": ADDRESS,
        "model": "pggan abcdefabcdef",
        "seed": 7,
        "label": "bacteria",
        "series": "chest",
        "audited": False,
        "body_part": "CHEST",
    }
    return encode_secondary_capture(image, **{**about, **changed})


@pytest.mark.parametrize("shape", [(64, 64), (31, 33), (16, 16, 3)])
def test_every_pixel_comes_back(shape):
    np.testing.assert_array_equal(decode(encoded(picture(*shape))).image, picture(*shape))


def test_it_says_that_it_is_synthetic_and_how_it_was_made():
    dataset = pydicom.dcmread(io.BytesIO(encoded(picture(16, 16))))
    assert dataset.SyntheticData == "YES"
    assert dataset.ConversionType == "SYN"
    assert list(dataset.ImageType) == ["DERIVED", "SECONDARY"]
    assert dataset.SeriesDescription.startswith("SYNTHETIC")
    assert dataset.PatientID.startswith("SYN-")
    for part in ("abcdefabcdef", "seed 7", "class bacteria", "not audited"):
        assert part in dataset.DerivationDescription
    assert dataset.ContributingEquipmentSequence[0].Manufacturer == "medray"
    assert dataset.SoftwareVersions
    assert (dataset.WindowCenter, dataset.WindowWidth) == (128, 256)
    assert (dataset.RescaleSlope, dataset.RescaleIntercept) == (1, 0)
    assert dataset.PhotometricInterpretation == "MONOCHROME2"
    assert (dataset.BurnedInAnnotation, dataset.BodyPartExamined) == ("NO", "CHEST")
    assert "PixelSpacing" not in dataset


def test_the_same_address_gives_the_same_bytes_and_another_one_other_uids():
    image = picture(16, 16)
    assert encoded(image) == encoded(image)
    one = pydicom.dcmread(io.BytesIO(encoded(image)))
    other = pydicom.dcmread(io.BytesIO(encoded(image, address=ADDRESS[:-1] + "8")))
    for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID"):
        assert getattr(one, name) != getattr(other, name)
    assert len(uid_of("instance", ADDRESS)) <= 64
    assert uid_of("instance", ADDRESS).is_valid


@pytest.mark.parametrize("image", [np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8)])
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ValueError, match="must be uint8"):
        encoded(image)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not here")
@pytest.mark.parametrize("shape", [(64, 64), (31, 33), (16, 16, 3)])
@pytest.mark.parametrize("body_part", ["CHEST", ""])
def test_dciodvfy_finds_no_error_but_that_it_does_not_know_synthetic_data(
    tmp_path, shape, body_part
):
    path = tmp_path / "one.dcm"
    path.write_bytes(encoded(picture(*shape), body_part=body_part))
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    errors = [line for line in lines if line.startswith("Error")]
    assert len(errors) == 1 and UNKNOWN_TAG in errors[0], "\n".join(errors)
    path.write_bytes(encoded(picture(*shape)).replace(b"DERIVED\\SECONDARY", b"DERIVED\\SECONDARX"))
    spoiled = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
    assert len([x for x in spoiled.stderr.splitlines() if x.startswith("Error")]) > 1
