"""Extractors: what they take, what they refuse, and that a row is a function of its image."""

import warnings

import numpy as np
import pytest
import torch

from medray.errors import DataError, UsageError
from medray.models.classifier import Classifier
from medray.models.extract import BATCH, Extractor, Form, RandomNetwork, prepared
from medray.models.weights import CLASSIFIER, save_network
from medray.store import Store

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 1, 24, 24)).astype(np.uint8)


class Means(torch.nn.Module):
    def forward(self, images):
        return images.mean((2, 3))


class Maps(torch.nn.Module):
    def forward(self, images):
        return images[:, :, ::2, ::2]


class Spoilt(torch.nn.Module):
    def forward(self, images):
        return images.mean((2, 3)) / 0.0


class Two(torch.nn.Module):
    def forward(self, images):
        return images, images


def script(path, module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module()).save(str(path))
    return str(path)


def test_the_random_network_is_a_smoke_test_and_says_so():
    extractor = Extractor.load("random:7")
    assert extractor.record()["smoke_test"] and extractor.name == "random:7"
    assert extractor.features(IMAGES).shape == (20, 240)
    assert (
        extractor.sha256 == Extractor.load("random:7").sha256 != Extractor.load("random:8").sha256
    )
    assert not np.array_equal(
        extractor.features(IMAGES), Extractor.load("random:8").features(IMAGES)
    )


@pytest.mark.parametrize("count", [1, BATCH - 1, BATCH, BATCH + 1])
def test_a_row_is_a_function_of_its_image(count):
    extractor = Extractor.load("random:0")
    whole = extractor.features(IMAGES)
    assert np.array_equal(extractor.features(IMAGES[-count:]), whole[-count:])


def test_a_torchscript_file_is_named_by_its_digest_and_told_how_to_see(tmp_path):
    path = script(tmp_path / "means.pt", Means)
    found = Extractor.load(f"{path},px=24,channels=1,norm=bytes")
    assert found.features(IMAGES)[:, 0] == pytest.approx(IMAGES.mean((1, 2, 3)), rel=1e-5)
    assert found.record()["normalisation"] == "bytes" and len(found.sha256) == 64
    assert Extractor.load(path).features(IMAGES).shape == (20, 3)  # by default colour at 299 px
    signed = Extractor.load(f"{path},px=24,channels=1,norm=signed").features(IMAGES)
    assert signed[:, 0] == pytest.approx(IMAGES.mean((1, 2, 3)) / 127.5 - 1, rel=1e-4, abs=1e-5)


def test_maps_are_averaged_over_their_pixels(tmp_path):
    path = script(tmp_path / "maps.pt", Maps)
    found = Extractor.load(f"{path},px=24,channels=1").features(IMAGES)
    assert found[:, 0] == pytest.approx(IMAGES[:, 0, ::2, ::2].mean((1, 2)), rel=1e-5)


@pytest.mark.parametrize("module, said", [(Spoilt, "not finite"), (Two, "must return features")])
def test_a_network_that_gives_no_features_is_an_error(tmp_path, module, said):
    path = script(tmp_path / "bad.pt", module)
    with pytest.raises(DataError, match=said):
        Extractor.load(f"{path},px=8").features(IMAGES)


@pytest.mark.parametrize(
    "spec, said",
    [
        ("random:x", "whole number"),
        ("random:-1", "whole number"),
        ("s3://bucket/net.pt", "only a file on this machine"),
        ("absent.pt", "there is no file"),
        ("absent.pt,size=3", "after the path come"),
        ("absent.pt,norm=other", "after the path come"),
        ("absent.pt,channels=1,norm=imagenet", "imagenet with 3 channels"),
        ("/nowhere/run", "holds no classifier"),
    ],
)
def test_specifications_that_name_nothing_say_what_is_allowed(spec, said):
    with pytest.raises(UsageError, match=said):
        Extractor.load(spec)


def test_a_file_that_is_no_torchscript_is_refused(tmp_path):
    path = tmp_path / "junk.pt"
    path.write_bytes(b"junk" * 100)
    with pytest.raises(DataError, match="not a TorchScript file"):
        Extractor.load(str(path))


def test_a_classifier_gives_the_features_before_its_last_layer(tmp_path):
    network = Classifier(("a", "b"), size_px=24, width=8).seed_weights(3).eval()
    about = {"arguments": network.arguments()}
    save_network(Store(tmp_path), CLASSIFIER, network.state_dict(), about, "card")
    for spec in (str(tmp_path), str(tmp_path / "classifier.safetensors")):
        found = Extractor.load(spec).features(IMAGES[:BATCH])
        unit = torch.from_numpy(IMAGES[:BATCH]).float() / 127.5 - 1
        with torch.inference_mode():
            wanted = network.features(unit).numpy()
        assert np.allclose(found, wanted, atol=1e-5)
    assert not Extractor.load(str(tmp_path)).record()["smoke_test"]


def test_colour_becomes_luminance_for_a_grey_network_and_grey_is_repeated():
    colour = np.zeros((1, 3, 4, 4), np.uint8)
    colour[:, 1] = 255
    grey = prepared(colour, Form(None, 1, "unit"))
    assert grey.shape == (1, 1, 4, 4) and grey[0, 0, 0, 0].item() == pytest.approx(0.587)
    repeated = prepared(IMAGES, Form(None, 3, "unit"))
    assert repeated.shape == (20, 3, 24, 24) and torch.equal(repeated[:, 0], repeated[:, 2])


def test_sixteen_bits_are_scaled_by_their_own_range():
    wide = IMAGES.astype(np.uint16) * 257
    same = [prepared(images, Form(None, 1, "unit")) for images in (IMAGES, wide)]
    assert torch.allclose(*same)


def test_other_arrays_are_refused():
    extractor = Extractor.load("random:0")
    for images in (IMAGES[:, 0], IMAGES.astype(np.float32), IMAGES.repeat(2, axis=1), IMAGES[:0]):
        with pytest.raises(ValueError):
            extractor.features(images)


def test_the_random_network_written_out():
    network, images = RandomNetwork(0), torch.rand(2, 1, 16, 16) * 2 - 1
    first = torch.nn.functional.conv2d(
        images, network.layers[0].weight, network.layers[0].bias, stride=2, padding=1
    )
    wanted = torch.where(first > 0, first, 0.2 * first).mean((2, 3))
    assert torch.allclose(network(images)[:, :16], wanted, atol=1e-6)
