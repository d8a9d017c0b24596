"""A segmenter: MONAI's U-Net, images to one logit a pixel.

Ronneberger, Fischer, Brox, "U-Net", MICCAI 2015, as `monai.networks.nets.BasicUNet` has it: two 3x3
convolutions a level, four halvings, up-sampling by transposed convolutions. Normalisation is within
an image, so a row's result does not depend on which others are in its batch.

Shape letters: N images, C channels, H and W pixels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.networks.nets.basic_unet import BasicUNet
from torch import Tensor, nn
from torch.nn import functional

from medray import rng
from medray.errors import UsageError
from medray.models import weights
from medray.models.layers import channels_last
from medray.models.pixels import resized

# Four halvings; a level of one pixel could not be normalised within an image.
MULTIPLE_PX, SMALLEST_PX = 16, 32
SLOPE = 0.1


class Segmenter(nn.Module):
    """Images `(N, C, H, W)` in [-1, 1], any size -> logits `(N, 1, H, W)` float32.

    The network works at `size_px`: other images are resized to it, their logits back to them.
    Levels have width, 2, 4, 8 and (bottleneck) 16 times `width` channels: 64 is the published
    network, 64/128/256/512/1024. UsageError for arguments that make no network.
    """

    classes: tuple[str, ...] = ()
    # Layers by what they are; paths are those of `get_submodule`.
    layer_names = {
        "encoder": "unet.down_3",
        "bottleneck": "unet.down_4",
        "decoder": "unet.upcat_1",
    }

    def __init__(self, *, channels: int = 1, size_px: int = 64, width: int = 16) -> None:
        super().__init__()
        _check(channels, size_px, width)
        self.channels, self.size_px, self.width = channels, size_px, width
        self.unet = BasicUNet(
            spatial_dims=2,
            in_channels=channels,
            out_channels=1,
            features=(width, 2 * width, 4 * width, 8 * width, 16 * width, width),
            act=("LeakyReLU", {"negative_slope": SLOPE, "inplace": True}),
            norm=("instance", {"affine": True}),
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def arguments(self) -> dict[str, int]:
        """What makes this network again: `Segmenter(**arguments)`."""
        return {"channels": self.channels, "size_px": self.size_px, "width": self.width}

    def forward(self, images_NCHW: Tensor) -> Tensor:
        if images_NCHW.ndim != 4 or images_NCHW.shape[1] != self.channels:
            raise UsageError(
                f"images must have shape (N, {self.channels}, H, W), got {tuple(images_NCHW.shape)}"
            )
        logits_N1HW: Tensor = self.unet(channels_last(resized(images_NCHW, self.size_px))).float()
        size = images_NCHW.shape[2:]
        if logits_N1HW.shape[2:] == size:
            return logits_N1HW
        return functional.interpolate(logits_N1HW, size, mode="bilinear", align_corners=False)

    @torch.no_grad()
    def seed_weights(self, seed: int) -> Segmenter:
        """Weights N(0, 2 / fan in) (He et al., ICCV 2015), each from a stream of its own name."""
        for path, module in self.named_modules():
            for name, parameter in module.named_parameters(f"{path}." if path else "", False):
                if parameter.ndim == 1:
                    parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                    continue
                drawn = rng.normals(seed, f"segmenter.init.{name}", 0, parameter.numel())
                scale = math.sqrt(2 / _fan_in(module, parameter))
                parameter.copy_(torch.from_numpy(drawn).view(parameter.shape) * scale)
        return self


def _fan_in(module: nn.Module, parameter: Tensor) -> int:
    """Weights behind one output; of an up-sampling's kernel, one pixel reaches each output."""
    return parameter.shape[0] if isinstance(module, nn.ConvTranspose2d) else parameter[0].numel()


def _check(channels: int, size_px: int, width: int) -> None:
    faults = {
        f"channels must be 1 or 3, got {channels}": channels not in (1, 3),
        f"size px must be a multiple of {MULTIPLE_PX}, {SMALLEST_PX} or more, got {size_px}": (
            size_px < SMALLEST_PX or size_px % MULTIPLE_PX != 0
        ),
        f"width must be 1 or more, got {width}": width < 1,
    }
    for text, wrong in faults.items():
        if wrong:
            raise UsageError(text)


def load_segmenter(url: str) -> tuple[Segmenter, dict[str, Any]]:
    """The segmenter of a run folder or of its `model/` folder, on the CPU, and its configuration.

    `about["segmenter_sha256"]` identifies it. Raises as `weights.load_generator`.
    """
    return weights.load_network(url, weights.SEGMENTER, Segmenter)
