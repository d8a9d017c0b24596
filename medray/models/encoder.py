"""The compact encoder of images: one trunk for every patch, learnt without labels or with them.

Shape letters: N images, C channels, H and W pixels, D features, h and w the map's pixels.

Eight pixels of an image become one of the map, whatever the image's size, so patches, slices and
whole frames go through the same weights. Normalisation is within an image, as the classifiers'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medray import rng
from medray.errors import UsageError
from medray.models.layers import channels_last
from medray.models.residual import GROUP_CHANNELS, Block, conv, norm
from medray.store import Store

ENCODER = "encoder"
SMALLEST_PX = 32
# Channels of the last map, times the first's.
WIDEST = 4


@dataclass(frozen=True)
class EncoderConfig:
    """What makes an encoder; UsageError for what makes none."""

    channels: int = 1
    width: int = 32

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise UsageError(f"channels must be 1 or 3, got {self.channels}")
        if self.width < GROUP_CHANNELS or self.width % GROUP_CHANNELS:
            raise UsageError(
                f"width must be a multiple of {GROUP_CHANNELS} from {GROUP_CHANNELS} up, "
                f"got {self.width}"
            )


class Encoder(nn.Module):
    """Images `(N, C, H, W)` in [-1, 1], 32 px or more -> features `(N, D)` float32."""

    layer_names: Mapping[str, str] = {
        "stem": "stem",
        **{f"stage{number + 1}": f"blocks.{number}" for number in range(4)},
    }

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.stem, self.norm = conv(config.channels, width, 3, 2), norm(width)
        self.blocks = nn.ModuleList(
            [
                Block(width, width, halve=False),
                Block(width, 2 * width, halve=True),
                Block(2 * width, WIDEST * width, halve=True),
                Block(WIDEST * width, WIDEST * width, halve=False),
            ]
        )
        self.dims = WIDEST * width
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def arguments(self) -> dict[str, Any]:
        """What makes this network again: `Encoder(EncoderConfig(**arguments))`."""
        return asdict(self.config)

    def maps(self, images_NCHW: Tensor) -> Tensor:
        """Features with their places, `(N, D, h, w)` where h = H / 8, rounded up."""
        channels = self.config.channels
        if images_NCHW.ndim != 4 or images_NCHW.shape[1] != channels:
            raise UsageError(
                f"images must have shape (N, {channels}, H, W), got {tuple(images_NCHW.shape)}"
            )
        if min(images_NCHW.shape[2:]) < SMALLEST_PX:
            raise UsageError(
                f"images must have {SMALLEST_PX} px or more, got {tuple(images_NCHW.shape[2:])}"
            )
        x = functional.relu(self.norm(self.stem(channels_last(images_NCHW))), inplace=True)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.maps(images_NCHW).float().mean((2, 3))

    @torch.no_grad()
    def seed_weights(self, seed: int) -> Encoder:
        """Weights N(0, 2 / fan in) (He et al., ICCV 2015), each from a stream of its own name."""
        seed_weights(self, seed, ENCODER)
        return self


@torch.no_grad()
def seed_weights(network: nn.Module, seed: int, stream: str) -> None:
    """Weights N(0, 2 / fan in), norms 1, biases 0: a function of seed, stream and name."""
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        drawn = rng.normals(seed, f"{stream}.init.{name}", 0, parameter.numel())
        scale = math.sqrt(2 / parameter[0].numel())
        parameter.copy_(torch.from_numpy(drawn).view(parameter.shape) * scale)


# --- on disk --------------------------------------------------------------------------------------


def save_encoder(store: Store, encoder: Encoder, about: Mapping[str, Any], card: str) -> str:
    """Writes `encoder.safetensors`, `config.yaml` and the card; the weights' SHA-256.

    Into `model/` of a jigsaw's run, or into `model/encoder/` of a network that is built on it.
    """
    from medray.models import weights

    arguments = {"arguments": encoder.arguments()}
    return weights.save_network(
        store, ENCODER, encoder.state_dict(), {"kind": ENCODER, **about, **arguments}, card
    )


def load_encoder(url: str) -> Encoder:
    """The encoder of a jigsaw's run, of a classifier's that has one, or of a model folder.

    On the CPU, not to be trained. UsageError where there is none, DataError where it is damaged.
    """
    return load_with_config(url)[0]


def load_with_config(url: str) -> tuple[Encoder, dict[str, Any]]:
    """As `load_encoder`, and its configuration: `encoder_sha256` identifies it."""
    from medray.models import weights

    for place in (Store(url), Store(url).child("model")):
        inside = place.child(ENCODER)
        if not place.exists(f"{ENCODER}.safetensors") and inside.exists(f"{ENCODER}.safetensors"):
            url = inside.url
            break
    return weights.load_network(url, ENCODER, lambda **named: Encoder(EncoderConfig(**named)))
