"""Classifiers of clips: pools, clips that do not know each other, what is refused, weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from medray.errors import UsageError
from medray.models import weights
from medray.models.clips import CELLS, POOLS, ROLE, ClipClassifier, load_clips
from medray.store import Store

CLASSES = ("acl", "meniscus")
ENCODER = {"channels": 1, "width": 8}
DIMS = 2 * 32


def made(pool: str = "attention", **named: object) -> ClipClassifier:
    options = {"encoder": ENCODER, "pool": pool, "size_px": 32, "frames": 4, "units": 6, **named}
    return ClipClassifier(CLASSES, **options).seed_weights(1).eval()  # type: ignore[arg-type]


def clips(count: int, frames: int = 4, px: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(px)
    return torch.rand(count, frames, px, px, generator=generator) * 2 - 1


@pytest.mark.parametrize("pool", POOLS)
def test_what_is_said_of_a_clip_does_not_depend_on_its_batch(pool: str) -> None:
    network, batch = made(pool), clips(3)
    together = network(batch)
    alone = torch.cat([network(batch[i : i + 1]) for i in range(3)])
    assert together.shape == (3, 2) and together.dtype == torch.float32
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    together.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("frames", "px"), [(1, 32), (1, 64), (9, 40)])
def test_clips_of_one_frame_and_of_many_are_taken(pool: str, frames: int, px: int) -> None:
    assert made(pool, frames=frames)(clips(2, frames, px)).isfinite().all()
    with pytest.raises(UsageError, match=rf"\(N, 4, H, W\).* got \(2, {frames}, {px}, {px}\)"):
        made(pool)(clips(2, frames, px))


@pytest.mark.parametrize("pool", POOLS)
def test_maps_computed_before_give_what_clips_give(pool: str) -> None:
    whole, batch = made(pool), clips(3)
    maps = whole.maps(batch)
    assert maps.shape == (3, 4, DIMS, CELLS[pool], CELLS[pool])
    head = made(pool, whole=False)
    head.load_state_dict({n: t for n, t in whole.state_dict().items() if "encoder." not in n})
    torch.testing.assert_close(head(maps), whole(batch))
    assert not any(name.startswith("encoder.") for name, _ in head.named_parameters())


def test_each_cell_of_each_frame_has_mean_0_and_a_constant_map_stays_finite() -> None:
    network = made(whole=False)
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(50, 4, DIMS, 2, 2, generator=generator) * 7 + 3
    maps[:, 1, :, 0, 1] += 40
    maps[:, :, 3] = 2.0
    standard = network.standardise(maps)._standard(maps)
    torch.testing.assert_close(standard.mean(0), torch.zeros(4, DIMS, 2, 2), rtol=0, atol=1e-5)
    others = [d for d in range(DIMS) if d != 3]
    scale_D = standard[:, :, others].square().mean((0, 1, 3, 4)).sqrt()
    torch.testing.assert_close(scale_D, torch.ones(DIMS - 1), rtol=1e-4, atol=0)
    assert float(standard[:, :, 3].abs().max()) < 1e-5


def test_something_small_and_bright_is_not_averaged_away() -> None:
    network, batch = made("mean").requires_grad_(False), torch.full((2, 4, 64, 64), -0.5)
    batch[1, :, 20:24, 20:24] = 1
    maps = network.maps(batch)
    mean, greatest = (maps[1] - maps[0]).abs().amax((0, 2, 3)).view(2, -1).amax(1)
    assert float(greatest) > 2 * float(mean) > 0


def test_attention_looks_at_frames_and_its_weights_are_shares() -> None:
    network, batch = made().requires_grad_(False), clips(2)
    network.body.weigh.weight.mul_(20)
    weights_NT = network.attention(batch)
    assert weights_NT.shape == (2, 4) and float(weights_NT.std()) > 0.01
    torch.testing.assert_close(weights_NT.sum(1), torch.ones(2))
    # The order of frames does not matter to attention, and does to the ConvLSTM.
    torch.testing.assert_close(network(batch.flip(1)), network(batch))
    recurrent = made("convlstm").requires_grad_(False)
    assert float((recurrent(batch.flip(1)) - recurrent(batch)).abs().max()) > 1e-5
    torch.testing.assert_close(made("mean").attention(batch), torch.full((2, 4), 0.25))


def test_left_and_right_are_not_alike() -> None:
    network, batch = made("mean").requires_grad_(False), clips(1)
    batch[..., :16] = -1
    assert float((network(batch) - network(batch.flip(3))).abs().max()) > 1e-4


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"pool": "max"}, "attention, convlstm, mean, got 'max'"),
        ({"frames": 0}, "frames must be 1 or more"),
        ({"encoder": {"channels": 3, "width": 8}}, "takes 3 channels, the frames of clips have 1"),
    ],
)
def test_arguments_that_make_no_network_are_refused(named: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        made(**named)  # type: ignore[arg-type]


def test_maps_of_another_encoder_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\(N, 4, 64, 2, 2\), got \(1, 4, 16, 2, 2\)"):
        made()(torch.zeros(1, 4, 16, 2, 2))


def test_a_saved_one_says_the_same(tmp_path: Path) -> None:
    network, store = made("convlstm"), Store(tmp_path)
    about = {"arguments": network.arguments()}
    weights.save_network(store, ROLE, network.state_dict(), about, "card")
    found, read = load_clips(str(tmp_path))
    assert torch.equal(found(clips(2)), network(clips(2)))
    assert read["arguments"] == network.arguments()
