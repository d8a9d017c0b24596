"""Tiny generators, latents, classifiers and gates, saved where an archive finds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from medray import rng
from medray.models.classifier import Classifier
from medray.models.pggan import Generator
from medray.models.weights import save_generator, save_network
from medray.sample.latents import Gaussian, LatentModel, Target
from medray.store import Store

CLASSES = ("clear", "opacity")
DIMS, PX = 8, 16


def make_generator(folder: Path | str, *, seed: int = 0, broken: bool = False, **more: Any) -> str:
    """Saves a random generator of 16 px; its digest. `broken`: it gives NaN."""
    torch.manual_seed(seed)
    arguments = {
        "final_px": PX,
        "channels": 1,
        "latent_dims": DIMS,
        "fmap_base": 64,
        "fmap_max": 16,
        **more,
    }
    network = Generator(**arguments)
    with torch.no_grad():
        network.get_submodule(f"rgb{arguments['final_px']}").weight.mul_(0.6)
        if broken:
            network.dense.bias.fill_(float("nan"))
    about = {"kind": "pggan", "arguments": arguments, "px": arguments["final_px"], "seed": seed}
    return save_generator(Store(folder), network.state_dict(), about, "a test")


def make_classifier(folder: Path | str, classes: tuple[str, ...] = CLASSES, **more: Any) -> str:
    """Saves a random classifier; its digest."""
    network = Classifier(classes, size_px=PX, width=8, **more).seed_weights(1)
    with torch.no_grad():
        network.head.weight.mul_(200)
    about = {"kind": "classifier", "arguments": network.arguments()}
    return save_network(Store(folder), "classifier", network.state_dict(), about, "a test")


def make_latents(
    folder: Path | str, generator_sha256: str, classes: tuple[str, ...] = CLASSES
) -> str:
    """Saves latents with one Gaussian per class, apart from each other; their digest."""
    targets = tuple(Target(name, {c: int(c == name) for c in classes}) for name in classes)
    gaussians = tuple(
        Gaussian(
            rng.normals(7, "test.mean", number, DIMS),
            np.ones(DIMS, np.float32),
            np.zeros((DIMS, 0), np.float32),
            np.zeros(0, np.float32),
        )
        for number in range(len(classes))
    )
    return LatentModel(targets, gaussians, generator_sha256, "0" * 64).save(Store(folder))
