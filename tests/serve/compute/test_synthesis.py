"""Synthesis: each image a function of its order alone, refusals that say what is allowed."""

import hashlib
import io
import shutil
import subprocess
import sys

import numpy as np
import pytest

from medray.errors import DataError, UsageError
from medray.images import decode
from medray.models.weights import load_generator
from medray.sample.images import Renderer
from medray.sample.latents import prior
from serve.compute.orders import Offer
from serve.compute.synthesis import Synthesis, levels
from serve.records import Order
from tests.archive.made_parts import make_generator
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def conditional(small_models):
    return Synthesis.load(small_models.conditional)


@pytest.fixture(scope="module")
def plain(small_models):
    return Synthesis.load(small_models.plain)


def orders(count, seed=3):
    vectors = ((1.0, 0.0), (0.0, 1.0))
    return [Order(seed, index, vectors[index % 2]) for index in range(count)]


def test_eight_bits_are_those_of_the_renderer(plain, small_models):
    renderer = Renderer(*load_generator(small_models.plain))
    wanted = renderer.render(prior(3, np.arange(20), renderer.dims))
    made = plain.render([Order(3, index) for index in range(20)])
    np.testing.assert_array_equal(levels(made, 8), wanted)


def test_order_position_and_company_change_no_byte(conditional):
    asked = orders(33)
    whole = conditional.make(asked, ["png"] * 33)
    back = conditional.make(asked[::-1], ["dicom", "npy", "png16"] * 11)
    again = conditional.make(asked[::-1], ["png"] * 33)
    assert [one.data for one in again[::-1]] == [one.data for one in whole]
    assert [one.address for one in back[::-1]] == [one.address for one in whole]
    alone = conditional.make(asked[20:21], ["png"])[0]
    assert alone == whole[20] and len({one.data for one in whole}) == 33


def test_another_process_makes_the_same_bytes(conditional, small_models):
    code = (
        "import hashlib, sys; from serve.compute.synthesis import Synthesis; "
        "from serve.records import Order; "
        "made = Synthesis.load(sys.argv[1]).make([Order(3, 4, (1.0, 0.0))], ['png']); "
        "print(hashlib.sha256(made[0].data).hexdigest())"
    )
    command = [sys.executable, "-c", code, small_models.conditional]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    here = conditional.make(orders(9), ["png"] * 9)[4]
    assert done.stdout.strip() == hashlib.sha256(here.data).hexdigest()


def test_colour_comes_in_every_form(tmp_path):
    make_generator(tmp_path, channels=3)
    model = Synthesis.load(str(tmp_path))
    made = model.make([Order(0, 1)] * 4, ["png", "png16", "npy", "dicom"])
    eight, deep = (decode(made[n].data).image for n in (0, 1))
    assert eight.shape == deep.shape == (16, 16, 3) and deep.dtype == np.uint16
    np.testing.assert_array_equal(np.load(io.BytesIO(made[2].data)), deep)
    np.testing.assert_array_equal(decode(made[3].data).image, eight)


@pytest.mark.parametrize("name", ["generator.safetensors", "latents/latents.safetensors"])
def test_no_damaged_weights_are_served(small_models, tmp_path, name):
    shutil.copytree(small_models.conditional, tmp_path / "model")
    path, draw = tmp_path / "model" / name, np.random.default_rng(2)
    whole = path.read_bytes()
    for at in draw.integers(0, len(whole), 100).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(DataError, match="digest"):
            Synthesis.load(str(tmp_path / "model"))
    path.write_bytes(whole)
    assert Synthesis.load(str(tmp_path / "model")).classes


def test_an_address_names_everything_that_the_image_depends_on(conditional, plain):
    base = Order(1, 2, (1.0, 0.0))
    others = [Order(2, 2, (1.0, 0.0)), Order(1, 3, (1.0, 0.0)), Order(1, 2, (0.0, 1.0))]
    others.append(Order(1, 2, (1.0, 0.0), 0.25))
    found = [conditional.address(order) for order in (base, *others)]
    assert len(set(found)) == 5 and found[0].endswith(":1:2;class=clear")
    images = [image.tobytes() for image in conditional.render([base, *others])]
    assert len(set(images)) == 5
    assert ":prior:1:2" in plain.address(Order(1, 2))


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (Order(0, 0), "allowed: clear, opacity"),
        (Order(0, 0, (1.0, 1.0)), r"allowed: clear = \[1, 0\]; opacity = \[0, 1\]"),
        (Order(0, 0, (1.0,)), r"given: labels \[1\]"),
    ],
)
def test_an_order_that_cannot_be_is_refused(conditional, order, said):
    with pytest.raises(UsageError, match=said):
        conditional.make([order], ["png"])


def test_plain_latents_have_no_class_and_no_mean(plain):
    with pytest.raises(UsageError, match="this model has no classes"):
        plain.render([Order(0, 0, (1.0, 0.0))])
    with pytest.raises(UsageError, match="given: truncation 0.5 without a class; allowed: 1"):
        plain.render([Order(0, 0, None, 0.5)])


def test_latents_of_another_generator_are_refused(small_models):
    with pytest.raises(UsageError, match="were made for generator"):
        Synthesis.load(small_models.plain, f"{small_models.conditional}/latents")


def test_an_offer_survives_being_told_as_json(conditional):
    assert Offer.of(conditional.facts) == conditional.offer
    assert conditional.facts["render"]["batch"] == 16


def test_levels_round_and_clip_as_the_renderer_does():
    image = np.array([[-2.0, -1.0, 0.0, 1.0, 3.0]], np.float32)
    assert levels(image, 8).tolist() == [[0, 0, 128, 255, 255]]
    assert levels(image, 16).tolist() == [[0, 0, 32768, 65535, 65535]]
