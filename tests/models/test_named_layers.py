"""Features of named layers: the naive way round gives the same; regions, names, bad networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medray.errors import DataError, UsageError
from medray.models.classifier import Classifier
from medray.models.named_layers import Taker, Trained, load_network, pooled, shapes
from medray.models.pixels import to_unit
from medray.models.segmenter import Segmenter
from medray.store import Store
from tests.models.toy_segmenter import Bright
from tests.sample import latents_toys as toys

IMAGES = np.random.default_rng(0).integers(0, 256, (37, 1, 16, 16)).astype(np.uint8)


def trained(network, sha256="aa") -> Trained:
    return Trained(network, "segmenter", sha256, {"arguments": {"channels": 1}}, "run")


@pytest.fixture(scope="module")
def classifier() -> Trained:
    network = Classifier(("a", "b"), size_px=16, width=8).seed_weights(0).eval()
    return trained(network.requires_grad_(False))


def test_layers_are_listed_with_their_shapes(classifier) -> None:
    found = shapes(classifier.network, 1, 16)
    assert found["body"] == (32,) and found["body.stem"] == (8, 8, 8) and found["head"] == (2,)
    assert shapes(Bright(), 1, 8) == {
        "bottleneck": (4, 4, 4),
        "decoder": (3, 8, 8),
        "down.0": (4, 4, 4),
        "down.1": (4, 4, 4),
        "down": (4, 4, 4),
        "up": (3, 8, 8),
        "last": (1, 8, 8),
    }


def test_the_last_pooled_layer_is_what_the_classifier_calls_its_features(classifier) -> None:
    rows_ND, _ = Taker(classifier, "body", "mean", 16)(IMAGES)
    with torch.inference_mode():
        expected = classifier.network.features(to_unit(torch.from_numpy(IMAGES)))
    np.testing.assert_allclose(rows_ND, expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "max", "whole"])
def test_maps_are_pooled_as_the_naive_loop_does(pool) -> None:
    network = Bright()
    rows, empty_N = Taker(trained(network), "bottleneck", pool, 16)(IMAGES)
    with torch.inference_mode():
        maps = network.down[0](to_unit(torch.from_numpy(IMAGES))).numpy()
    naive = {"mean": maps.mean((2, 3)), "max": maps.max((2, 3)), "whole": maps}[pool]
    np.testing.assert_allclose(rows, naive, rtol=1e-4, atol=1e-5)
    # What the ReLU after it does in place does not reach the features.
    assert (rows.min() < 0 or pool == "max") and not empty_N.any()


def test_a_row_is_a_function_of_its_image_alone(classifier) -> None:
    taker = Taker(classifier, "body.blocks.0", "mean", 16)
    rows, _ = taker(IMAGES)
    order = np.random.default_rng(1).permutation(len(IMAGES))
    shuffled, _ = taker(IMAGES[order])
    assert np.array_equal(shuffled, rows[order])
    assert np.array_equal(taker(IMAGES[5:6])[0][0], rows[5])


def test_the_mean_in_a_region_weighs_pixels_by_the_area_that_is_inside() -> None:
    maps = torch.arange(2 * 4.0).reshape(1, 2, 2, 2)
    region = torch.zeros(1, 1, 4, 4)
    region[0, 0, 0:2, 0:2] = 1  # all of map pixel 0
    region[0, 0, 0, 2] = 1  # a quarter of map pixel 1
    rows, empty = pooled(maps, "masked", region)
    np.testing.assert_allclose(rows.numpy(), [[0.25 / 1.25, (4 + 0.25 * 5) / 1.25]], rtol=1e-6)
    assert not empty.any()


def test_an_empty_region_gives_the_mean_over_the_image_and_is_counted() -> None:
    network = Bright(threshold=0.5)
    images = np.full((20, 1, 8, 8), 10, np.uint8)
    images[3, 0, 2:4, 2:4] = 255
    rows, empty_N = Taker(trained(network), "bottleneck", "masked", 8, trained(network))(images)
    assert np.flatnonzero(~empty_N).tolist() == [3]
    mean, _ = Taker(trained(network), "bottleneck", "mean", 8)(images)
    np.testing.assert_allclose(rows[0], mean[0], rtol=1e-6)
    with torch.inference_mode():
        maps = network.down[0](to_unit(torch.from_numpy(images[3:4]))).numpy()
    np.testing.assert_allclose(rows[3], maps[0, :, 1, 1], rtol=1e-6)
    assert not np.allclose(rows[3], mean[3])


def test_another_segmenter_says_where_and_true_masks_too() -> None:
    network, other = Bright(), Bright(threshold=0.7)
    predicted, _ = Taker(trained(network), "decoder", "masked", 16, trained(other, "bb"))(IMAGES)
    masks = (to_unit(torch.from_numpy(IMAGES))[:, 0] > 0.7).numpy().astype(np.uint8) * 255
    given, _ = Taker(trained(network), "decoder", "masked", 16)(IMAGES, masks)
    own, _ = Taker(trained(network), "decoder", "masked", 16, trained(network))(IMAGES)
    assert np.array_equal(predicted, given) and not np.allclose(predicted, own)


def test_a_real_segmenter_gives_its_layers_over_what_it_predicts() -> None:
    network = Segmenter(size_px=32, width=4).seed_weights(0).eval().requires_grad_(False)
    own = trained(network)
    images = np.random.default_rng(2).integers(0, 256, (5, 1, 32, 32)).astype(np.uint8)
    with torch.inference_mode():
        region = (network(to_unit(torch.from_numpy(images))) > 0)[:, 0].numpy()
    assert 0.05 < region.mean() < 0.95
    for layer, dims in (("bottleneck", 64), ("decoder", 4)):
        predicted, empty_N = Taker(own, layer, "masked", 32, own)(images)
        given, _ = Taker(own, layer, "masked", 32)(images, region.astype(np.uint8))
        mean, _ = Taker(own, layer, "mean", 32)(images)
        assert predicted.shape == (5, dims) and not empty_N.any()
        assert np.array_equal(predicted, given) and not np.allclose(predicted, mean, atol=1e-3)


def test_a_wrong_name_lists_the_layers(classifier) -> None:
    with pytest.raises(UsageError, match=r"(?s)no layer 'body.block'.*body.stem +8x8x8.*fix"):
        Taker(classifier, "body.block", "mean", 16)


def test_vectors_have_no_region(classifier) -> None:
    with pytest.raises(UsageError, match="body gives 32 numbers, no maps"):
        Taker(classifier, "body", "masked", 16, classifier)


def test_features_that_are_not_finite_are_refused(classifier) -> None:
    network = Bright()
    with torch.no_grad():
        network.up.weight[0] = float("nan")
    with pytest.raises(DataError, match="not finite for 37 of 37 images"):
        Taker(trained(network), "decoder", "mean", 16)(IMAGES)
    assert Taker(trained(network), "bottleneck", "mean", 16)(IMAGES)[0].shape == (37, 4)


def test_a_run_of_another_kind_is_refused(tmp_path) -> None:
    toys.save_classifier(Store(tmp_path / "c"), toys.classifier())
    found = load_network(f"{tmp_path}/c")
    assert found.role == "classifier" and found.sha256 == found.about["classifier_sha256"]
    toys.save_generator(Store(tmp_path / "g"), toys.generator())
    with pytest.raises(UsageError, match="holds no segmenter and no classifier"):
        load_network(f"{tmp_path}/g")
