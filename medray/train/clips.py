"""The training of a classifier of clips, on frames, or on maps that a frozen encoder gave once.

Shape letters: N clips of this rank, T frames, H = W pixels, D maps, g cells a side, K findings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medray.dist.context import Context
from medray.models.clips import CELLS, ClipClassifier, frame_maps
from medray.models.encoder import Encoder
from medray.models.pixels import to_unit
from medray.records import Batch
from medray.stream import Fact
from medray.train.classifier import LabelledTraining
from medray.train.clips_config import ClipsConfig
from medray.train.clips_data import Array, ClipRoster, Encode
from medray.train.targets import Targets

CLIPS_AT_ONCE = 8


class ClipTraining(LabelledTraining[ClipClassifier]):
    """A classifier of clips on this rank; `standard_NTDgg` are maps of the clips to train on.

    With `freeze` the network has no encoder: batches hold maps (`encoder_of`).
    """

    config: ClipsConfig

    def __init__(
        self,
        config: ClipsConfig,
        targets: Targets,
        trunk: Encoder,
        weights_2K: npt.NDArray[np.float64],
        context: Context,
        standard_NTDgg: Tensor,
    ) -> None:
        # Noise is drawn for so many frames; maps are not disturbed.
        channels = 1 if config.freeze else config.frames
        self._standard_NTDgg = standard_NTDgg
        super().__init__(config, targets, channels, weights_2K, context, trunk=trunk)

    def _network(self) -> ClipClassifier:
        network = self.made(whole=not self.config.freeze)
        network.seed_weights(self.config.seed).standardise(self._standard_NTDgg)
        if network.encoder is not None:
            network.encoder.load_state_dict(self.trunk_of().state_dict())
        return network.to(self.context.device)

    def made(self, *, whole: bool) -> ClipClassifier:
        """A network of the configuration, with or without an encoder in it."""
        c = self.config
        return ClipClassifier(
            self.targets.classes,
            encoder=self.trunk_of().arguments(),
            pool=c.pool,
            size_px=c.size_px,
            frames=c.frames,
            units=c.units,
            multi_label=self.targets.multi_label,
            whole=whole,
        )

    def whole(self) -> ClipClassifier:
        """The averaged network, the encoder in it in any case."""
        if not self.config.freeze:
            return self.average
        network = self.made(whole=True)
        trunk = {f"encoder.{n}": t for n, t in self.trunk_of().state_dict().items()}
        network.load_state_dict({**self.average.state_dict(), **trunk})
        return network.requires_grad_(False).to(self.context.device)

    def _inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if not self.config.freeze:
            return super()._inputs(batch)
        maps_NTDgg = torch.from_numpy(batch.images_NCHW).to(self.context.device)
        truth_NK = torch.from_numpy(self.targets.of_records(batch.records))
        return maps_NTDgg, truth_NK.to(self.context.device)


def encoder_of(trunk: Encoder, config: ClipsConfig, context: Context) -> Encode:
    """What makes maps `(N, T, D, g, g)` float32 of clips as stored, by a trunk that stays."""
    trunk = trunk.to(context.device).eval()

    @torch.no_grad()
    def encode(clips_NTHW: Array) -> Array:
        unit_NTHW = to_unit(torch.from_numpy(clips_NTHW).to(context.device))
        on = config.precision == "bf16"
        with torch.autocast(context.device.type, torch.bfloat16, enabled=on):
            maps = frame_maps(trunk, unit_NTHW, config.size_px, CELLS[config.pool])
        found: Array = maps.cpu().numpy()
        return found

    return encode


def standard_of(roster: ClipRoster, facts: list[Fact], encode: Encode) -> Tensor:
    """Maps of all of `facts`; where the roster encodes they are its own."""
    if roster.encode is not None:
        return torch.from_numpy(roster.rows(facts))
    parts = [encode(clips) for clips in roster.images(facts, CLIPS_AT_ONCE)]
    return torch.from_numpy(np.concatenate(parts))


def attention_of(
    network: ClipClassifier, roster: ClipRoster, facts: list[Fact], device: torch.device
) -> npt.NDArray[np.float32]:
    """The weight of each frame of each of `facts`, (N, T)."""
    with torch.no_grad():
        parts = []
        for rows in roster.images(facts, CLIPS_AT_ONCE):
            tensor: Any = torch.from_numpy(rows).to(device)
            clips = tensor if tensor.is_floating_point() else to_unit(tensor)
            parts.append(network.attention(clips).cpu().numpy())
    return np.concatenate(parts)
