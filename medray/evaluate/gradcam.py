"""Grad-CAM and Grad-CAM++ at any named layer: where a network looked when it said a class.

Selvaraju et al., "Grad-CAM", ICCV 2017: a map's weight is the mean gradient of the class's score by
it; the heat is what is positive in the weighted sum. Chattopadhyay et al., "Grad-CAM++", WACV 2018:
positive gradients alone, weighted by place. Everything up to the layer runs without gradients, and
the gradient is taken from the layer's output on: most of a network is never gone back through.

Shape letters: N images, C channels, H and W pixels, K classes, F maps, h and w their pixels.
"""

from __future__ import annotations

import difflib
import re
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from medray.errors import DataError, UsageError
from medray.models.extract import BATCH
from medray.models.named_layers import aliases, listing, shapes
from medray.models.pixels import to_unit

Pixels = npt.NDArray[Any]
EPSILON = 1e-12


def gradcam(
    classifier: nn.Module,
    images_NCHW: Tensor,
    layer: str,
    classes_N: Tensor | None = None,
    plus_plus: bool = False,
) -> Tensor:
    """Heat in [0, 1] of images in [-1, 1], `(N, H, W)` float32, the hottest pixel 1.

    All 0 where nothing spoke for the class. `classes_N` are class numbers, without them what the
    network says. UsageError for a layer that there is not or that has no maps, for a network in
    training mode, and for class numbers that it does not have.
    """
    heat_NHW, _ = explained(classifier, images_NCHW, layer, classes_N, plus_plus)
    return heat_NHW


def explained(
    classifier: nn.Module,
    images_NCHW: Tensor,
    layer: str,
    classes_N: Tensor | None = None,
    plus_plus: bool = False,
) -> tuple[Tensor, Tensor]:
    """`gradcam`, and the logits `(N, K)` that the same pass gave."""
    if classifier.training:
        raise UsageError(
            "Grad-CAM needs a network in eval mode: what it says must not depend on chance",
            hint="network.eval()",
        )
    # A caller may be in inference mode, whose tensors cannot be gone back through.
    with torch.inference_mode(False), torch.no_grad():
        maps_NFhw, logits_NK = _through(classifier, images_NCHW, layer)
        gradient_NFhw = _gradient(logits_NK, maps_NFhw, _classes(classifier, logits_NK, classes_N))
        heat_Nhw = _heat(maps_NFhw.detach().float(), gradient_NFhw.float(), plus_plus)
        size = list(images_NCHW.shape[2:])
        heat_NHW = functional.interpolate(heat_Nhw[:, None], size, mode="bilinear")[:, 0]
        top_N11 = heat_NHW.amax((1, 2), keepdim=True)
        return heat_NHW / top_N11.clamp(min=EPSILON), logits_NK.detach().float()


def layers_with_maps(network: nn.Module, channels: int, px: int) -> dict[str, tuple[int, ...]]:
    """Layers that heat can be taken of: name to (F, h, w), in the order they run."""
    return {name: s for name, s in shapes(network, channels, px).items() if len(s) == 3}


def usual_layers(network: nn.Module, channels: int, px: int) -> list[str]:
    """Of those, what stands for a stage: the network's own names, or its blocks in their order."""
    found = layers_with_maps(network, channels, px)
    own = [name for name in aliases(network) if name in found]
    blocks = [name for name in found if re.fullmatch(r"[a-z_.]+\.\d+", name)]
    lists = list(dict.fromkeys(name.rpartition(".")[0] for name in blocks))
    # Of lists that run side by side (convolutions and their norms) the last to run is enough.
    stage = next((name for name in lists if name.endswith("blocks")), lists[-1] if lists else "")
    return own or [n for n in blocks if n.rpartition(".")[0] == stage] or list(found)


def said(classifier: nn.Module, logits_NK: Tensor) -> Tensor:
    """The class that the network says, `(N,)`; of findings the one that is most probable."""
    if getattr(classifier, "multi_label", False):
        probabilities_NK: Tensor = classifier.calibrated(logits_NK)  # type: ignore[operator]
        return probabilities_NK.argmax(1)
    return logits_NK.argmax(1)


def no_such_layer(network: nn.Module, images_NCHW: Tensor, layer: str) -> UsageError:
    """The error for a layer without maps, which lists those with."""
    found = layers_with_maps(network, images_NCHW.shape[1], images_NCHW.shape[-1])
    near = difflib.get_close_matches(layer, found, 1)
    return UsageError(
        f"there is no layer {layer!r} with maps; for images of {images_NCHW.shape[-1]} px there "
        f"are\n{listing(found)}",
        hint=f"--layer {near[0] if near else next(iter(found), '')}",
    )


# --- the pass -----------------------------------------------------------------------------------


def _through(network: nn.Module, images_NCHW: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """The layer's maps, a leaf, and the logits as a function of them."""
    path = aliases(network).get(layer, layer)
    module = dict(network.named_modules()).get(path) if path else None
    if module is None:
        raise no_such_layer(network, images_NCHW, layer)
    kept: list[Any] = []
    hook = module.register_forward_hook(_from_here(kept))
    try:
        # An image from inference mode could not be kept for the way back.
        inputs_NCHW = images_NCHW.clone() if images_NCHW.is_inference() else images_NCHW
        logits_NK = network(inputs_NCHW)
    finally:
        hook.remove()
        torch.set_grad_enabled(False)
    if not kept or not isinstance(kept[-1], Tensor):
        raise no_such_layer(network, images_NCHW, layer)
    if not logits_NK.requires_grad:
        raise UsageError(
            f"what follows the layer {layer!r} runs without gradients", hint="take a later layer"
        )
    return kept[-1], logits_NK


def _from_here(kept: list[Any]) -> Any:
    """A hook: from its module's output on, gradients are kept; a module run twice gives its last.

    Networks are shared between threads, and so are hooks: those of others go by.
    """
    thread = threading.get_ident()

    def hook(module: nn.Module, _: Any, made: Any) -> Tensor | None:
        if threading.get_ident() != thread:
            return None
        if not isinstance(made, Tensor) or made.ndim != 4:
            kept.append(None)
            return None
        leaf = made.detach().requires_grad_()
        kept.append(leaf)
        torch.set_grad_enabled(True)
        # What follows may work in place, which a leaf does not bear.
        return leaf.clone()

    return hook


def _classes(network: nn.Module, logits_NK: Tensor, classes_N: Tensor | None) -> Tensor:
    if classes_N is None:
        return said(network, logits_NK.detach())
    classes_N = classes_N.to(logits_NK.device, torch.long)
    count = logits_NK.shape[1]
    if classes_N.shape != logits_NK.shape[:1]:
        raise UsageError(
            f"one class number for each of {len(logits_NK)} images, got {tuple(classes_N.shape)}"
        )
    if len(classes_N) and not 0 <= int(classes_N.min()) <= int(classes_N.max()) < count:
        raise UsageError(f"class numbers are 0 to {count - 1}, got {classes_N.tolist()}")
    return classes_N


def _gradient(logits_NK: Tensor, maps_NFhw: Tensor, classes_N: Tensor) -> Tensor:
    """Of each image's class score by its own maps; images do not meet in the networks here."""
    with torch.enable_grad():
        total = logits_NK.float().gather(1, classes_N[:, None]).sum()
    return torch.autograd.grad(total, maps_NFhw)[0]


def _heat(maps_NFhw: Tensor, gradient_NFhw: Tensor, plus_plus: bool) -> Tensor:
    """What is positive in the weighted sum of the maps, `(N, h, w)`."""
    if plus_plus:
        square_NFhw = gradient_NFhw.square()
        total_NF11 = maps_NFhw.sum((2, 3), keepdim=True)
        below_NFhw = 2 * square_NFhw + total_NF11 * square_NFhw * gradient_NFhw
        below_NFhw = torch.where(below_NFhw != 0, below_NFhw, 1.0)
        weight_NF = (square_NFhw / below_NFhw * gradient_NFhw.relu()).sum((2, 3))
    else:
        weight_NF = gradient_NFhw.mean((2, 3))
    return torch.einsum("nf,nfhw->nhw", weight_NF, maps_NFhw).relu()


# --- stored images --------------------------------------------------------------------------------


def of_stored(
    classifier: nn.Module,
    images_NCHW: Pixels,
    layer: str,
    classes_N: npt.NDArray[np.int64] | None = None,
    plus_plus: bool = False,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Heat `(N, H, W)` and logits `(N, K)` of uint8 or uint16 images, on the network's device.

    In batches of one padded size, so that heat is a function of its image and not of its
    neighbours. DataError for heat that is not finite.
    """
    heats, logits, device = [], [], next(classifier.parameters()).device
    for at in range(0, len(images_NCHW), BATCH):
        part_NCHW = images_NCHW[at : at + BATCH]
        unit_NCHW = to_unit(torch.from_numpy(_padded(part_NCHW)).to(device))
        wanted_N = None
        if classes_N is not None:
            wanted_N = torch.from_numpy(_padded(classes_N[at : at + BATCH]))
        heat_NHW, logits_NK = explained(classifier, unit_NCHW, layer, wanted_N, plus_plus)
        heats.append(heat_NHW[: len(part_NCHW)].cpu().numpy())
        logits.append(logits_NK[: len(part_NCHW)].cpu().numpy())
    found = np.concatenate(heats), np.concatenate(logits)
    if not all(np.isfinite(array).all() for array in found):
        raise DataError(
            "the classifier gave heat that is not finite",
            code="MR-D404",
            hint="its weights are damaged, or its training diverged",
        )
    return found


def _padded(rows: Pixels) -> Pixels:
    full = np.zeros((BATCH, *rows.shape[1:]), rows.dtype)
    full[: len(rows)] = rows
    return full
