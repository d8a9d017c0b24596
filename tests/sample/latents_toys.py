"""Networks so small that a test can make them: a generator whose images are sums of patterns."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from medray.models.classifier import Classifier
from medray.models.pggan import Generator
from medray.models.weights import save_network
from medray.sample.latents_optimise import Pair
from medray.store import Store

PX, DIMS = 16, 16
ARGUMENTS = {"final_px": PX, "fmap_base": 128, "fmap_max": 16, "latent_dims": DIMS}
CLASSES = ("a", "b", "c")


def generator(**more: int) -> Generator:
    """A progressive generator with random weights."""
    torch.manual_seed(0)
    return Generator(**{**ARGUMENTS, **more})  # type: ignore[arg-type]


def classifier(seed: int = 1, architecture: str = "residual", **more: object) -> Classifier:
    """A classifier with random weights that tells the images of `generator` apart."""
    arguments = {"size_px": PX, "width": 8, "architecture": architecture, **more}
    network = Classifier(CLASSES, **arguments).seed_weights(seed)  # type: ignore[arg-type]
    with torch.no_grad():
        network.head.weight.mul_(30)
        if network.channels == 1:
            latents = torch.from_numpy(np.random.default_rng(0).normal(size=(200, DIMS)))
            images = generator()(latents.float(), PX, 1.0).clamp(-1, 1)
            network.head.bias.sub_(network(images).mean(0))
    return network


def pair(**more: object) -> Pair:
    """Both together."""
    return Pair(generator(), classifier(**more))


def save_generator(store: Store, network: Generator, **more: int) -> None:
    """As a finished run of a generator leaves it."""
    about = {"arguments": {**ARGUMENTS, **more}, "px": PX}
    save_network(store, "generator", network.state_dict(), about, "")


def save_classifier(store: Store, network: Classifier) -> None:
    """As a finished run of a classifier leaves it."""
    save_network(store, "classifier", network.state_dict(), {"arguments": network.arguments()}, "")


class Patterns(nn.Module):
    """A linear generator, mean image + latents times patterns, with a generator's interface."""

    def __init__(self, mean_P: Tensor, patterns_DP: Tensor, px: int) -> None:
        super().__init__()
        self.resolutions, self.latent_dims, self.px = [px], len(patterns_DP), px
        self.add_module(f"rgb{px}", nn.Conv2d(1, 1, 1))
        self.mean_P, self.patterns_DP = nn.Parameter(mean_P), nn.Parameter(patterns_DP)

    def forward(self, z_ND: Tensor, px: int, alpha: float) -> Tensor:
        flat: Tensor = self.mean_P + z_ND @ self.patterns_DP
        return flat.view(-1, 1, self.px, self.px)


def principal(images_NP: np.ndarray, dims: int, px: int) -> Patterns:
    """The generator of the images' principal components: N(0, I) latents give their likes."""
    mean_P = images_NP.mean(0)
    _, sizes, axes_DP = np.linalg.svd(images_NP - mean_P, full_matrices=False)
    patterns_DP = axes_DP[:dims] * (sizes[:dims, None] / np.sqrt(len(images_NP)))
    return Patterns(torch.from_numpy(mean_P).float(), torch.from_numpy(patterns_DP).float(), px)
