"""60 canaries in the places where image files and their tables name people."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medray.records import Array
from tests.made_dicom import dicom_dataset

STANDARD = (
    "PatientName PatientID OtherPatientNames PatientBirthName PatientMotherBirthName "
    "PatientAddress "
    "PatientTelephoneNumbers PatientComments AdditionalPatientHistory EthnicGroup Occupation "
    "MedicalRecordLocator PatientReligiousPreference PatientInsurancePlanCodeSequence "
    "AccessionNumber StudyID StudyDescription SeriesDescription ProtocolName ImageComments "
    "InstitutionName InstitutionAddress InstitutionalDepartmentName StationName "
    "ReferringPhysicianName PerformingPhysicianName OperatorsName PhysiciansOfRecord "
    "NameOfPhysiciansReadingStudy RequestingPhysician RequestedProcedureDescription "
    "DeviceSerialNumber Manufacturer ManufacturerModelName SoftwareVersions DetectorID "
    "PerformedProcedureStepID PerformedProcedureStepDescription RequestAttributesSequence "
    "AdmissionID IssuerOfPatientID DerivationDescription"
).split()


def canary(number: int) -> str:
    return f"CANARY{number:02d}Q"


def with_canaries(pixels: Array) -> bytes:
    """A DICOM file with 55 canaries: standard, nested, private, overlay, UIDs, preamble."""
    dataset = dicom_dataset(pixels)
    for number, name in enumerate(STANDARD):
        if name.endswith("Sequence"):
            item = Dataset()
            item.CodeMeaning = canary(number)
            setattr(dataset, name, Sequence([item]))
        else:
            setattr(dataset, name, canary(number))
    for number in range(42, 47):
        dataset.add_new((0x0009, 0x1000 + number), "LO", canary(number))
    dataset.add_new((0x0009, 0x0010), "LO", canary(47))
    dataset.add_new((0x6000, 0x3000), "OB", canary(48).encode())
    dataset.add_new((0x6000, 0x1500), "LO", canary(49))
    dataset.add_new((0x5000, 0x3000), "OB", canary(50).encode())
    dataset.StudyInstanceUID = f"1.2.{uid_canary(51)}"
    dataset.SeriesInstanceUID = f"1.2.{uid_canary(52)}"
    dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.{uid_canary(53)}"
    dataset.preamble = canary(54).encode().ljust(128, b"\0")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def uid_canary(number: int) -> str:
    return f"77007700{number}"


def canaries() -> list[bytes]:
    texts = [canary(k) for k in range(60) if k not in (51, 52, 53)]
    return [text.encode() for text in [*texts, *(uid_canary(k) for k in (51, 52, 53))]]


def assert_all_are_in(source: Path) -> None:
    """The control: what is searched for can be found by this search."""
    files = [path for path in source.rglob("*") if path.is_file()]
    hay = b"".join([str(path).encode() + path.read_bytes() for path in files])
    missing = [word for word in canaries() if word not in hay]
    assert missing == [] and len(canaries()) == 60
