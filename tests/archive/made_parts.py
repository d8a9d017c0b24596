"""Tiny generators, latents, classifiers and gates, saved where an archive finds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs import archive as archive_job
from medray import rng
from medray.models.classifier import Classifier
from medray.models.pggan import Generator
from medray.models.pixels import to_unit
from medray.models.weights import load_generator, save_generator, save_network
from medray.sample.images import Renderer
from medray.sample.latents import Gaussian, LatentModel, Target, prior
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


def make_classifier(
    folder: Path | str, generator: Path | str, classes: tuple[str, ...] = CLASSES, **more: Any
) -> str:
    """Saves a classifier of random weights that sees each class in its share of the images."""
    network = Classifier(classes, size_px=PX, width=8, **more).seed_weights(1)
    made = Renderer(*load_generator(str(generator)))
    images_NCHW = torch.from_numpy(made.render(prior(9, np.arange(64), made.dims))[:, None])
    with torch.no_grad():
        logits_NK = network(to_unit(images_NCHW))
        network.head.weight.mul_(3 / logits_NK.std(0)[:, None])
        network.head.bias.copy_(-3 * logits_NK.mean(0) / logits_NK.std(0))
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


def make_parts(folder: Path) -> Path:
    """Saves a generator, its latents and a classifier below `folder`."""
    sha256 = make_generator(folder / "generator")
    make_latents(folder / "latents", sha256)
    make_classifier(folder / "classifier", folder / "generator")
    return folder


def arguments(parts: Path, out: Path | str, *more: object, latents: bool = True) -> list[str]:
    """The command line of a small archive of three shards."""
    given: list[object] = ["--generator", parts / "generator", "--out", out, "--workers", 0]
    if latents:
        given += ["--latents", parts / "latents"]
    if "--count" not in more:
        given += ["--count", 24]
    return [str(word) for word in (*given, "--samples-per-shard", 8, "--name", "small", *more)]


def run(parts: Path, out: Path | str, *more: object, latents: bool = True) -> int:
    """Makes a small archive in this process; the exit code."""
    return archive_job.main(arguments(parts, out, *more, latents=latents))


def is_result(name: str) -> bool:
    """Whether a file of an archive must not depend on when and how it was made."""
    return not name.startswith(".lease/") and name != "summary.json"
