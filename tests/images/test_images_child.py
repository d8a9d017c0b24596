"""The limited child: same results as in this process, and nothing a file does reaches the job."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from medray.errors import DataError
from medray.images import child, decode, encode_png
from medray.images.child import LimitedDecoder
from tests.made_dicom import dicom_bytes

GREY = np.random.default_rng(0).integers(0, 256, (37, 53), np.uint8)


@pytest.fixture(scope="module")
def decoder():
    with LimitedDecoder() as decoder:
        yield decoder


def test_the_child_gives_what_this_process_gives(decoder):
    values = np.arange(600, dtype=np.int16).reshape(20, 30)
    for data in (encode_png(GREY), dicom_bytes(values, PixelSpacing=[0.5, 0.25], Modality="US")):
        here, there = decode(data), decoder.decode(data)
        np.testing.assert_array_equal(here.image, there.image)
        for fact in ("bits", "modality", "spacing_mm", "window", "burned_in", "frames"):
            assert getattr(here, fact) == getattr(there, fact)


def test_one_child_serves_many_files_and_bad_ones_do_not_end_it(decoder):
    files = [(str(k), encode_png(GREY) if k % 3 else b"junk") for k in range(100)]
    answers = list(decoder.decode_many(files))
    for (name, _), answer in zip(files, answers, strict=True):
        if int(name) % 3:
            np.testing.assert_array_equal(answer.image, GREY)
        else:
            assert isinstance(answer, DataError) and answer.where == name
    assert decoder.started == 1


def test_files_larger_than_a_pipe_come_through(decoder):
    noise = np.random.default_rng(1).integers(0, 65536, (1500, 1700), np.uint16)
    answers = list(decoder.decode_many([("a", encode_png(noise)), ("b", encode_png(GREY))]))
    np.testing.assert_array_equal(answers[0].image, noise)
    np.testing.assert_array_equal(answers[1].image, GREY)


def test_a_window_and_the_header_cross_too(decoder):
    data = dicom_bytes(np.arange(6, dtype=np.int16).reshape(2, 3), PatientID="P1")
    assert decoder.decode(data, window=(2.0, 4.0)).window == (2.0, 4.0)
    assert decoder.header(data).patient == "P1"


def big_png():
    """36 million pixels in 40 kB, within the pixel cap."""
    return encode_png(np.zeros((6000, 6000), np.uint8))


def test_memory_beyond_the_limit_is_an_error_and_the_next_file_is_decoded():
    with LimitedDecoder(memory_bytes=16 << 20) as small:
        with pytest.raises(DataError) as caught:
            small.decode(big_png(), name="big.png")
        assert caught.value.code in ("MR-D108", "MR-D102")
        np.testing.assert_array_equal(small.decode(encode_png(GREY)).image, GREY)
    with LimitedDecoder() as usual:  # the control: the default limit is enough for it
        assert usual.decode(big_png()).image.shape == (6000, 6000)


def slow_dicom():
    """Sixteen million empty elements before the pixels: many seconds of parsing on any machine."""
    data = dicom_bytes(GREY)
    at = data.index(b"\xe0\x7f\x10\x00OW")
    return data[:at] + b"\x09\x00\x01\x10LO\0\0" * 16_000_000 + data[at:]


def test_time_beyond_the_limit_is_an_error():
    with LimitedDecoder(cpu_s=0) as hasty:
        # With no allowance a child ends within the second that is left of rounding up.
        small = encode_png(GREY)
        answers = list(hasty.decode_many([("a", small), ("b", slow_dicom()), ("c", small)]))
        kinds = [getattr(answer, "code", "decoded") for answer in answers]
        assert kinds == ["decoded", "MR-D109", "decoded"] and answers[1].where == "b"
        assert hasty.started > 1


def test_a_child_that_is_killed_costs_one_file(decoder):
    decoder.decode(encode_png(GREY))
    child = decoder._child
    files = [(str(k), encode_png(GREY)) for k in range(400)]
    answers = decoder.decode_many(files)
    next(answers)
    os.kill(child.pid, signal.SIGSEGV)
    child.wait()
    rest = list(answers)
    assert len(rest) == 399
    assert sum(isinstance(answer, DataError) for answer in rest) <= 1
    assert decoder.started == 2


def test_an_iteration_left_early_does_not_mix_up_answers(decoder):
    other = GREY[::-1].copy()
    next(decoder.decode_many([("a", encode_png(GREY)), ("b", encode_png(GREY))]))
    np.testing.assert_array_equal(decoder.decode(encode_png(other)).image, other)


def test_the_child_ends_with_its_parent(tmp_path):
    code = (
        "from medray.images.child import shared, decode_limited\n"
        "from medray.images import encode_png\n"
        "import numpy, os, signal\n"
        "decode_limited(encode_png(numpy.zeros((2, 2), 'uint8')))\n"
        "print(shared()._child.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{int(done.stdout)}/cwd") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{int(done.stdout)}/cwd")


def test_the_shared_decoder_is_one_per_process():
    assert child.shared() is child.shared()
    np.testing.assert_array_equal(child.decode_limited(encode_png(GREY)).image, GREY)
    child.shared().close()
