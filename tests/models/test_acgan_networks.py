"""The ACGAN's networks: shapes, standardisation and its inverse, spectral weights, loading."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medray.errors import DataError, UsageError
from medray.models.acgan import (
    Discriminator,
    Generator,
    Layer,
    load_acgan,
    save_acgan,
    seed_weights,
)
from medray.store import Store

CLASSES = ("a", "b", "c")


def networks(shape):
    made = Generator(CLASSES, shape, noise_dims=5, width=8), Discriminator(CLASSES, shape, width=8)
    for number, network in enumerate(made):
        seed_weights(network, number, "test")
    return made


@pytest.mark.parametrize("shape", [(7,), (3, 4, 4), (2, 5, 3)])
def test_features_of_any_shape_are_made_and_judged(shape) -> None:
    generator, discriminator = networks(shape)
    made = generator(torch.randn(6, 5), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert made.shape == (6, *shape, *(1, 1)[: 3 - len(shape)])
    source, labels = discriminator(made)
    assert source.shape == (6,) and labels.shape == (6, 3)
    assert made.std() > 0.1


def test_the_class_decides_with_the_noise() -> None:
    generator, _ = networks((7,))
    noise = torch.randn(1, 5).expand(3, 5)
    a, b, again = generator(noise, torch.tensor([0, 1, 0]))
    assert torch.equal(a, again) and not torch.allclose(a, b)


def test_standardising_gives_mean_0_and_deviation_1_and_has_an_inverse() -> None:
    generator, _ = networks((4,))
    rows = torch.randn(50, 4, 1, 1) * torch.tensor([1.0, 30.0, 0.01, 0.0])[:, None, None] + 7
    generator.standardise(rows)
    seen = generator.standardised(rows)
    np.testing.assert_allclose(seen.mean((0, 2, 3)), np.zeros(4), atol=1e-4)
    np.testing.assert_allclose(seen.std((0, 2, 3), correction=0)[:3], np.ones(3), rtol=1e-3)
    np.testing.assert_allclose(generator.features(seen), rows, rtol=1e-4)
    # A constant feature stays what it was, whatever the generator says of it.
    assert torch.equal(
        generator.features(torch.randn(9, 4, 1, 1))[:, 3], torch.full((9, 1, 1), 7.0)
    )


@pytest.mark.parametrize("kernel_px", [0, 3])
def test_a_spectral_weight_has_largest_singular_value_1(kernel_px) -> None:
    layer = Layer(6, 9, kernel_px, spectral=True)
    seed_weights(layer, 1, "test")
    x = torch.randn(2, 6, 4, 4) if kernel_px else torch.randn(2, 6)
    for _ in range(60):
        layer(x)
    with torch.no_grad():
        divided, plain = (
            float(torch.linalg.matrix_norm(weight.flatten(1), 2))
            for weight in (layer._divided(), layer.weight)
        )
    assert abs(divided - 1) < 1e-3
    # The control: the weight itself has another one.
    assert abs(plain - 1) > 0.1


def test_power_iteration_moves_in_training_alone() -> None:
    layer = Layer(6, 9, spectral=True)
    seed_weights(layer, 1, "test")
    layer.eval()(torch.randn(2, 6))
    before = layer.u_O.clone()
    layer.eval()(torch.randn(2, 6))
    assert torch.equal(layer.u_O, before)
    layer.train()(torch.randn(2, 6))
    assert not torch.equal(layer.u_O, before)


def test_a_saved_pair_is_the_same_pair(tmp_path) -> None:
    generator, discriminator = networks((7,))
    generator.standardise(torch.randn(9, 7, 1, 1))
    about = {"features": "aa:body:mean", "counts": [1, 2, 3]}
    sha256 = save_acgan(Store(tmp_path / "model"), generator, discriminator, about, "card")
    found_g, found_d, found = load_acgan(str(tmp_path))
    assert found["acgan_sha256"] == sha256 and found["features"] == "aa:body:mean"
    noise, classes = torch.randn(4, 5), torch.tensor([0, 1, 2, 0])
    made = generator.eval()(noise, classes)
    assert torch.equal(found_g(noise, classes), made)
    assert torch.equal(found_d(made)[1], discriminator.eval()(made)[1])
    path = tmp_path / "model" / "acgan.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(DataError, match="digest"):
        load_acgan(str(tmp_path))


def test_one_class_and_features_of_two_dimensions_are_refused() -> None:
    with pytest.raises(UsageError, match="two or more different classes"):
        Generator(("a",), (4,))
    with pytest.raises(UsageError, match=r"shape \(D,\) or \(C, H, W\)"):
        Discriminator(CLASSES, (4, 4))
