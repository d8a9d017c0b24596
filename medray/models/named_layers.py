"""Features of any named layer of a trained network, pooled, whole, or over a region of the image.

A layer is named as torch names modules (`body.blocks.1`), or as the network's `layer_names` call
it, where it has such. Images go through in batches of one fixed, padded size, so that a row is a
function of its image and not of what stands beside it.

Shape letters: N images, C channels, H and W pixels, D features, F maps, h and w their pixels.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from medray.errors import DataError, UsageError
from medray.models.extract import BATCH
from medray.models.pixels import to_unit
from medray.store import Store

POOLS = ("mean", "max", "whole", "masked")
# Where each kind of trained network is loaded: its weights lie in `<role>.safetensors`.
LOADERS = {
    "segmenter": ("medray.models.segmenter", "load_segmenter"),
    "classifier": ("medray.models.weights", "load_classifier"),
    "encoder": ("medray.models.encoder", "load_with_config"),
}

Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class Trained:
    """A network of a run: what it is, and the SHA-256 of its weights."""

    network: nn.Module
    role: str
    sha256: str
    about: dict[str, Any]
    url: str

    @property
    def channels(self) -> int:
        """Channels of the images that it takes."""
        return int(self.about["arguments"].get("channels", 1))

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return f"the {self.role} {self.url}"


def load_network(url: str) -> Trained:
    """The trained network of a run folder or of its `model/` folder, on the CPU.

    UsageError where there is none of a kind that has layers to look at.
    """
    for store in (Store(url), Store(url).child("model")):
        for role, (module, function) in LOADERS.items():
            if store.exists(f"{role}.safetensors"):
                load = getattr(importlib.import_module(module), function)
                network, about = load(url)
                return Trained(network, role, str(about[f"{role}_sha256"]), about, url)
    raise UsageError(
        f"{url} holds no {' and no '.join(LOADERS)}",
        hint="give a finished run of one, or its model folder",
    )


def shapes(network: nn.Module, channels: int, px: int) -> dict[str, tuple[int, ...]]:
    """The layers that give one tensor an image, in the order they run: name to its shape."""
    found: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, _: Any, made: Any) -> None:
        if isinstance(made, Tensor) and made.ndim in (2, 4) and len(made) == 1:
            found[module] = tuple(made.shape[1:])

    device = next((p.device for p in network.parameters()), None)
    hooks = [m.register_forward_hook(note) for name, m in network.named_modules() if name]
    try:
        with torch.inference_mode():
            network(torch.zeros(1, channels, px, px, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    names = {module: name for name, module in network.named_modules()}
    named = {alias: network.get_submodule(path) for alias, path in aliases(network).items()}
    return {
        **{alias: found[module] for alias, module in named.items() if module in found},
        **{names[module]: shape for module, shape in found.items()},
    }


def aliases(network: nn.Module) -> dict[str, str]:
    """What the network itself calls its layers, and their paths."""
    given = getattr(network, "layer_names", ())
    return dict(given) if isinstance(given, Mapping) else {name: name for name in given}


def listing(found: Mapping[str, tuple[int, ...]]) -> str:
    """Names and shapes, one a line."""
    width = max((len(name) for name in found), default=0)
    return "\n".join(f"  {n:{width}s}  {'x'.join(map(str, s))}" for n, s in found.items())


class NamedLayer:
    """One layer of a network: images to its output, the network's own output beside it."""

    def __init__(self, trained: Trained, name: str, px: int) -> None:
        found = shapes(trained.network, trained.channels, px)
        if name not in found:
            near = difflib.get_close_matches(name, found, 1)
            raise UsageError(
                f"--layer: {trained.name} has no layer {name!r} that gives a tensor an image; "
                f"for images of {px} px there are\n{listing(found)}",
                hint=f"--layer {near[0] if near else next(iter(found))}",
            )
        self.name, self.shape, self._network = name, found[name], trained.network
        self._module = trained.network.get_submodule(aliases(trained.network).get(name, name))

    def __call__(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Output of the layer, float32, and of the network; a layer run twice gives its last."""
        kept: list[Tensor] = []

        # A copy, since what follows may work in place.
        def keep(module: nn.Module, _: Any, made: Tensor) -> None:
            kept[:] = [made.detach().float().clone()]

        hook = self._module.register_forward_hook(keep)
        try:
            with torch.inference_mode():
                output: Tensor = self._network(images_NCHW)
        finally:
            hook.remove()
        return kept[0], output


def pooled(layer: Tensor, pool: str, region_N1HW: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A layer's output as features, and whether each image had an empty region, (N,).

    `whole` keeps maps (N, F, h, w); the others give (N, F). `masked` is the mean over the region,
    whose pixels weigh as much as the area of them that a map's pixel covers; where it is empty, the
    mean over the image. Vectors (N, D) stay as they are. ValueError for `masked` of vectors.
    """
    empty_N = torch.zeros(len(layer), dtype=torch.bool)
    if pool == "masked":
        if layer.ndim != 4 or region_N1HW is None:
            raise ValueError(
                f"masked features need maps (N, F, h, w) and a region, got {tuple(layer.shape)}"
            )
        size = (layer.shape[2], layer.shape[3])
        weight_N1hw = functional.adaptive_avg_pool2d(region_N1HW.float(), size)
        empty_N = weight_N1hw.sum((1, 2, 3)) == 0
        weight_N1hw = torch.where(empty_N[:, None, None, None], 1.0, weight_N1hw)
        total_NF = (layer * weight_N1hw).sum((2, 3))
        return total_NF / weight_N1hw.sum((2, 3)), empty_N
    if layer.ndim == 2 or pool == "whole":
        return layer, empty_N
    return (layer.mean((2, 3)) if pool == "mean" else layer.amax((2, 3))), empty_N


class Taker:
    """Stored images to features of one layer; `regions` predicts where `masked` looks, if it does.

    UsageError for a layer that there is not, or that `masked` cannot be taken of.
    """

    def __init__(
        self, trained: Trained, layer: str, pool: str, px: int, regions: Trained | None = None
    ) -> None:
        self._layer, self._pool, self._trained = NamedLayer(trained, layer, px), pool, trained
        if pool == "masked" and len(self._layer.shape) != 3:
            raise UsageError(
                f"--pool masked: layer {layer} gives {self._layer.shape[0]} numbers, no maps",
                hint="take --pool mean, or a layer with maps (--layer '?' lists them)",
            )
        self._own = regions is not None and regions.sha256 == trained.sha256
        self._regions = None if regions is None else regions.network

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a row."""
        whole = self._pool == "whole" or len(self._layer.shape) == 1
        return self._layer.shape if whole else self._layer.shape[:1]

    def __call__(
        self, images_NCHW: Pixels, masks_NHW: Pixels | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Features of uint8 or uint16 images, float32, and whose region was empty, (N,).

        `masks_NHW` (0 or not) are the regions, where given. DataError for features that are not
        finite.
        """
        parts = [
            self._batch(images_NCHW[at : at + BATCH], masks_NHW, at)
            for at in range(0, len(images_NCHW), BATCH)
        ]
        features, empty_N = (np.concatenate(column) for column in zip(*parts, strict=True))
        bad = np.flatnonzero(~np.isfinite(features).reshape(len(features), -1).all(1))
        if len(bad):
            raise DataError(
                f"{self._trained.name} gave features that are not finite for {len(bad)} of "
                f"{len(features)} images",
                code="MR-D404",
                hint="its weights are damaged, or its training diverged",
            )
        return features, empty_N

    def _batch(
        self, images_NCHW: Pixels, masks_NHW: Pixels | None, at: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Up to BATCH images, padded with black ones."""
        count = len(images_NCHW)
        padded_NCHW = _padded(images_NCHW)
        device = next(self._trained.network.parameters()).device
        unit_NCHW = to_unit(torch.from_numpy(padded_NCHW)).to(device)
        layer, output = self._layer(unit_NCHW)
        region_N1HW = None
        if masks_NHW is not None:
            region_N1HW = torch.from_numpy(_padded(masks_NHW[at : at + count])[:, None] != 0)
        elif self._regions is not None:
            with torch.inference_mode():
                logits_N1HW = output if self._own else self._regions(unit_NCHW)
            region_N1HW = logits_N1HW > 0
        rows, empty_N = pooled(
            layer, self._pool, None if region_N1HW is None else region_N1HW.to(device)
        )
        return rows[:count].cpu().numpy(), empty_N[:count].cpu().numpy()


def _padded(rows: Pixels) -> Pixels:
    full = np.zeros((BATCH, *rows.shape[1:]), rows.dtype)
    full[: len(rows)] = rows
    return full
