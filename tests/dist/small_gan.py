"""A GAN small enough for parity tests: convolutions, minibatch stddev, gradient penalty.

Letters: N images of this rank, H, W pixels, L latent dimensions. Image i of step s is a function
of (s, i) alone, so two ranks with half the batch each see what one process sees whole.
"""

from __future__ import annotations

from typing import Any

import torch

from medray.dist.context import Context
from medray.dist.engine import Engine, make_engine

BATCH_IMAGES, GROUP_IMAGES, SIZE_PX, LATENT_DIMS = 16, 4, 8, 6
# With eps this large Adam's step is smooth in the gradient, so rounding does not flip its sign.
ADAM: dict[str, Any] = {"lr": 0.02, "betas": (0.0, 0.99), "eps": 0.1}


class Generator(torch.nn.Module):
    """Latents (N, L) to images (N, 1, 8, 8); `later` waits for a level that is not active."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(LATENT_DIMS, 4 * SIZE_PX * SIZE_PX)
        self.last = torch.nn.Conv2d(4, 1, 3, padding=1)
        self.later = torch.nn.Conv2d(4, 1, 1)

    def forward(self, z_NL: torch.Tensor) -> torch.Tensor:
        maps = self.first(z_NL).view(-1, 4, SIZE_PX, SIZE_PX)
        return self.last(torch.nn.functional.leaky_relu(maps, 0.2))


class Discriminator(torch.nn.Module):
    """Images (N, 1, 8, 8) to scores (N,), with the deviation over groups of 4 as one more map."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(1, 5, 3, padding=1)
        self.last = torch.nn.Linear(6 * SIZE_PX * SIZE_PX, 1)
        self.later = torch.nn.Conv2d(1, 5, 1)

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        maps = torch.nn.functional.softplus(self.first(images_NCHW))
        groups = maps.view(-1, GROUP_IMAGES, *maps.shape[1:])
        deviation = (groups.var(1, unbiased=False) + 1e-6).sqrt().mean(dim=(1, 2, 3))
        extra = deviation.repeat_interleave(GROUP_IMAGES).view(-1, 1, 1, 1)
        joined = torch.cat([maps, extra.expand(-1, 1, SIZE_PX, SIZE_PX)], 1)
        return self.last(joined.flatten(1)).squeeze(1)


def networks(dtype: torch.dtype) -> tuple[Generator, Discriminator]:
    """Both networks with the same weights in every process."""
    torch.manual_seed(3)
    return Generator().to(dtype), Discriminator().to(dtype)


def active(network: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """All parameters but those of the level to come."""
    return [pair for pair in network.named_parameters() if not pair[0].startswith("later")]


def draw(context: Context, step: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's chunk of step's images and latents."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(
        BATCH_IMAGES, 1, SIZE_PX, SIZE_PX, generator=generator, dtype=torch.float64
    )
    latents = torch.randn(BATCH_IMAGES, LATENT_DIMS, generator=generator, dtype=torch.float64)
    part = BATCH_IMAGES // context.world
    here = slice(context.rank * part, (context.rank + 1) * part)
    return images[here].to(dtype), latents[here].to(dtype)


def penalty(network: torch.nn.Module, images_NCHW: torch.Tensor) -> torch.Tensor:
    """Half the mean squared gradient of the scores by the images (R1)."""
    images_NCHW = images_NCHW.detach().requires_grad_(True)
    scores = network(images_NCHW)
    (grad,) = torch.autograd.grad(scores.sum(), images_NCHW, create_graph=True)
    return 0.5 * grad.square().sum(dim=(1, 2, 3)).mean()


def discriminator_loss(
    both: tuple[Generator, Discriminator], real: torch.Tensor, z_NL: torch.Tensor
) -> torch.Tensor:
    """Logistic loss with R1; the penalty's forward first, as DeepSpeed needs it."""
    with torch.no_grad():
        fake = both[0](z_NL)
    second_order = penalty(both[1], real)
    softplus = torch.nn.functional.softplus
    return second_order + softplus(both[1](fake)).mean() + softplus(-both[1](real)).mean()


def generator_loss(both: tuple[Generator, Discriminator], z_NL: torch.Tensor) -> torch.Tensor:
    """Logistic loss of the generator."""
    return torch.nn.functional.softplus(-both[1](both[0](z_NL))).mean()


def step(
    both: tuple[Generator, Discriminator],
    engines: tuple[Engine, Engine],
    data: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """One step of D, then one of G with D standing still; engines are (G's, D's)."""
    engines[1].zero_grad()
    engines[1].backward(discriminator_loss(both, *data))
    engines[1].step()
    both[1].requires_grad_(False)
    engines[0].zero_grad()
    engines[0].backward(generator_loss(both, data[1]))
    engines[0].step()
    both[1].requires_grad_(True)


def engines_for(
    kind: str, zero_stage: int, both: tuple[Generator, Discriminator], context: Context
) -> tuple[Engine, Engine]:
    """Engines of (G, D) over the active parameters; D stays at stage 2 where G is at 3."""
    make = [(both[0], zero_stage), (both[1], min(zero_stage, 2))]
    g, d = (
        make_engine(kind, network, active(network), context, **ADAM, zero_stage=stage)
        for network, stage in make
    )
    return g, d


def train(context: Context, kind: str, zero_stage: int, steps: int, dtype: torch.dtype) -> Any:
    """Trains from the start and returns (networks, engines)."""
    both = networks(dtype)
    engines = engines_for(kind, zero_stage, both, context)
    for number in range(steps):
        step(both, engines, draw(context, number, dtype))
    return both, engines
