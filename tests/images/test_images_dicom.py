"""DICOM: values against pydicom and the standard's formulas; every sample file; mutants."""

import csv
import warnings

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_windowing

from medray.errors import DataError
from medray.images import decode, dicom
from medray.images.dicom import dicom_header, first_frame, read
from medray.images.functional_groups import GROUPS, take_first_frame
from tests.made_dicom import deflated, dicom_bytes, dicom_dataset, saved

VALUES = np.random.default_rng(0).integers(-1024, 3000, (20, 30)).astype(np.int16)
CODES = {f"MR-D{number}" for number in (101, 102, 103, 104, 105, 107, 113, 114)}


def labels(folder):
    with open(folder / "labels.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_sample_file_is_decoded_as_labelled_or_refused_with_a_reason(unpacked):
    folder = unpacked("dicom_samples")
    rows = labels(folder)
    assert len(rows) == 127
    for row in rows:
        data = (folder / row["file"]).read_bytes()
        if row["label"] != "valid_image":
            refused_or_decoded(data, row)
            continue
        image = decode(data, name=row["file"]).image
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = first_frame(read(data))
        shape = [int(part) for part in row["shape"].split("x")]
        frames = int(row["frames"] or 1)
        assert stored.shape == tuple(shape[frames > 1 :]), row["file"]
        assert image.shape == stored.shape or image.shape == (*stored.shape, 3)
        low, high = float(row["min"]), float(row["max"])
        if frames == 1:
            assert (stored.min(), stored.max()) == pytest.approx((low, high)), row["file"]
        else:  # the table is of all frames
            assert low <= stored.min() <= stored.max() <= high


def refused_or_decoded(data, row):
    """What the labels call bad may only need a codec; what has no pixels is refused."""
    try:
        decoded = decode(data)
    except DataError as error:
        assert error.code in CODES and error.message
        return
    assert row["label"] == "bad_or_needs_codec", row["file"]
    assert decoded.image.shape[:2] == (int(row["rows"]), int(row["cols"]))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("centre, width", [(40, 400), (-600, 1500), (0, 1.5)])
def test_windows_are_those_of_the_standard(function, centre, width):
    attributes = {"WindowCenter": centre, "WindowWidth": width, "VOILUTFunction": function}
    decoded = decode(dicom_bytes(VALUES, **attributes))
    with np.errstate(over="ignore"):  # pydicom's sigmoid, far from the window
        reference = apply_windowing(VALUES, dicom_dataset(VALUES, **attributes))
    # pydicom's white is the highest stored value and its black the lowest.
    expected = reference.astype(np.float64) + 32768
    np.testing.assert_allclose(decoded.image, expected, atol=1.01)
    assert decoded.window == (centre, width)


def test_a_rescale_comes_before_the_window():
    attributes = {
        "RescaleSlope": 2,
        "RescaleIntercept": -100,
        "WindowCenter": 50,
        "WindowWidth": 200,
    }
    attributes["VOILUTFunction"] = "LINEAR_EXACT"
    image = decode(dicom_bytes(VALUES, **attributes)).image
    expected = np.clip((VALUES * 2.0 - 100 + 50) / 200, 0, 1) * 65535
    np.testing.assert_allclose(image, expected, atol=0.51)


def test_monochrome1_is_the_negative_of_monochrome2():
    positive = decode(dicom_bytes(VALUES)).image
    negative = decode(dicom_bytes(VALUES, PhotometricInterpretation="MONOCHROME1")).image
    np.testing.assert_array_equal(negative, 65535 - positive)
    assert negative.reshape(-1)[VALUES.argmin()] == 65535


def test_without_a_window_the_darkest_is_black_and_the_brightest_white():
    decoded = decode(dicom_bytes(VALUES))
    assert (decoded.image.min(), decoded.image.max()) == (0, 65535)
    low, high = int(VALUES.min()), int(VALUES.max())
    assert decoded.window == ((low + high) / 2, high - low)


def test_8_bit_films_stay_as_they_are():
    film = np.arange(256, dtype=np.uint8).reshape(16, 16)
    decoded = decode(dicom_bytes(film))
    np.testing.assert_array_equal(decoded.image, film)
    assert decoded.window is None and decoded.bits == 8


def test_a_voi_table_is_applied():
    item = Dataset()
    item.LUTDescriptor = [4, 0, 16]
    item.LUTData = np.array([0, 65535, 100, 7], np.uint16).tobytes()
    ramp = np.array([[0, 1], [2, 3]], np.uint16)
    image = decode(dicom_bytes(ramp, VOILUTSequence=[item])).image
    np.testing.assert_array_equal(image, [[0, 65535], [100, 7]])


def group(**macros):
    """An item of functional groups: macro=dict of its attributes."""
    item = Dataset()
    for macro, attributes in macros.items():
        inner = Dataset()
        for name, value in attributes.items():
            setattr(inner, name, value)
        setattr(item, macro, [inner])
    return item


def enhanced(shared, per_frame, **attributes):
    """A data set of two frames: VALUES, and another that must not matter."""
    return dicom_dataset(
        np.concatenate([VALUES, VALUES[::-1] // 2]),
        Rows=VALUES.shape[0],
        NumberOfFrames=2,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=per_frame,
        **attributes,
    )


WINDOW = {"WindowCenter": [50, 9], "WindowWidth": [200, 9], "VOILUTFunction": "LINEAR_EXACT"}
RESCALE = {"RescaleSlope": 2, "RescaleIntercept": -100, "RescaleType": "US"}
OTHER = group(
    FrameVOILUTSequence={"WindowCenter": 7, "WindowWidth": 7},
    PixelValueTransformationSequence={"RescaleSlope": 9, "RescaleIntercept": 9},
)


@pytest.mark.parametrize("undefined_length", [False, True])
@pytest.mark.parametrize("home", ["shared", "per frame", "one in each"])
def test_an_enhanced_file_is_windowed_as_its_first_frame_says(home, undefined_length):
    facts = {
        "PixelValueTransformationSequence": RESCALE,
        "PixelMeasuresSequence": {"PixelSpacing": [0.5, 0.7]},
    }
    window, rescale = group(FrameVOILUTSequence=WINDOW), group(**facts)
    both, none = group(FrameVOILUTSequence=WINDOW, **facts), Dataset()
    homes = {"shared": (both, none), "per frame": (none, both), "one in each": (rescale, window)}
    shared, first = homes[home]
    dataset = enhanced(shared, [first, OTHER])
    if undefined_length:
        for name in GROUPS:
            dataset[name].is_undefined_length = True
    decoded = decode(saved(dataset))
    expected = np.clip((VALUES * 2.0 - 100 + 50) / 200, 0, 1) * 65535
    np.testing.assert_allclose(decoded.image, expected, atol=0.51)
    assert decoded.window == (50, 200) and decoded.spacing_mm == (0.5, 0.7)
    assert decoded.frames == 2


def test_control_without_the_groups_the_window_is_another(monkeypatch):
    data = saved(enhanced(group(FrameVOILUTSequence=WINDOW), [Dataset(), OTHER]))
    assert decode(data).window == (50, 200)
    monkeypatch.setattr(dicom, "take_first_frame", lambda dataset: None)
    assert decode(data).window != (50, 200)


def test_a_frames_own_window_is_used_whole():
    """Its absent function is LINEAR, whatever stands at the top of the file."""
    top = {"WindowCenter": 1, "WindowWidth": 1, "VOILUTFunction": "SIGMOID"}
    own = {"WindowCenter": 50, "WindowWidth": 200}
    data = saved(enhanced(Dataset(), [group(FrameVOILUTSequence=own), OTHER], **top))
    np.testing.assert_array_equal(decode(data).image, decode(dicom_bytes(VALUES, **own)).image)


def test_nothing_else_of_the_groups_survives():
    content = {"FrameComments": "CANARY", "FrameAcquisitionDateTime": "20260101"}
    first = group(FrameVOILUTSequence=WINDOW, FrameContentSequence=content)
    data = saved(enhanced(group(FrameAnatomySequence={"FrameLaterality": "R"}), [first, OTHER]))
    assert "CANARY" in str(read(data, *GROUPS))  # the control: it is in the file
    dataset = read(data, *GROUPS)
    take_first_frame(dataset)
    assert "CANARY" not in str(dataset) and "Laterality" not in str(dataset)
    assert "WindowCenter" in dataset and not any(name in dataset for name in GROUPS)


@pytest.mark.parametrize("spoiled", [b"", b"\0" * 8, b"\xfe\xff\0\xe0\xff\xff\xff\x7f"])
def test_broken_groups_are_one_data_error_or_none(spoiled):
    data = saved(enhanced(group(FrameVOILUTSequence=WINDOW), [Dataset(), OTHER]))
    start = data.index(b"\x00\x52\x29\x92SQ") + 12
    broken = data[:start] + spoiled + data[start + len(spoiled) :]
    try:
        assert decode(broken).image.shape == VALUES.shape
    except DataError as error:
        assert error.code in CODES


def test_a_deflated_file_is_read_and_a_deflate_bomb_refused(monkeypatch):
    film = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(decode(deflated(dicom_bytes(film))).image, film)
    bomb = deflated(dicom_bytes(film, ImageComments="0" * (1 << 20)))
    np.testing.assert_array_equal(decode(bomb).image, film)  # the control: within the cap
    monkeypatch.setattr(dicom, "MAX_INFLATED_BYTES", 1 << 20)
    with pytest.raises(DataError, match="grows past 1 MiB"):
        decode(bomb)


@pytest.mark.parametrize("rows, columns", [(65535, 65535), (9000, 9000), (0, 16)])
def test_rows_and_columns_are_checked_before_pixels(rows, columns):
    with pytest.raises(DataError, match=f"{columns} x {rows} px"):
        decode(dicom_bytes(np.zeros((2, 2), np.uint8), Rows=rows, Columns=columns))


def test_burned_in_is_what_the_file_says_or_what_the_device_is_known_for():
    film = np.zeros((2, 2), np.uint8)
    for attributes, expected in [
        ({"BurnedInAnnotation": "YES"}, True),
        ({"BurnedInAnnotation": "NO", "Modality": "US"}, False),
        ({"Modality": "US"}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, True),
        ({}, None),
    ]:
        assert decode(dicom_bytes(film, **attributes)).burned_in is expected
        assert dicom_header(dicom_bytes(film, **attributes)).burned_in is expected


def test_only_the_allow_list_is_read():
    data = dicom_bytes(
        VALUES, PatientName="CANARY^A", AccessionNumber="CANARYB", PixelSpacing=[0.5, 0.7]
    )
    assert "CANARY" not in str(read(data))
    assert "CANARY" in str(read(data, "PatientName"))  # the control: it is in the file
    assert decode(data).spacing_mm == (0.5, 0.7)
    assert dicom_header(dicom_bytes(VALUES, PatientID=" P7 ")).patient == "P7"


def test_no_error_quotes_the_file():
    data = dicom_bytes(VALUES, NumberOfFrames="1")
    broken = data.replace(b"1 ", b"\xffQ", 1).replace(b"MONOCHROME2", b"CANARYCOLOR")
    with pytest.raises(DataError) as caught:
        decode(broken)
    assert "CANARY" not in str(caught.value) and caught.value.__cause__ is None


def mutant(data, rng):
    changed = bytearray(data)
    for _ in range(rng.integers(1, 8)):
        at = int(rng.integers(0, len(changed)))
        if rng.random() < 0.5:
            at = int(rng.integers(128, min(len(changed), 1500)))
        changed[at] = int(rng.integers(0, 256))
    return bytes(changed[: int(rng.integers(140, len(changed)))] if rng.random() < 0.1 else changed)


def mutants(folder, count):
    names = ["CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm"]
    names += ["chrH31.dcm", "SC_rgb_small_odd.dcm", "image_dfl.dcm", "rtdose_1frame.dcm"]
    sources = [(folder / "files" / name).read_bytes() for name in names]
    rng = np.random.default_rng(7)
    return [mutant(sources[k % len(sources)], rng) for k in range(count)]


@pytest.mark.parametrize("count", [400, pytest.param(3000, marks=pytest.mark.slow)])
def test_mutants_are_decoded_or_are_one_data_error(unpacked, count):
    outcomes = set()
    for data in mutants(unpacked("dicom_samples"), count):
        try:
            decode(data)
            outcomes.add("decoded")
        except DataError as error:
            assert error.code in CODES | {"MR-D108"}, error
            outcomes.add(error.code)
    assert {"decoded", "MR-D102", "MR-D104"} <= outcomes
