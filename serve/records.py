"""Nouns that cross a border of serve: what is asked of a model, what it answers, what a model is.

Shape letters: N images, H and W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Heat = npt.NDArray[np.float32]
Kind = Literal["generator", "classifier"]


@dataclass(frozen=True)
class Order:
    """One image to be made: the address (seed, index), the wanted label, the truncation.

    `wanted` has a number per class; None: as they come. With `to`, the latent lies on the way to
    the one of that index, at this `share` of it.
    """

    seed: int
    index: int
    wanted: tuple[float, ...] | None = None
    truncation: float = 1.0
    to: int | None = None
    share: float = 0.0


@dataclass(frozen=True)
class Made:
    """One image that was made, encoded as asked; `address` makes the same bytes again."""

    data: bytes
    address: str
    media_type: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Want:
    """What is asked about an image beside its probabilities."""

    heatmap: bool = False
    # The class that the heatmap explains; None: the likeliest.
    heatmap_class: str | None = None
    ood: bool = True


@dataclass(frozen=True)
class Diagnosed:
    """What a classifier says of one image; `unlike` flags what is not like its training data.

    `decided`: the class, or the findings, that the classifier says; of weighted classes that need
    not be the most probable.
    """

    probabilities: Mapping[str, float]
    model_sha256: str
    decided: tuple[str, ...] = ()
    ood_score: float | None = None
    unlike: bool | None = None
    heat_HW: Heat | None = None
    heatmap_class: str | None = None


@dataclass(frozen=True)
class ModelSpec:
    """Where a model is and what it is to be: what PUT takes. `sha256` None: not compared."""

    kind: Kind
    url: str
    latents: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class ModelInfo:
    """A model as callers see it: no paths, no URLs.

    `share` is this version's share of the requests; a name has two versions during a canary.
    """

    name: str
    kind: Kind
    sha256: str
    classes: tuple[str, ...]
    size_px: int
    share: float = 1.0
    facts: Mapping[str, Any] = field(default_factory=dict)
