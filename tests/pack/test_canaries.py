"""60 canaries in places where files name people: none is in any output or log."""

import io
import warnings

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medray.pack.config import PackConfig
from medray.pack.pack import Job, pack
from medray.store import Store
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


def canary(number):
    return f"CANARY{number:02d}Q"


def with_canaries(pixels):
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


def uid_canary(number):
    return f"77007700{number}"


def everything():
    texts = [canary(k) for k in range(60) if k not in (51, 52, 53)]
    return [text.encode() for text in [*texts, *(uid_canary(k) for k in (51, 52, 53))]]


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_no_canary_is_in_any_output_or_log(tmp_path, monkeypatch, capfd, encoding):
    monkeypatch.setenv("MEDRAY_SECRET_KEY", "0123456789abcdef")
    source = tmp_path / f"in{canary(55)}"
    (source / canary(56)).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 4000, (12, 12), np.uint16)
    name = f"{canary(56)}/{canary(57)}.dcm"
    (source / name).write_bytes(with_canaries(pixels))
    (source / "labels.csv").write_text(
        f"file,label,patient,note\n{name},x,{canary(58)},{canary(59)}\n"
    )
    assert_all_are_in(source)
    config = PackConfig(
        source=str(source),
        size_px=8,
        encoding=encoding,
        samples_per_shard=1,
        val=0,
        test=0,
        workers=0,
    )
    for layout in ("csv", "tree"):
        given = config.model_copy(update={"layout": layout})
        if layout == "csv":
            given = given.model_copy(update={"source": f"{source}/labels.csv"})
        pack(given, Job(str(tmp_path / layout)))
        assert_none_is_in(tmp_path / layout, capfd)
    stored = Store(tmp_path / "csv").read_bytes("train-000000.tar")
    assert b'"patient":"' in stored  # a hash is there


def assert_all_are_in(source):
    """The control: what is searched for can be found by this search."""
    files = [path for path in source.rglob("*") if path.is_file()]
    hay = b"".join([str(path).encode() + path.read_bytes() for path in files])
    missing = [word for word in everything() if word not in hay]
    assert missing == [] and len(everything()) == 60


def assert_none_is_in(out, capfd):
    store = Store(out)
    logged = "".join(capfd.readouterr())
    hay = {name: store.read_bytes(name) for name in store.names()} | {"log": logged.encode()}
    assert len(hay) > 7
    for name, data in hay.items():
        assert not [word for word in everything() if word in data + name.encode()], name


def test_what_is_rejected_is_not_logged_by_name_either(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MEDRAY_SECRET_KEY", "0123456789abcdef")
    (tmp_path / "in").mkdir()
    damaged = with_canaries(np.zeros((4, 4), np.uint16))[:-9]
    (tmp_path / "in" / f"{canary(57)}.dcm").write_bytes(damaged)
    (tmp_path / "in" / "good.npy").write_bytes(npy())
    config = PackConfig(source=str(tmp_path / "in"), size_px=4, max_rejected=1, workers=0)
    pack(config, Job(str(tmp_path / "out")))
    logged = "".join(capfd.readouterr())
    assert "1 files were rejected" in logged and "CANARY" not in logged


def npy():
    np.save(buffer := io.BytesIO(), np.zeros((4, 4), np.uint8))
    return buffer.getvalue()
