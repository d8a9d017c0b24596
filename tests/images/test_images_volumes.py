"""Files as frames, frames as clips: directions, order, gaps, one window, and what is refused."""

import gzip
import io
import itertools

import nibabel
import numpy as np
import pytest

from medray.errors import DataError
from medray.images import bits_of, decode, encode_png, format_of
from medray.images.child import LimitedDecoder
from medray.images.frames import Frames, check_frames, decode_frames
from medray.images.volumes import assemble, blank_frames, grey_levels_of, upright
from tests.made_clips import body, multiframe_bytes, nifti_bytes, slice_bytes

ALL_CODES = [
    "".join(codes)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for codes in itertools.product(*order)
]
# Up the body, the front at the top, the patient's right on the left.
AXIAL = body().transpose(2, 1, 0)[:, ::-1, ::-1]


def clip_of(*files, numbers=()):
    return assemble([decode_frames(data) for data in files], numbers or [None] * len(files))


def series(places, numbers=None, **more):
    """Slices whose values are their places."""
    numbers = numbers or range(1, len(places) + 1)
    return [
        slice_bytes(np.full((3, 4), round(place), np.int16), number, place, **more)
        for number, place in zip(numbers, places, strict=True)
    ]


def codes_of(volume):
    return [finding.code for finding in volume.findings]


# --- directions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", ALL_CODES)
def test_a_volume_stored_along_any_axes_is_the_same_clip(codes):
    volume = clip_of(nifti_bytes(body(), codes))
    assert np.array_equal(volume.values_THW, AXIAL)
    assert (volume.spacing_mm, volume.slice_mm) == ((2.0, 1.0), 5.0) and volume.placed


@pytest.mark.parametrize(
    ("zooms", "wanted"),
    [
        ((1, 1, 1), AXIAL),
        ((9, 1, 1), body().transpose(0, 2, 1)[:, ::-1, ::-1]),  # towards the right
        ((1, 9, 1), body().transpose(1, 2, 0)[:, ::-1, ::-1]),  # towards the front
    ],
)
def test_frames_lie_along_the_axis_of_the_longest_voxels(zooms, wanted):
    assert np.array_equal(clip_of(nifti_bytes(body(), "RAS", zooms)).values_THW, wanted)


def test_the_axis_that_the_header_names_is_the_slices():
    volume = clip_of(nifti_bytes(body(), "RAS", (1, 1, 9), slice_axis=0))
    assert len(volume.values_THW) == 4 and volume.slice_mm == 1


def test_a_dicom_series_and_a_nifti_of_one_body_are_the_same_clip():
    """DICOM's rows go to the back and its columns to the left."""
    frames = [np.ascontiguousarray(frame) for frame in AXIAL]
    files = [slice_bytes(frame, k, 5.0 * k) for k, frame in enumerate(frames)]
    volume = clip_of(*files)
    assert np.array_equal(volume.values_THW, clip_of(nifti_bytes(body())).values_THW)
    assert (volume.spacing_mm, volume.slice_mm) == ((2.0, 1.0), 5.0)


SAGITTAL, CORONAL = (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1)


@pytest.mark.parametrize(("orientation", "rises"), [(SAGITTAL, True), (CORONAL, False)])
def test_frames_go_to_the_right_and_to_the_front_whatever_the_normal(orientation, rises):
    """The normal of a coronal slice points to the back."""
    files = [slice_bytes(np.full((3, 4), k, np.int16), k, 2.0 * k, orientation) for k in range(3)]
    means = clip_of(*files).values_THW.mean((1, 2)).tolist()
    assert means == ([0, 1, 2] if rises else [2, 1, 0])


def test_an_oblique_volume_counts_for_its_nearest_axes():
    values = np.arange(24).reshape(2, 3, 4)
    tilted = ((0.0, 0.3, 0.95), (0.0, -0.95, 0.3), (-1.0, 0.0, 0.0))
    straight = ((0.0, 0.0, 1.0), (0.0, -1.0, 0.0), (-1.0, 0.0, 0.0))
    assert np.array_equal(upright(values, tilted)[0], upright(values, straight)[0])
    assert np.array_equal(upright(values, straight)[0], values)


# --- order, duplicates, gaps --------------------------------------------------------------------


def test_slices_are_sorted_by_place_and_what_was_out_of_order_is_named():
    volume = clip_of(*series([0, 8, 4, 12], numbers=[1, 2, 3, 4]))
    assert volume.values_THW[:, 0, 0].tolist() == [0, 4, 8, 12]
    assert codes_of(volume) == ["MR-D215"] and "2, 3" in volume.findings[0].text


@pytest.mark.parametrize("numbers", [[1, 2, 3], [3, 2, 1], [5, 7, 9]])
def test_a_series_that_rises_or_falls_is_in_order(numbers):
    volume = clip_of(*series([0, 4, 8], numbers=numbers))
    assert codes_of(volume) == [] and volume.slice_mm == 4


def test_a_gap_between_places_is_named_by_frame_numbers():
    volume = clip_of(*series([0, 4, 8, 20, 24]))
    assert codes_of(volume) == ["MR-D214"]
    assert "between 3 and 4 (12 mm)" in volume.findings[0].text and len(volume.values_THW) == 5


def test_of_two_frames_at_one_place_the_first_is_kept():
    files = series([0, 4, 4, 8])
    volume = clip_of(*files)
    assert volume.values_THW[:, 0, 0].tolist() == [0, 4, 8]
    assert codes_of(volume) == ["MR-D216"] and volume.findings[0].text.endswith("left out: 3")


def test_slices_without_places_go_by_their_own_numbers():
    files = series([8, 0, 4], numbers=[3, 1, 2], ImagePositionPatient=None)
    volume = clip_of(*files, numbers=[1, 2, 3])
    assert volume.values_THW[:, 0, 0].tolist() == [0, 4, 8] and not volume.placed
    assert codes_of(volume) == ["MR-D215"]


def pictures(count, px=4):
    return [encode_png(np.full((px, px), 10 * k, np.uint8)) for k in range(count)]


@pytest.mark.parametrize(
    ("numbers", "missing"), [([1, 2, 3], ""), ([1, 2, 5], "3, 4"), ([10, 20, 40], "30")]
)
def test_numbers_left_out_in_names_are_missing_frames(numbers, missing):
    volume = clip_of(*pictures(3), numbers=numbers)
    texts = [finding.text for finding in volume.findings]
    assert texts == ([f"frames are missing: {missing}"] if missing else [])


def test_the_frames_of_one_file_are_sorted_too():
    values = np.stack([np.full((3, 4), k, np.int16) for k in range(4)])
    volume = clip_of(multiframe_bytes(values, [0.0, 8.0, 4.0, 12.0]))
    assert volume.values_THW[:, 0, 0].tolist() == [0, 2, 1, 3]
    assert codes_of(volume) == ["MR-D215"] and "2, 3" in volume.findings[0].text
    assert (volume.spacing_mm, volume.slice_mm) == ((2.0, 1.0), 4.0)


# --- what does not go together ------------------------------------------------------------------


def test_a_frame_of_another_size_is_named():
    with pytest.raises(DataError, match="MR-D218.*frame 2 of 3 is 5x5 px, the first 4x4"):
        clip_of(pictures(1)[0], pictures(1, 5)[0], pictures(1)[0])


def test_another_series_and_another_direction_are_named():
    first = series([0, 4])
    with pytest.raises(DataError, match="MR-D219.*frame 3 of 3 is of another series"):
        clip_of(*first, *series([8], SeriesInstanceUID="1.2.9"))
    localizer = slice_bytes(np.zeros((3, 4), np.int16), 3, 8.0, SAGITTAL)
    with pytest.raises(DataError, match="MR-D219.*frame 3 of 3 lies in another direction"):
        clip_of(*first, localizer)


def test_a_folder_of_volumes_is_no_clip():
    volume = nifti_bytes(body())
    with pytest.raises(DataError, match="MR-D219.*frame 1 of 2 is a file of 6 frames"):
        clip_of(volume, volume)
    with pytest.raises(DataError, match="MR-D206"):
        assemble([])


# --- values and windows -------------------------------------------------------------------------


def test_slope_and_intercept_make_the_values():
    volume = clip_of(nifti_bytes(body(), slope=0.5))
    assert np.allclose(volume.values_THW, AXIAL * 0.5 + 3)
    files = series([0, 4], RescaleSlope="2", RescaleIntercept="-10")
    assert clip_of(*files).values_THW[:, 0, 0].tolist() == [-10, -2]
    whole = clip_of(*series([0, 4], RescaleSlope="1", RescaleIntercept="-10"))
    assert whole.values_THW.dtype == np.int32


def test_one_window_for_all_frames_keeps_them_comparable():
    values = np.stack([np.full((4, 4), level, np.int16) for level in (0, 100, 200, 1000)])
    values = np.repeat(values, 40, axis=2)
    values[0, 0, 0] = -5000  # one odd value is outside of the percentiles
    volume = assemble([Frames(values, 16)])
    levels, window = grey_levels_of(volume)
    assert levels.dtype == np.uint16
    means = levels[:, 1].mean(1) / 65535
    assert means == pytest.approx([0, 0.1, 0.2, 1.0], abs=0.01)
    assert window == pytest.approx((500, 1000), abs=1)


def test_a_window_that_all_frames_share_is_used_and_others_are_not():
    shared = clip_of(*series([0, 4], WindowCenter="2", WindowWidth="4"))
    assert shared.window == (2, 4) and grey_levels_of(shared)[1] == (2, 4)
    files = [*series([0], WindowCenter="2", WindowWidth="4"), *series([4])]
    assert clip_of(*files).window is None


def test_bytes_stay_as_they_are_and_white_that_is_low_is_turned():
    volume = clip_of(*pictures(3))
    levels, window = grey_levels_of(volume)
    assert np.array_equal(levels, volume.values_THW) and window is None
    inverted = clip_of(*series([0, 4], PhotometricInterpretation="MONOCHROME1"))
    levels, _ = grey_levels_of(inverted, "minmax")
    assert levels[:, 0, 0].tolist() == [65535, 0]
    assert grey_levels_of(inverted, (2, 4))[1] == (2, 4)


def test_blank_frames_are_counted_and_a_blank_clip_is_black():
    values = np.zeros((3, 4, 4), np.int16)
    assert blank_frames(values) == 3
    assert grey_levels_of(assemble([Frames(values, 16)]))[0].max() == 0
    values[1, 0, 0] = 1
    assert blank_frames(values) == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    values = np.zeros((2, 3, 3), np.float32)
    values[1, 1, 1] = bad
    with pytest.raises(DataError, match="MR-D114"):
        grey_levels_of(assemble([Frames(values, 16)]))


# --- files --------------------------------------------------------------------------------------


def npy_bytes(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">i2", "f4", "?"])
def test_a_stack_of_numbers_is_a_clip(order, dtype):
    values = np.asarray(np.random.default_rng(0).integers(0, 2, (5, 3, 4)), dtype, order=order)
    frames = decode_frames(npy_bytes(values))
    assert (
        np.array_equal(frames.values_THW != 0, values != 0) and frames.values_THW.flags.c_contiguous
    )
    assert frames.bits == (8 if dtype in ("u1", "?") else 16)
    assert decode_frames(npy_bytes(values[0])).values_THW.shape == (1, 3, 4)


def test_gzip_and_nifti_are_known_by_their_first_bytes():
    for data in (nifti_bytes(body()), nifti_bytes(body(), zipped=True)):
        assert format_of(data[:132]) == "nifti" and bits_of(data) == 16
        assert len(decode_frames(data).values_THW) == 6
    assert bits_of(nifti_bytes(body().astype(np.uint8))) == 8
    with pytest.raises(DataError, match="(?s)MR-D105.*a volume is not one image.*--clips"):
        decode(nifti_bytes(body()))


def test_damaged_and_odd_volumes_are_refused_with_a_code():
    data = nifti_bytes(body())
    zipped = nifti_bytes(body(), zipped=True)
    many = nibabel.Nifti1Image(np.zeros((3, 4, 5, 2), np.int16), np.eye(4)).to_bytes()
    flat = nibabel.Nifti1Image(np.zeros((3, 4, 5, 1), np.int16), np.eye(4)).to_bytes()
    assert decode_frames(flat).values_THW.shape[0] == 5
    for bad, code in (
        (data[:-10], "MR-D102"),
        (zipped[:-9], "MR-D102"),
        (gzip.compress(b"no volume" * 100), "MR-D101"),
        (many, "MR-D107"),
        (b"", "MR-D101"),
    ):
        with pytest.raises(DataError, match=code):
            decode_frames(bad)


def test_a_header_of_too_many_values_is_refused_before_they_are_read():
    with pytest.raises(DataError, match="MR-D103"):
        check_frames((1000, 600, 600))
    with pytest.raises(DataError, match="MR-D107"):
        check_frames((0, 6, 6))
    check_frames((500, 512, 512))


def test_the_child_gives_what_this_process_gives():
    files = [nifti_bytes(body(), zipped=True), *series([0, 4]), b"nothing", pictures(1)[0]]
    with LimitedDecoder() as child:
        answers = list(child.frames_many([("", data) for data in files]))
    assert isinstance(answers[3], DataError) and answers[3].code == "MR-D101"
    for data, answer in zip(files, answers, strict=True):
        if not isinstance(answer, DataError):
            here = decode_frames(data)
            assert np.array_equal(answer.values_THW, here.values_THW)
            for name in Frames.__dataclass_fields__:
                if name != "values_THW":
                    assert getattr(answer, name) == getattr(here, name), name


def test_the_sample_files_are_frames_or_refused_with_a_reason(unpacked):
    folder = unpacked("dicom_samples")
    many = {"emri_small.dcm": 10, "emri_small_RLE.dcm": 10, "OBXXXX1A_rle_2frame.dcm": 2}
    for name, frames in many.items():
        assert len(decode_frames((folder / "files" / name).read_bytes()).values_THW) == frames
    for path in sorted((folder / "files").iterdir())[::5]:
        try:
            assert decode_frames(path.read_bytes()).values_THW.ndim == 3
        except DataError as error:
            assert error.code.startswith("MR-D1") and path.name not in error.message
