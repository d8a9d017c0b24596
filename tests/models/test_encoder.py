"""The compact encoder: any size, rows that do not know each other, weights as data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from medray.errors import DataError, UsageError
from medray.models.encoder import (
    Encoder,
    EncoderConfig,
    load_encoder,
    load_with_config,
    save_encoder,
)
from medray.models.named_layers import load_network, shapes
from medray.store import Store
from tests.faults import damage


def made(seed: int = 0, channels: int = 1) -> Encoder:
    return Encoder(EncoderConfig(channels, 8)).seed_weights(seed).eval().requires_grad_(False)


def images(count: int, px: int = 32, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(px)
    return torch.rand(count, channels, px, px, generator=generator) * 2 - 1


@pytest.mark.parametrize(("px", "side"), [(32, 4), (36, 5), (64, 8), (128, 16)])
def test_eight_pixels_become_one_of_the_map_at_any_size(px: int, side: int) -> None:
    encoder = made()
    maps = encoder.maps(images(2, px))
    assert maps.shape == (2, encoder.dims, side, side)
    features = encoder(images(2, px))
    assert features.shape == (2, encoder.dims) and features.dtype == torch.float32
    torch.testing.assert_close(features, maps.mean((2, 3)))
    assert float(features.std(0).max()) > 1e-3


def test_an_images_features_do_not_depend_on_its_batch() -> None:
    encoder, batch = made(), images(5)
    alone = torch.cat([encoder(batch[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(encoder(batch), alone, rtol=1e-4, atol=1e-5)


def test_weights_are_a_function_of_the_seed() -> None:
    one, same, other = made(1), made(1), made(2)
    batch = images(2)
    assert torch.equal(one(batch), same(batch)) and not torch.equal(one(batch), other(batch))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (images(1, 31), "32 px or more, got"),
        (images(1, 32, 3), r"\(N, 1, H, W\), got \(1, 3, 32, 32\)"),
        (images(1)[0], r"\(N, 1, H, W\)"),
    ],
)
def test_images_that_do_not_fit_are_named(given: Tensor, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        made()(given)


@pytest.mark.parametrize("named", [{"channels": 2}, {"width": 12}, {"width": 0}])
def test_what_makes_no_encoder_is_refused(named: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="must be"):
        EncoderConfig(**named)


@pytest.mark.parametrize("place", ["", "model", "model/encoder"])
def test_a_run_a_model_folder_and_a_network_on_an_encoder_give_it_back(
    tmp_path: Path, place: str
) -> None:
    encoder = made(3)
    sha256 = save_encoder(Store(tmp_path).child(place), encoder, {"seed": 3}, "card")
    found, about = load_with_config(str(tmp_path))
    assert about["encoder_sha256"] == sha256 and about["seed"] == 3
    assert torch.equal(found(images(2)), encoder(images(2)))
    assert not any(p.requires_grad for p in load_encoder(str(tmp_path)).parameters())


def test_a_folder_without_one_and_damaged_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no encoder"):
        load_encoder(str(tmp_path))
    save_encoder(Store(tmp_path).child("model"), made(), {}, "card")
    load_encoder(str(tmp_path))
    damage.flip_bit(tmp_path / "model" / "encoder.safetensors", at_byte=9000)
    with pytest.raises(DataError, match="digest"):
        load_encoder(str(tmp_path))


def test_its_layers_are_found_by_name_where_features_are_taken(tmp_path: Path) -> None:
    save_encoder(Store(tmp_path).child("model"), made(), {}, "card")
    trained = load_network(str(tmp_path))
    found = shapes(trained.network, 1, 32)
    assert trained.role == "encoder" and found["stage4"] == (32, 4, 4)
