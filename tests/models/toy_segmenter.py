"""A segmenter without training: what is brighter than the middle is the region."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medray.models import weights
from medray.store import Store


class Bright(nn.Module):
    """Images (N, 1, H, W) in [-1, 1] to logits (N, 1, H, W), with maps on the way."""

    layer_names = {"bottleneck": "down.0", "decoder": "up"}

    def __init__(self, channels: int = 1, threshold: float = 0.0) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(channels, 4, 2, stride=2), nn.ReLU(inplace=True))
        self.up = nn.Conv2d(channels, 3, 1)
        self.last = nn.Conv2d(channels, 1, 1)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            self.last.weight.fill_(1.0)
            self.last.bias.fill_(-threshold)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        self.down(images_NCHW)
        self.up(images_NCHW)
        logits_N1HW: Tensor = self.last(images_NCHW)
        return logits_N1HW


def save_segmenter(store: Store, network: Bright) -> str:
    """As a run leaves its model."""
    about = {"kind": "segmenter", "arguments": {"channels": 1}}
    return weights.save_network(store.child("model"), "segmenter", network.state_dict(), about, "")


def load_segmenter(url: str) -> tuple[Bright, dict[str, Any]]:
    """Stands in for the loader of real ones."""
    about, tensors, _ = weights._read(url, "segmenter")
    network = Bright()
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False), about
