"""The latents of a conditional generator as a latent model: one target a class, nothing fitted.

Such a generator takes latents with a one-hot class behind them. A Gaussian of deviation 1 in the
latent dimensions and 0 in the others, about that one-hot row, draws exactly these; so an archive, a
service or a check draws from a conditional generator as from any other.

Shape letters: D numbers that the generator takes (latent dimensions and classes), K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medray.errors import UsageError
from medray.sample.latents import Gaussian, LatentModel, Target


def of_classes(classes: Sequence[str], latent_dims: int, generator_sha256: str) -> LatentModel:
    """Latents for each class of a conditional generator; no classifier has a part in them."""
    dims = latent_dims + len(classes)
    diagonal_D = np.zeros(dims, np.float32)
    diagonal_D[:latent_dims] = 1
    gaussians = []
    for number in range(len(classes)):
        mean_D = np.zeros(dims, np.float32)
        mean_D[latent_dims + number] = 1
        none = np.zeros((dims, 0), np.float32), np.zeros(0, np.float32)
        gaussians.append(Gaussian(mean_D, diagonal_D, *none))
    wanted = [{other: int(other == name) for other in classes} for name in classes]
    targets = tuple(Target(name, want) for name, want in zip(classes, wanted, strict=True))
    return LatentModel(targets, tuple(gaussians), generator_sha256, classifier_sha256="")


def refuse_conditional(about: Mapping[str, Any], where: str, hint: str) -> None:
    """UsageError where `about`, a generator's configuration, has classes.

    Plain normal latents would stand where it expects a class.
    """
    if about.get("classes"):
        raise UsageError(
            f"{where} is conditional: its latents name one of {', '.join(about['classes'])}",
            hint=hint,
        )
