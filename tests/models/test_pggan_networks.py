"""The two networks: sizes from the paper's table, growth without a jump, any width and channels."""

import pytest
import torch

from medray.errors import UsageError
from medray.models.layers import double
from medray.models.ops import halve
from medray.models.pggan import Discriminator, Generator, width

SMALL = {"latent_dims": 8, "fmap_base": 64, "fmap_max": 16}
TABLE = [
    (64, 22_485_765, 22_493_441),
    (128, 22_928_518, 22_936_449),
    (1024, 23_074_009, 23_082_161),
]


def _z(images: int = 4) -> torch.Tensor:
    return torch.randn(images, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("px", "generator", "discriminator"), TABLE)
def test_parameters_are_as_many_as_in_the_papers_table(
    px: int, generator: int, discriminator: int
) -> None:
    with torch.device("meta"):
        networks = Generator(px), Discriminator(px)
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert counts == [generator, discriminator]


def test_widths_are_those_of_the_paper() -> None:
    widths = [width(r - 1, 8192, 512) for r in range(2, 11)]
    assert widths == [512, 512, 512, 512, 256, 128, 64, 32, 16]


def test_1024_px_passes_through_both_networks_without_data() -> None:
    with torch.device("meta"):
        generator, discriminator = Generator(1024), Discriminator(1024)
        images = generator(torch.empty(4, 512), 1024, 0.5)
        assert images.shape == (4, 1, 1024, 1024)
        assert discriminator(images, 1024, 0.5).shape == (4,)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("px", [4, 8, 32])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_every_resolution_gives_images_of_its_size_and_one_score_each(
    channels: int, px: int, alpha: float
) -> None:
    generator, discriminator = (
        Generator(32, channels, **SMALL),
        Discriminator(32, channels, **SMALL),
    )
    images = generator(_z(3), px, alpha)
    assert images.shape == (3, channels, px, px) and images.dtype == torch.float32
    assert discriminator(images, px, alpha).shape == (3,)


def test_growth_starts_where_the_last_level_ended_and_ends_at_the_new_layers_alone() -> None:
    generator, discriminator = Generator(16, **SMALL), Discriminator(16, **SMALL)
    z = _z()
    torch.testing.assert_close(generator(z, 16, 0.0), double(generator(z, 8, 1.0)))
    images = torch.randn(4, 1, 16, 16)
    torch.testing.assert_close(discriminator(images, 16, 0.0), discriminator(halve(images), 8, 1.0))
    nearly = 1 - 1e-6
    torch.testing.assert_close(
        generator(z, 16, nearly), generator(z, 16, 1.0), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        discriminator(images, 16, nearly), discriminator(images, 16, 1.0), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("kind", [Generator, Discriminator])
@pytest.mark.parametrize("px", [4, 8, 16, 32])
def test_active_parameters_are_those_that_get_a_gradient_while_fading(
    kind: type[Generator] | type[Discriminator], px: int
) -> None:
    network = kind(32, **SMALL)
    inputs = _z() if kind is Generator else torch.randn(4, 1, px, px)
    network(inputs, px, 0.5).square().sum().backward()
    touched = [name for name, p in network.named_parameters() if p.grad is not None]
    assert sorted(touched) == sorted(name for name, _ in network.active_parameters(px))


def test_labels_widen_the_latent_and_the_last_layer() -> None:
    generator, discriminator = (
        Generator(8, classes=3, **SMALL),
        Discriminator(8, classes=3, **SMALL),
    )
    images = generator(torch.randn(2, 8 + 3), 8, 1.0)
    assert discriminator.logits(images, 8, 1.0).shape == (2, 4)


@pytest.mark.parametrize("px", [0, 3, 2, 48, 2048])
def test_a_resolution_that_is_no_power_of_two_is_refused(px: int) -> None:
    with pytest.raises(UsageError, match=f"power of two from 4 to 1024, got {px}"):
        Generator(px)


def test_a_resolution_or_fade_outside_the_network_is_refused() -> None:
    generator = Generator(8, **SMALL)
    with pytest.raises(UsageError, match=r"one of \[4, 8\], got 16"):
        generator(_z(), 16, 1.0)
    with pytest.raises(UsageError, match=r"alpha must be from 0 to 1, got 1.5"):
        generator(_z(), 8, 1.5)
