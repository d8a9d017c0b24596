"""What jobs/gradcam.py looks with and at: the classifier, the set's images with their true masks.

Shape letters: N images, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from jobs.gradcam import GradcamJob
from medray.errors import DataError, UsageError
from medray.evaluate import gradcam
from medray.evaluate.heat_masks import CUTS, Cut
from medray.models.named_layers import Trained, load_network
from medray.records import ShardIndex
from medray.store import Store
from medray.stream import Source
from medray.stream.masks import MaskRoster
from medray.stream.roster import Fact

Pixels = npt.NDArray[Any]
Masks = npt.NDArray[np.bool_]
Heat = npt.NDArray[np.float32]
READ = 64


@dataclass(frozen=True)
class Looker:
    """A classifier, the layers and cuts to choose from, and the classes that have no place."""

    trained: Trained
    layers: tuple[str, ...]
    methods: tuple[str, ...]
    cuts: tuple[Cut, ...]
    background: tuple[int, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self.trained.network.classes)  # type: ignore[arg-type]

    @property
    def ways(self) -> dict[str, tuple[str, str]]:
        """Method and layer by the name of both together."""
        return {f"{m} {layer}": (m, layer) for m in self.methods for layer in self.layers}

    def heat(
        self, images_NCHW: Pixels, way: str, network: Any = None, like_NK: Any = None
    ) -> tuple[Heat, npt.NDArray[np.float32]]:
        """Heat for the class said, all 0 where that has no place, and the logits.

        With another `network` its heat for the classes that `like_NK`, the logits, say.
        """
        method, layer = self.ways[way]
        said_N = None if like_NK is None else self.said(like_NK)
        heat_NHW, logits_NK = gradcam.of_stored(
            network or self.trained.network, images_NCHW, layer, said_N, method == "gradcam++"
        )
        found_N = self.said(logits_NK) if said_N is None else said_N
        heat_NHW[np.isin(found_N, self.background)] = 0
        return heat_NHW, logits_NK

    def said(self, logits_NK: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Numbers of the classes that logits say."""
        tensor_NK = torch.from_numpy(logits_NK).to(next(self.trained.network.parameters()).device)
        return gradcam.said(self.trained.network, tensor_NK).cpu().numpy()


def looker_of(config: GradcamJob, classes: Sequence[str] | None, channels: int, px: int) -> Looker:
    """The classifier that the flags name; UsageError where it does not fit the set.

    `classes` are the set's, None where it has none to compare with.
    """
    trained = classifier_of(config)
    if trained.channels != channels:
        raise UsageError(
            f"{trained.name} takes images of {trained.channels} channel(s), {config.data} has "
            f"{channels}"
        )
    own = [str(name) for name in trained.network.classes]  # type: ignore[union-attr]
    if strange := [name for name in own if classes is not None and name not in classes]:
        raise UsageError(
            f"{trained.name} tells {', '.join(own)} apart; of these {config.data} has no "
            f"{', '.join(strange)}",
            hint=f"give a classifier of {', '.join(classes or ()) or 'this set'}",
        )
    if unknown := [name for name in config.background if name not in own]:
        raise UsageError(
            f"--background: {trained.name} has no class {', '.join(unknown)}",
            hint=f"there are {', '.join(own)}",
        )
    methods: tuple[str, ...] = (config.method,)
    if config.method == "both":
        methods = ("gradcam", "gradcam++")
    background = tuple(own.index(name) for name in config.background)
    layers, cuts = tuple(config.layer), tuple(map(Cut.parse, config.cut)) or CUTS
    if config.choice is not None:
        layers, methods, cuts = _of_another(config.choice)
    found = gradcam.layers_with_maps(trained.network, channels, px)
    for name in layers:
        if name not in found:
            raise gradcam.no_such_layer(trained.network, torch.zeros(1, channels, px, px), name)
    layers = layers or tuple(gradcam.usual_layers(trained.network, channels, px))
    return Looker(trained, layers, methods, cuts, background)


def _of_another(url: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[Cut, ...]]:
    """Layer, method and cut that another result was made with."""
    import json

    try:
        chosen = json.loads(Store(url).read_bytes("summary.json"))["chosen"]
        return (chosen["layer"],), (chosen["method"],), (Cut.parse(chosen["cut"]),)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"--choice {url} is no finished result of medray gradcam (no summary.json that says "
            "what was chosen)"
        ) from None


def classifier_of(config: GradcamJob) -> Trained:
    """The classifier, on the GPU where there is one."""
    trained = load_network(config.classifier)
    if not getattr(trained.network, "classes", ()):
        raise UsageError(f"--classifier must be a classifier, got {trained.name}")
    trained.network.to(device_of())
    return trained


def device_of() -> torch.device:
    """Where networks run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# --- images with true masks -----------------------------------------------------------------------


def roster_of(config: GradcamJob, index: ShardIndex, split: str) -> MaskRoster | None:
    """A split of the set; None where the set does not have it."""
    if not index.of_split(split):
        return None
    return MaskRoster([Source(config.data)], split, config.cache_dir)


def with_pixels(roster: MaskRoster | None) -> Iterator[tuple[list[Fact], Pixels, Masks]]:
    """Samples, images and true masks of a split, of those whose mask is not empty."""
    if roster is None:
        return
    facts, at = roster.masked(), 0
    for images_NCHW, true_NHW in roster.pairs(facts, READ):
        full_N: npt.NDArray[np.bool_] = true_NHW.max((1, 2))
        some = [f for f, full in zip(facts[at : at + READ], full_N, strict=True) if full]
        at += READ
        if some:
            yield some, images_NCHW[full_N], true_NHW[full_N]


def nothing_to_score(config: GradcamJob, split: str) -> DataError:
    """The error for a split without a true mask."""
    return DataError(
        f"no image of split {split!r} has a mask with a pixel in it: there is nothing to score",
        code="MR-D075",
        where=config.data,
        hint="leave --score out, or pack the set with a mask column or --box-columns",
    )


def grey(images_NCHW: Pixels) -> Heat:
    """Stored images as one channel in [0, 1]."""
    most = np.iinfo(images_NCHW.dtype).max
    grey_NHW: Heat = (images_NCHW.mean(1, dtype=np.float32) / np.float32(most)).astype(np.float32)
    return grey_NHW
