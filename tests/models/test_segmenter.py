"""The segmenter: shapes, any size, rows that do not know each other, named layers, weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from medray.errors import DataError, UsageError
from medray.models import weights
from medray.models.named_layers import load_network, shapes
from medray.models.segmenter import Segmenter, load_segmenter
from medray.store import Store
from tests.faults import damage


def made(seed: int = 0, **named: int) -> Segmenter:
    return Segmenter(**{"width": 2, "size_px": 32, **named}).seed_weights(seed).eval()


def images(count: int, px: int = 32, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(px)
    return torch.rand(count, channels, px, px, generator=generator) * 2 - 1


def test_what_is_said_of_an_image_does_not_depend_on_its_batch() -> None:
    network, batch = made(), images(5)
    together = network(batch).detach()
    alone = torch.cat([network(batch[i : i + 1]).detach() for i in range(5)])
    assert together.shape == (5, 1, 32, 32) and together.dtype == torch.float32
    assert float(together.std()) > 1e-3
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("px", [20, 33, 64, 100])
def test_images_of_any_size_get_logits_of_their_size_from_the_network_at_its_own(px: int) -> None:
    network, batch = made(), images(2, px).requires_grad_(True)
    logits = network(batch)
    assert logits.shape == (2, 1, px, px)
    logits.square().sum().backward()
    assert batch.grad is not None and float(batch.grad.abs().max()) > 0
    if px == 64:
        own = network(torch.nn.functional.avg_pool2d(batch, 2))
        assert torch.allclose(
            torch.nn.functional.interpolate(own, (px, px), mode="bilinear"), logits
        )


def test_the_published_network_has_its_channels_at_every_level() -> None:
    # 240 px in, 15x15x1024 at the bottleneck; a 64th of the width, as narrow as it may be.
    found = shapes(made(width=1, size_px=240), 1, 240)
    assert found["bottleneck"] == (16, 15, 15) and found["decoder"] == (1, 240, 240)
    with torch.device("meta"):
        network = Segmenter(width=64)
    levels = ("conv_0", "down_1", "down_2", "down_3", "down_4")
    channels = [
        [m for m in getattr(network.unet, name).modules() if isinstance(m, torch.nn.Conv2d)][-1]
        for name in levels
    ]
    assert [conv.out_channels for conv in channels] == [64, 128, 256, 512, 1024]


def test_named_layers_are_modules_of_the_network() -> None:
    network = made()
    assert {"bottleneck", "decoder"} <= set(network.layer_names) and network.classes == ()
    seen = {}
    for name, path in network.layer_names.items():
        network.get_submodule(path).register_forward_hook(
            lambda module, given, out, name=name: seen.update({name: out.clone()})
        )
    network(images(3))
    assert seen["bottleneck"].shape == (3, 32, 2, 2) and seen["decoder"].shape == (3, 2, 32, 32)


def test_every_weight_is_seeded_and_the_signal_keeps_its_size() -> None:
    first, again, other = made(seed=1), made(seed=1), made(seed=2)
    ones = {n: p.clone() for n, p in first.named_parameters()}
    assert all(torch.equal(ones[n], p) for n, p in again.named_parameters())
    differ = [n for n, p in other.named_parameters() if not torch.equal(ones[n], p)]
    assert differ == [n for n, p in first.named_parameters() if p.ndim > 1] and len(differ) > 20
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.fill_(float("nan"))
    first.seed_weights(1)
    assert all(torch.equal(ones[n], p) for n, p in first.named_parameters())
    scale = float(made(width=8, size_px=64)(images(2, 64)).detach().std())
    assert 0.1 < scale < 10


def test_three_channels_are_taken_where_they_were_asked_for_and_refused_elsewhere() -> None:
    assert made(channels=3)(images(2, channels=3)).shape == (2, 1, 32, 32)
    with pytest.raises(UsageError, match=r"\(N, 1, H, W\), got \(2, 3, 32, 32\)"):
        made()(images(2, channels=3))


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"size_px": 16}, "multiple of 16, 32 or more, got 16"),
        ({"size_px": 40}, "multiple of 16, 32 or more, got 40"),
        ({"width": 0}, "width must be 1 or more, got 0"),
    ],
)
def test_arguments_that_make_no_network_are_refused(named: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Segmenter(**named)


# --- as files -------------------------------------------------------------------------------------


def saved(url: str | Path, network: Segmenter) -> str:
    about = {"kind": "segmenter", "arguments": network.arguments()}
    store = Store(url).child("model")
    return weights.save_network(store, weights.SEGMENTER, network.state_dict(), about, "card")


def test_a_saved_segmenter_comes_back_by_its_run_or_its_model_folder(tmp_path: Path) -> None:
    network = made(width=3, size_px=48)
    sha256 = saved(tmp_path, network)
    for place in (str(tmp_path), f"{tmp_path}/model"):
        found, about = load_segmenter(place)
        assert about["segmenter_sha256"] == sha256
        assert torch.equal(found(images(2)), network(images(2)))
        assert not any(p.requires_grad for p in found.parameters())
    trained = load_network(str(tmp_path))
    assert (trained.role, trained.sha256) == ("segmenter", sha256)


def test_damaged_weights_and_a_folder_without_any_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, made())
    with pytest.raises(UsageError, match="holds no segmenter"):
        load_segmenter(str(tmp_path / "absent"))
    damage.flip_bit(tmp_path / "model" / "segmenter.safetensors", at_byte=4000)
    with pytest.raises(DataError, match="do not have the digest"):
        load_segmenter(str(tmp_path))
