"""Diagnosis: what the network says, of each image alone; what is unlike its training is flagged."""

import shutil

import numpy as np
import pytest
import torch

from medray.errors import DataError, UsageError
from medray.evaluate import gradcam
from medray.models.classifier import Classifier
from medray.models.pixels import to_unit
from medray.models.weights import load_classifier, save_network
from medray.pack.geometry import as_set
from medray.store import Store
from serve.compute.diagnosis import Diagnosis
from serve.compute.fit import box_of, fitted
from serve.records import Want
from tests.evaluate.test_ood import strange
from tests.serve.small_service import CLASSES, PX, chest


@pytest.fixture(scope="module")
def diagnosis(small_models):
    return Diagnosis.load(small_models.classifier)


@pytest.fixture(scope="module")
def films():
    return list(chest(600, 40))


def test_probabilities_are_the_networks_own_calibrated_ones(diagnosis, small_models, films):
    network, about = load_classifier(small_models.classifier)
    with torch.no_grad():
        wanted_NK = network.probabilities(to_unit(torch.from_numpy(np.stack(films)[:, None])))
    np.testing.assert_allclose(diagnosis.probabilities(films), wanted_NK, atol=1e-5)
    said = diagnosis.diagnose(films[:1], [Want()])[0]
    assert said.model_sha256 == about["classifier_sha256"]
    assert list(said.probabilities) == list(CLASSES) and len(said.decided) == 1
    assert sum(said.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_an_image_is_judged_the_same_whatever_stands_beside_it(diagnosis, films):
    whole = diagnosis.diagnose(films, [Want()] * len(films))
    for number in (0, 7, 39):
        alone = diagnosis.diagnose([films[number]], [Want()])[0]
        for name, value in alone.probabilities.items():
            assert whole[number].probabilities[name] == pytest.approx(value, abs=2e-6)
        assert whole[number].ood_score == pytest.approx(alone.ood_score, abs=1e-4)


@pytest.mark.parametrize(
    "shape", [(32, 32), (200, 100), (31, 64), (7, 7), (1, 1), (1, 500), (90, 120, 3), (20, 20, 3)]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_picture_is_fitted_as_pack_does(shape, dtype):
    draw = np.random.default_rng(1)
    image = draw.integers(0, np.iinfo(dtype).max, shape).astype(dtype)
    for channels in (1, 3):
        found = fitted(image, PX, channels)
        wanted = as_set(image, PX, channels, 8 * image.itemsize)
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(fitted(found, PX, channels), found)
        box = box_of(shape[0], shape[1], PX)
        outside = found.copy()
        outside[box.top : box.top + box.height, box.left : box.left + box.width] = 0
        assert not outside.any()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4)),
        np.zeros((4, 4), np.int16),
        np.zeros((0, 4), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_what_is_no_image_is_refused(image):
    with pytest.raises(UsageError, match="uint8 or uint16"):
        fitted(image, PX, 1)


@pytest.mark.parametrize("kind", ["noise", "checkerboard", "photograph"])
def test_what_is_no_radiograph_is_flagged(diagnosis, kind):
    assert all(flag for _, flag in diagnosis.ood([image[0] for image in strange(kind)]))


def test_images_like_the_training_data_are_not(diagnosis, films):
    assert sum(bool(flag) for _, flag in diagnosis.ood(films)) <= 3


def test_a_classifier_that_left_no_distance_says_so_and_makes_none_up(small_models, films):
    bare = Diagnosis.load(small_models.bare)
    assert bare.ood(films[:2]) == [(None, None)] * 2
    assert bare.facts["ood"] is None and "ood.safetensors" in bare.facts["ood_reason"]


def test_heat_is_grad_cams_for_the_class_that_is_asked_for(diagnosis, films):
    wants = [Want(), Want(heatmap=True), Want(heatmap=True, heatmap_class="opacity")]
    said = diagnosis.diagnose(films[:3], wants)
    assert said[0].heat_HW is None and said[0].heatmap_class is None
    likeliest = said[1].decided[0]
    assert [s.heatmap_class for s in said[1:]] == [likeliest, "opacity"]
    inputs = torch.from_numpy(diagnosis.prepared(films[2:3]))
    number = torch.tensor([CLASSES.index("opacity")])
    wanted = gradcam.gradcam(diagnosis.network, inputs, diagnosis.layer, number)[0]
    np.testing.assert_allclose(said[2].heat_HW, wanted, atol=1e-4)
    np.testing.assert_allclose(diagnosis.explain(films[2], "opacity"), wanted, atol=1e-4)
    assert said[1].heat_HW.shape == (PX, PX) and 0 <= said[1].heat_HW.min()


def test_a_class_that_it_does_not_know_is_refused(diagnosis, films):
    with pytest.raises(UsageError, match="allowed: clear, opacity"):
        diagnosis.diagnose(films[:1], [Want(heatmap=True, heatmap_class="x")])


def test_nothing_in_gives_nothing_out(diagnosis):
    assert diagnosis.diagnose([], []) == []
    assert diagnosis.features([]).shape == (0, diagnosis.network.feature_dims)


def test_findings_are_said_each_for_itself_in_colour_too(tmp_path):
    network = Classifier(["a", "b", "c"], size_px=16, width=8, channels=3, multi_label=True)
    network.seed_weights(4)
    with torch.no_grad():
        network.head.bias.copy_(torch.tensor([5.0, -5.0, 5.0]))
        network.thresholds.copy_(torch.tensor([0.5, 0.5, 0.9999999]))
    about = {"kind": "classifier", "arguments": network.arguments()}
    save_network(Store(tmp_path), "classifier", network.state_dict(), about, "a test")
    model = Diagnosis.load(str(tmp_path))
    grey = np.arange(400, dtype=np.uint8).reshape(20, 20)
    for image in (grey, np.stack([grey] * 3, axis=-1)):
        said = model.diagnose([image], [Want(heatmap=True)])[0]
        assert said.decided == ("a",) and said.probabilities["c"] > 0.9
        assert sum(said.probabilities.values()) > 1 and said.heatmap_class in ("a", "c")
    assert model.facts["multi_label"] is True


def test_no_damaged_weights_are_served(small_models, tmp_path):
    shutil.copytree(small_models.classifier, tmp_path / "model")
    path, draw = tmp_path / "model" / "classifier.safetensors", np.random.default_rng(2)
    whole = path.read_bytes()
    for at in draw.integers(0, len(whole), 100).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(DataError, match="digest"):
            Diagnosis.load(str(tmp_path / "model"))


def test_weights_that_give_no_numbers_are_an_error_not_an_answer(small_models, films):
    model = Diagnosis.load(small_models.classifier)
    with torch.no_grad():
        model.network.head.bias.fill_(float("nan"))
    with pytest.raises(DataError, match="not finite"):
        model.diagnose(films[:1], [Want()])
