"""The progressive GAN's layers against the paper's formulas, written out."""

import math

import pytest
import torch
from torch.nn import functional

from medray.models import layers


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equalised_weights_are_scaled_by_gain_over_root_of_fan_in_and_biases_are_not() -> None:
    conv = layers.EqualConv(5, 3, 3).double()
    conv.bias.data.fill_(0.7)
    x = _normal(2, 5, 6, 6)
    weight = conv.weight * math.sqrt(2) / math.sqrt(5 * 9)
    torch.testing.assert_close(conv(x), functional.conv2d(x, weight, conv.bias, padding=1))


@torch.no_grad()
def test_fresh_layers_keep_the_variance_of_what_passes_through() -> None:
    conv, dense = layers.EqualConv(64, 64, 3, gain=1.0), layers.EqualLinear(512, 512, gain=1.0)
    assert 0.9 < float(conv(torch.randn(4, 64, 16, 16))[..., 1:-1, 1:-1].std()) < 1.1
    assert 0.9 < float(dense(torch.randn(64, 512)).std()) < 1.1


def test_pixel_norm_makes_every_pixel_one_unit_long() -> None:
    x = _normal(2, 7, 3, 3)
    loop = torch.stack([x[:, c] / (x.square().mean(1) + 1e-8).sqrt() for c in range(7)], 1)
    torch.testing.assert_close(layers.pixel_norm(x), loop)


def test_bfloat16_is_summed_in_float32() -> None:
    x = torch.full((1, 4096, 1, 1), 1.0, dtype=torch.bfloat16)
    assert layers.pixel_norm(x).float().sub(1).abs().max() < 2**-8
    assert layers.minibatch_stddev(x.repeat(4, 1, 1, 1)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("images", "group"),
    [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 3), (7, 7), (8, 4), (9, 3), (10, 2), (12, 4)],
)
def test_stddev_groups_are_of_four_or_as_defined_for_other_batches(images: int, group: int) -> None:
    assert layers.stddev_group(images) == group


def _loop_stddev(x: torch.Tensor) -> torch.Tensor:
    """One image at a time: its group is every image with the same number modulo M."""
    groups = len(x) // layers.stddev_group(len(x))
    channel = []
    for i in range(len(x)):
        members = torch.stack([x[j] for j in range(len(x)) if j % groups == i % groups])
        variance = (members - members.mean(0)).square().mean(0)
        channel.append((variance + 1e-8).sqrt().mean())
    spread = torch.stack(channel)[:, None, None, None].expand(-1, 1, *x.shape[2:])
    return torch.cat([x, spread], 1)


@pytest.mark.parametrize("images", [1, 2, 3, 4, 5, 6, 8, 12])
def test_minibatch_stddev_is_the_loop_over_strided_groups(images: int) -> None:
    x = _normal(images, 3, 2, 2)
    torch.testing.assert_close(layers.minibatch_stddev(x), _loop_stddev(x))


def test_joined_batches_keep_their_own_groups() -> None:
    real, fake = _normal(8, 3, 2, 2), _normal(8, 3, 2, 2, seed=1) * 5
    joined = layers.minibatch_stddev(torch.cat([real, fake]), parts=2)
    torch.testing.assert_close(joined, torch.cat([_loop_stddev(real), _loop_stddev(fake)]))


@pytest.mark.parametrize(("fan_in", "fan_out", "px"), [(1, 1, 1), (3, 5, 4), (4, 2, 7)])
def test_a_doubling_convolution_is_nearest_up_sampling_and_then_3x3(
    fan_in: int, fan_out: int, px: int
) -> None:
    layer = layers.DoublingConv(fan_in, fan_out, 3).double()
    layer.bias.data = _normal(fan_out)
    x = _normal(2, fan_in, px, px)
    plain = functional.conv2d(layers.double(x), layer.weight * layer.scale, layer.bias, padding=1)
    wanted = layers.pixel_norm(functional.leaky_relu(plain, 0.2))
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_keeps_values_and_is_known_as_such(channels: int) -> None:
    x = _normal(2, channels, 4, 4)
    ordered = layers.channels_last(x)
    assert torch.equal(ordered, x) and ordered.stride()[1] == 1 and ordered.stride()[3] == channels
