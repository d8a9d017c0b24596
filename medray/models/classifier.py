"""Image classifiers: a small residual network, a plain one to check it by, and the shared encoder.

Shape letters: N images, C channels, H and W pixels, K classes, D features, F maps.

Normalisation is by groups of channels within an image, so a row's result does not depend on which
others are in its batch (Wu and He, ECCV 2018). The network's own logits are those it was trained to
have, with rare classes weighted up: they decide. Probabilities are calibrated: logits divided by
`temperature` plus `bias`, both fitted on validation, where classes are as frequent as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medray.errors import UsageError
from medray.models.decider import Decider
from medray.models.encoder import SMALLEST_PX as ENCODER_PX
from medray.models.encoder import Encoder, EncoderConfig
from medray.models.layers import channels_last
from medray.models.pixels import resized
from medray.models.residual import GROUP_CHANNELS, Block, conv, norm

ARCHITECTURES = ("residual", "plain", "encoder")
SMALLEST_PX = 16
WIDEST = 8
LAST_PX = 4
PLAIN_FEATURES = 128


class Classifier(Decider):
    """Images `(N, C, H, W)` in [-1, 1], any size -> logits `(N, K)` float32.

    `encoder`, for the architecture of that name, are the arguments of its trunk. UsageError for
    arguments that make no network.
    """

    def __init__(
        self,
        classes: Sequence[str],
        *,
        architecture: str = "residual",
        channels: int = 1,
        size_px: int = 64,
        width: int = 32,
        multi_label: bool = False,
        encoder: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(classes, multi_label)
        _check(classes, architecture, channels, size_px, width, multi_label)
        self.architecture, self.channels = architecture, channels
        self.size_px, self.width = size_px, width
        self.body = _body(architecture, channels, width, size_px, encoder)
        self.feature_dims = int(self.body.feature_dims)
        self.head = nn.Linear(self.feature_dims, len(classes))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def arguments(self) -> dict[str, Any]:
        """What makes this network again: `Classifier(**arguments)`."""
        trunk = {"encoder": self.body.encoder.arguments()} if self.encoder is not None else {}
        return {
            **super().arguments(),
            "architecture": self.architecture,
            "channels": self.channels,
            "size_px": self.size_px,
            "width": self.width,
            **trunk,
        }

    @property
    def encoder(self) -> Encoder | None:
        """The trunk, where the architecture is one."""
        return self.body.encoder if isinstance(self.body, _OnEncoder) else None

    def features(self, images_NCHW: Tensor) -> Tensor:
        """Pooled features before the last layer, `(N, D)` float32."""
        if images_NCHW.ndim != 4 or images_NCHW.shape[1] != self.channels:
            raise UsageError(
                f"images must have shape (N, {self.channels}, H, W), got {tuple(images_NCHW.shape)}"
            )
        features_ND: Tensor = self.body(channels_last(resized(images_NCHW, self.size_px)))
        return features_ND.float()

    def forward(self, images_NCHW: Tensor) -> Tensor:
        logits_NK: Tensor = self.head(self.features(images_NCHW))
        return logits_NK.float()


def _body(
    architecture: str, channels: int, width: int, size_px: int, encoder: Mapping[str, Any] | None
) -> Any:
    if architecture == "encoder":
        config = EncoderConfig(**(encoder or {"channels": channels, "width": width}))
        if config.channels != channels:
            raise UsageError(
                f"the encoder takes {config.channels} channel(s), the images have {channels}"
            )
        return _OnEncoder(config)
    if encoder is not None:
        raise UsageError(f"architecture {architecture} has no encoder (architecture: encoder)")
    body = _Residual if architecture == "residual" else _Plain
    return body(channels, width, halvings(size_px))


def halvings(size_px: int) -> int:
    """How often images of `size_px` are halved to be about 4 px."""
    return max(2, round(math.log2(size_px / LAST_PX)))


def _check(
    classes: Sequence[str],
    architecture: str,
    channels: int,
    size_px: int,
    width: int,
    multi_label: bool,
) -> None:
    least = 1 if multi_label else 2
    smallest_px = ENCODER_PX if architecture == "encoder" else SMALLEST_PX
    faults = {
        f"architecture must be one of {', '.join(ARCHITECTURES)}, got {architecture!r}": (
            architecture not in ARCHITECTURES
        ),
        f"classes must be {least} or more different names, got {list(classes)}": (
            len(set(classes)) < max(least, len(classes))
        ),
        f"channels must be 1 or 3, got {channels}": channels not in (1, 3),
        f"size px must be {smallest_px} or more, got {size_px}": size_px < smallest_px,
        f"width must be a multiple of {GROUP_CHANNELS}, got {width}": (
            width < GROUP_CHANNELS or width % GROUP_CHANNELS != 0
        ),
    }
    for text, wrong in faults.items():
        if wrong:
            raise UsageError(text)


def _widths(width: int, stages: int) -> list[int]:
    """Channels of each stage: doubled while halved, to eight times the first at most."""
    return [width * min(2**stage, WIDEST) for stage in range(stages)]


def _pooled(x_NFHW: Tensor) -> Tensor:
    """Mean and greatest value of each map, `(N, 2 F)`: a finding is diffuse, or in one place."""
    return torch.cat([x_NFHW.mean((2, 3)), x_NFHW.amax((2, 3))], 1)


class _OnEncoder(nn.Module):
    """The encoder's map, pooled."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.feature_dims = 2 * self.encoder.dims

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return _pooled(self.encoder.maps(images_NCHW))


class _Residual(nn.Module):
    """Residual blocks from half the size down to about 4 px, then pooled (He et al. 2016)."""

    def __init__(self, channels: int, width: int, stages: int) -> None:
        super().__init__()
        widths = _widths(width, stages)
        self.stem, self.norm = conv(channels, width, 3, 2), norm(width)
        blocks = [Block(width, width, halve=False)]
        blocks += [Block(a, b, halve=True) for a, b in zip(widths, widths[1:], strict=False)]
        self.blocks = nn.ModuleList(blocks)
        self.feature_dims = 2 * widths[-1]

    def forward(self, images_NCHW: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.stem(images_NCHW)), inplace=True)
        for block in self.blocks:
            x = block(x)
        return _pooled(x)


class _Plain(nn.Module):
    """Large kernels, max pooling and a dense layer, no shortcuts: it errs in other ways."""

    def __init__(self, channels: int, width: int, stages: int) -> None:
        super().__init__()
        widths = _widths(width, stages)
        fans = zip([channels, *widths], widths, strict=False)
        self.convs = nn.ModuleList(
            conv(a, b, 5 if number < 2 else 3) for number, (a, b) in enumerate(fans)
        )
        self.norms = nn.ModuleList(norm(b) for b in widths)
        self.dense = nn.Linear(2 * widths[-1], PLAIN_FEATURES)
        self.feature_dims = PLAIN_FEATURES

    def forward(self, images_NCHW: Tensor) -> Tensor:
        x = images_NCHW
        for layer, normed in zip(self.convs, self.norms, strict=True):
            x = functional.leaky_relu(normed(functional.max_pool2d(layer(x), 2)), 0.1, inplace=True)
        return functional.leaky_relu(self.dense(_pooled(x)), 0.1)
