"""The row of `bench.py --suite gradcam`: heat of a batch, against MONAI's GradCAM.

ResNet-18 at 224 px, eight images, heat of its last stage for one class; both are asked for the same
network and the same layer, and MONAI's maps are scaled by their greatest value, as ours are.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator

import torch
from monai.networks.nets.resnet import resnet18
from monai.visualize.class_activation_maps import GradCAM
from torch import Tensor, nn

from medray import rng
from medray.evaluate.gradcam import EPSILON, gradcam

ROWS = ("gradcam",)
PX, IMAGES, CLASSES, LAYER, CLASS = 224, 8, 3, "layer4", 1
CLOSE = 1e-5

Case = tuple[str, str, float, Callable[[], float], Callable[[], float], Callable[[], None]]


def rows(rounds: int) -> Iterator[Case]:
    """The row: name, against what, target, a timed round of each in images/s, and the check."""
    images_NCHW = torch.from_numpy(rng.normals(0, "bench.gradcam", 0, IMAGES * PX * PX))
    images_NCHW = images_NCHW.view(IMAGES, 1, PX, PX)
    ours = functools.partial(ours_way, network().requires_grad_(False), images_NCHW)
    theirs = functools.partial(
        monai_way, GradCAM(network(), LAYER, postprocessing=scaled), images_NCHW
    )
    check = functools.partial(check_same, ours, theirs)
    yield "gradcam", "MONAI GradCAM, ResNet-18, 224 px", 2.5, rate(ours), rate(theirs), check


def network() -> nn.Module:
    """The same network each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: nn.Module = resnet18(spatial_dims=2, n_input_channels=1, num_classes=CLASSES)
    return made.eval()


def ours_way(made: nn.Module, images_NCHW: Tensor) -> Tensor:
    """Heat by medray, (N, H, W)."""
    return gradcam(made, images_NCHW, LAYER, torch.full((len(images_NCHW),), CLASS))


def monai_way(explainer: GradCAM, images_NCHW: Tensor) -> Tensor:
    """Heat by MONAI, (N, H, W)."""
    maps_N1HW: Tensor = explainer(images_NCHW, class_idx=CLASS)
    return maps_N1HW[:, 0].detach()


def scaled(maps_N1HW: Tensor) -> Tensor:
    """Maps over their greatest value."""
    return maps_N1HW / maps_N1HW.amax((2, 3), keepdim=True).clamp(min=EPSILON)


def rate(run: Callable[[], Tensor]) -> Callable[[], float]:
    """A timed round of `run`, in images/s."""

    def timed() -> float:
        start = time.perf_counter()
        run()
        return IMAGES / (time.perf_counter() - start)

    return timed


def check_same(ours: Callable[[], Tensor], theirs: Callable[[], Tensor]) -> None:
    """Both give the same maps to 1e-5, and maps with something in them."""
    found, expected = ours(), theirs()
    apart = float((found - expected).abs().max())
    assert apart < CLOSE, f"maps differ by {apart}"
    assert float(expected.std()) > 0.05, "maps of nothing are equal whatever they are of"
