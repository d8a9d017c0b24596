"""Uploads: kinds by content, caps by the header, children that are replaced; nothing hangs."""

import asyncio
import csv
import io
import struct
import time

import nibabel
import numpy as np
import pytest
from PIL import Image

from medray.images import encode_png
from serve import uploads
from serve.problems import Problem
from serve.uploads import Caps, Uploads
from tests.images.test_images_bombs import BOMBS
from tests.made_dicom import dicom_bytes
from tests.serve.bad_requests import FILM, bad_files

CAPS = Caps()


@pytest.fixture(scope="module")
def pool():
    found = Uploads(2)
    yield found
    found.close()


def decoded(pool, *files, caps=CAPS):
    return asyncio.run(pool.decode(files, caps))


def refused(pool, *files, caps=CAPS):
    with pytest.raises(Problem) as caught:
        decoded(pool, *files, caps=caps)
    return caught.value


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def jpeg(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG", quality=95)
    return file.getvalue()


VOLUME = np.arange(5 * 12 * 9, dtype=np.int16).reshape(9, 12, 5)
NIFTI = nibabel.Nifti1Image(VOLUME, np.diag([1.0, 1, 3, 1]))
STACK = (np.arange(3 * 64 * 64) % 251).reshape(3, 64, 64).astype(np.uint8)
GOOD = {
    "png": (encode_png(FILM), 1, (64, 64)),
    "png 16": (encode_png(FILM.astype(np.uint16) * 257), 1, (64, 64)),
    "png rgb": (encode_png(np.stack([FILM] * 3, -1)), 1, (64, 64)),
    "jpeg": (jpeg(FILM), 1, (64, 64)),
    "npy": (npy(FILM), 1, (64, 64)),
    "npy float": (npy(FILM / 7), 1, (64, 64)),
    "npy frames": (npy(STACK), 3, (64, 64)),
    "dicom": (dicom_bytes(FILM), 1, (64, 64)),
    "dicom frames": (
        dicom_bytes(FILM, NumberOfFrames=3, PixelData=STACK.tobytes()),
        3,
        (64, 64),
    ),
    "nifti": (NIFTI.to_bytes(), 5, None),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_taken_comes_out_as_images(pool, name):
    data, count, size = GOOD[name]
    found = decoded(pool, data)
    assert [image.frame for image in found] == list(range(count))
    assert {image.kind for image in found} == {name.split()[0]}
    for image in found:
        assert image.image.dtype in (np.uint8, np.uint16)
        assert (image.height, image.width) == image.image.shape[:2]
        assert size is None or image.image.shape[:2] == size


def test_no_grey_level_is_lost_and_frames_are_in_order(pool):
    deep = np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16
    for data in (encode_png(deep), npy(deep)):
        np.testing.assert_array_equal(decoded(pool, data)[0].image, deep)
    stack = decoded(pool, GOOD["dicom frames"][0])
    np.testing.assert_array_equal(np.stack([image.image for image in stack]), STACK)


def test_a_name_or_type_counts_for_nothing_and_files_keep_their_order(pool):
    files = [GOOD[name][0] for name in ("jpeg", "nifti", "png")]
    found = decoded(pool, *files)
    assert [image.file for image in found] == [0, 1, 1, 1, 1, 1, 2]


def test_pixels_of_all_files_and_frames_are_counted_together(pool):
    one = GOOD["png"][0]
    assert len(decoded(pool, one, one, caps=Caps(pixels=8192))) == 2
    problem = refused(pool, one, one, one, caps=Caps(pixels=8192))
    assert problem.status == 413 and "8,192 pixels in all, 0 are left" in problem.detail
    frames = GOOD["dicom frames"][0]
    assert refused(pool, frames, caps=Caps(pixels=8192)).code == "too_many_pixels"
    assert refused(pool, frames, caps=Caps(frames=2)).code == "too_many_frames"
    assert refused(pool, one, one, caps=Caps(files=1)).code == "too_many_files"
    assert refused(pool).code == "upload_empty"


def test_size_in_the_header_is_enough_to_refuse_no_child_sees_it(monkeypatch):
    """The control: a file within the cap does reach the child, which here is none."""
    pool = Uploads(1)
    monkeypatch.setattr(pool, "_with_decoder", lambda work: pytest.fail("decoded"))
    for name in ("png huge", "jpeg huge", "bomb png under", "text", "empty", "jpeg cmyk"):
        assert 400 <= refused(pool, bad_files()[name][0]).status < 500
    with pytest.raises(pytest.fail.Exception):
        decoded(pool, GOOD["png"][0])
    pool.close()


def test_fifty_pictures_with_one_value_that_is_no_number_are_refused(pool):
    draw = np.random.default_rng(3)
    for value in [np.nan, np.inf, -np.inf] * 17:
        values = draw.normal(size=(9, 8)).astype(np.float32)
        values[draw.integers(0, 9), draw.integers(0, 8)] = value
        problem = refused(pool, npy(values))
        assert (problem.status, problem.code) == (422, "MR-D114")


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_leaves_the_next_upload_as_it_was(pool, name):
    data = BOMBS[name][0]()
    started_s = time.monotonic()
    try:
        decoded(pool, data)
    except Problem as problem:
        assert 400 <= problem.status < 500
    assert len(decoded(pool, GOOD["dicom"][0])) == 1
    assert time.monotonic() - started_s < 60


def test_a_child_that_dies_is_replaced_and_others_are_served_meanwhile(pool):
    """Kills each child, as a parser gone wrong does, while uploads go on."""
    for decoder in pool._all:
        child = decoder._running()
        child.kill()
        child.wait()
    assert len(decoded(pool, *[GOOD["png"][0]] * 8)) == 8


def test_more_than_may_wait_is_told_to_come_again(monkeypatch):
    monkeypatch.setattr(uploads, "MOST_WAITING", 0)
    pool = Uploads(1)
    problem = refused(pool, GOOD["png"][0])
    assert problem.status == 503 and int(problem.headers["retry-after"]) >= 1
    pool.close()


def test_dicom_samples_are_judged_or_refused_as_their_labels_say(pool, unpacked):
    folder = unpacked("dicom_samples")
    with (folder / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    taken = 0
    for row in rows:
        data = (folder / row["file"]).read_bytes()
        try:
            found = decoded(pool, data)
            assert len(found) == int(row["frames"] or 1) or row["label"] != "valid_image", row
            taken += 1
        except Problem as problem:
            assert 400 <= problem.status < 500, row
            assert "given: file 0, " in problem.detail, row
            # Colour in several frames is no clip; all else that is an image is taken.
            colour = row["frames"] not in ("", "1") and row["photometric"] != "MONOCHROME2"
            assert row["label"] != "valid_image" or colour, (row["file"], problem.detail)
    assert taken >= 75


def mutants(files, count, seed=1):
    """Files with bytes changed, cut, doubled and exchanged."""
    draw = np.random.default_rng(seed)
    for number in range(count):
        data = bytearray(files[number % len(files)])
        for _ in range(int(draw.integers(1, 9))):
            at = int(draw.integers(0, len(data)))
            kind = draw.integers(0, 4)
            if kind == 0:
                data[at] = int(draw.integers(0, 256))
            elif kind == 1 and len(data) > 200:
                del data[at : at + int(draw.integers(1, 64))]
            elif kind == 2:
                data[at:at] = data[at : at + 32]
            else:
                data[at : at + 4] = struct.pack(
                    "<I", int(draw.choice([0, 1, 65535, 2**31, 2**32 - 1]))
                )
        yield bytes(data)


def fuzz(pool, count):
    """Statuses of mutants of one small file a kind; anything but a 4xx is raised."""
    files = [GOOD[name][0] for name in ("png", "dicom", "dicom frames", "npy", "nifti", "jpeg")]
    statuses = []

    async def one(data):
        try:
            await pool.decode([data], CAPS)
            return 200
        except Problem as problem:
            return problem.status

    async def all_of_them():
        gate = asyncio.Semaphore(16)

        async def guarded(data):
            async with gate:
                return await asyncio.wait_for(one(data), 60)

        return await asyncio.gather(*map(guarded, mutants(files, count)))

    statuses = asyncio.run(all_of_them())
    assert set(statuses) <= {200, 400, 413, 415, 422}
    assert statuses.count(200) and statuses.count(422) and len(statuses) == count
    return statuses


def test_mutants_are_decoded_or_refused(pool):
    fuzz(pool, 3000)


@pytest.mark.chaos
def test_ten_thousand_mutants_are_decoded_or_refused(pool):
    fuzz(pool, 10_000)
