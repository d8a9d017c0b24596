"""Classifiers of clips: maps of frames by a shared encoder, pooled over the clip, a logit each.

Shape letters: N clips, T frames, H and W pixels, D maps, g cells a side, U units, F features,
K findings.

A frame is a D-map image of g x g cells, so that where in the frame something lies is not lost. The
maps are standardised by the mean and the scale that they had on the training clips before the first
step: encoders differ in scale, and a head should not have to learn that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medray.errors import UsageError
from medray.models import weights
from medray.models.decider import Decider
from medray.models.encoder import Encoder, EncoderConfig
from medray.models.pixels import resized

# Cells a side that each pool sees.
CELLS = {"attention": 2, "convlstm": 4, "mean": 2}
POOLS = tuple(CELLS)
ROLE = "clips"
FRAMES_AT_ONCE = 64


class ClipClassifier(Decider):
    """Clips `(N, T, H, W)` in [-1, 1], or maps of their frames -> logits `(N, K)` float32.

    `encoder` are the arguments of the trunk. `whole`: it is part of this network; else that takes
    maps `(N, T, D, g, g)` alone, as a frozen encoder gave them. UsageError for arguments that make
    no network.
    """

    mean_D: Tensor
    scale_D: Tensor

    def __init__(
        self,
        classes: Sequence[str],
        *,
        encoder: Mapping[str, Any],
        pool: str = "attention",
        size_px: int = 64,
        frames: int = 16,
        units: int = 16,
        multi_label: bool = True,
        whole: bool = True,
    ) -> None:
        super().__init__(classes, multi_label)
        _check(classes, pool, frames, units, encoder)
        trunk = Encoder(EncoderConfig(**encoder))
        self.encoder = trunk if whole else None
        self.encoder_arguments = trunk.arguments()
        self.pool, self.size_px, self.frames, self.units = pool, size_px, frames, units
        self.body = _BODIES[pool](trunk.dims, CELLS[pool], units)
        self.head = nn.Linear(self.body.feature_dims, len(classes))
        self.register_buffer("mean_D", torch.zeros(trunk.dims))
        self.register_buffer("scale_D", torch.ones(trunk.dims))

    def arguments(self) -> dict[str, Any]:
        """What makes this network again: `ClipClassifier(**arguments)`."""
        return {
            **super().arguments(),
            "encoder": self.encoder_arguments,
            "pool": self.pool,
            "size_px": self.size_px,
            "frames": self.frames,
            "units": self.units,
        }

    def maps(self, clips_NTHW: Tensor) -> Tensor:
        """Maps of every frame, `(N, T, D, g, g)` float32."""
        assert self.encoder is not None, "the encoder of this network is elsewhere"
        return frame_maps(self.encoder, clips_NTHW, self.size_px, CELLS[self.pool])

    def standardise(self, maps_NTDgg: Tensor) -> ClipClassifier:
        """Takes mean and scale of each map over all that is given; a constant one has scale 1."""
        flat_XD = maps_NTDgg.transpose(2, 4).reshape(-1, maps_NTDgg.shape[2]).double()
        scale_D = flat_XD.std(0, correction=0)
        scale_D[scale_D <= 1e-6 * scale_D.max()] = 1.0
        self.mean_D.copy_(flat_XD.mean(0))
        self.scale_D.copy_(scale_D)
        return self

    def features(self, clips: Tensor) -> Tensor:
        """Pooled features of clips or of maps, `(N, F)`."""
        pooled_NF: Tensor = self.body(self._standard(clips))
        return pooled_NF

    def forward(self, clips: Tensor) -> Tensor:
        logits_NK: Tensor = self.head(self.features(clips))
        return logits_NK.float()

    def attention(self, clips: Tensor) -> Tensor:
        """What share of the clip's features each frame is, `(N, T)`; equal without attention."""
        maps = self._standard(clips)
        if isinstance(self.body, _Attention):
            return self.body.weights(self.body.frames(maps))
        return maps.new_full(maps.shape[:2], 1 / maps.shape[1])

    def _standard(self, clips: Tensor) -> Tensor:
        maps = self.maps(clips) if clips.ndim == 4 else clips
        wanted = (len(self.mean_D), CELLS[self.pool], CELLS[self.pool])
        if maps.ndim != 5 or maps.shape[2:] != wanted:
            raise UsageError(
                f"clips must have shape (N, T, H, W), maps (N, T, {', '.join(map(str, wanted))}), "
                f"got {tuple(clips.shape)}"
            )
        return (maps - self.mean_D[:, None, None]) / self.scale_D[:, None, None]


def frame_maps(encoder: Encoder, clips_NTHW: Tensor, size_px: int, cells: int) -> Tensor:
    """Maps of every frame of clips in [-1, 1], `(N, T, D, cells, cells)` float32.

    Frames are resized to `size_px`; a map's cells are means over equal parts of it.
    """
    count, frames = clips_NTHW.shape[:2]
    flat = clips_NTHW.reshape(count * frames, 1, *clips_NTHW.shape[2:])
    # Without gradients nothing of a frame has to stay but its cells.
    at_once = len(flat) if torch.is_grad_enabled() else FRAMES_AT_ONCE
    maps = torch.cat(
        [
            functional.adaptive_avg_pool2d(encoder.maps(resized(part, size_px)).float(), cells)
            for part in torch.split(flat, at_once)
        ]
    )
    return maps.reshape(count, frames, *maps.shape[1:])


def _check(
    classes: Sequence[str], pool: str, frames: int, units: int, encoder: Mapping[str, Any]
) -> None:
    channels = encoder.get("channels", 1)
    faults = {
        f"classes must be one or more different names, got {list(classes)}": (
            len(set(classes)) < max(1, len(classes))
        ),
        f"pool must be one of {', '.join(POOLS)}, got {pool!r}": pool not in POOLS,
        f"frames must be 1 or more, got {frames}": frames < 1,
        f"units must be 1 or more, got {units}": units < 1,
        f"the encoder takes {channels} channels, the frames of clips have 1": channels != 1,
    }
    for text, wrong in faults.items():
        if wrong:
            raise UsageError(text)


class _Projected(nn.Module):
    """Each cell through the same few units; a frame is its cells side by side."""

    def __init__(self, dims: int, cells: int, units: int) -> None:
        super().__init__()
        self.project = nn.Linear(dims, units)
        self.feature_dims = units * cells * cells

    def frames(self, maps_NTDgg: Tensor) -> Tensor:
        """`(N, T, F)`."""
        cells_NTXD = maps_NTDgg.flatten(3).transpose(2, 3)
        return torch.tanh(self.project(cells_NTXD)).flatten(2)


class _Mean(_Projected):
    """All frames count alike."""

    def forward(self, maps_NTDgg: Tensor) -> Tensor:
        return self.frames(maps_NTDgg).mean(1)


class _Attention(_Projected):
    """A gated weight for each frame, softmax over the clip (Ilse et al., ICML 2018)."""

    def __init__(self, dims: int, cells: int, units: int) -> None:
        super().__init__(dims, cells, units)
        self.look = nn.Linear(self.feature_dims, units)
        self.gate = nn.Linear(self.feature_dims, units)
        self.weigh = nn.Linear(units, 1)

    def weights(self, frames_NTF: Tensor) -> Tensor:
        """`(N, T)`, each row sums to 1."""
        gated = torch.tanh(self.look(frames_NTF)) * torch.sigmoid(self.gate(frames_NTF))
        weights_NT: Tensor = self.weigh(gated)[:, :, 0].float().softmax(1)
        return weights_NT

    def forward(self, maps_NTDgg: Tensor) -> Tensor:
        frames_NTF = self.frames(maps_NTDgg)
        return (self.weights(frames_NTF)[:, :, None] * frames_NTF).sum(1)


class _ConvLSTM(nn.Module):
    """Two layers along the frames (Shi et al., NeurIPS 2015); the last state, mean and maximum."""

    def __init__(self, dims: int, cells: int, units: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList(
            [nn.Conv2d(dims + units, 4 * units, 3, padding=1)]
            + [nn.Conv2d(2 * units, 4 * units, 3, padding=1)]
        )
        self.units, self.feature_dims = units, 2 * units

    def forward(self, maps_NTDgg: Tensor) -> Tensor:
        count, _, _, *side = maps_NTDgg.shape
        zero = maps_NTDgg.new_zeros(count, self.units, *side)
        states = [(zero, zero) for _ in self.cells]
        for x in maps_NTDgg.unbind(1):
            for number, cell in enumerate(self.cells):
                states[number] = _step(cell, x, *states[number])
                x = states[number][0]
        hidden = states[-1][0]
        return torch.cat([hidden.mean((2, 3)), hidden.amax((2, 3))], 1)


def _step(cell: nn.Module, x: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """One frame further: (hidden, memory)."""
    enter, forget, leave, new = cell(torch.cat([x, hidden], 1)).chunk(4, 1)
    # What is remembered at the start is kept: a gate that is half open forgets a clip of 16 frames.
    memory = torch.sigmoid(forget + 1) * memory + torch.sigmoid(enter) * torch.tanh(new)
    return torch.sigmoid(leave) * torch.tanh(memory), memory


_BODIES: dict[str, type[Any]] = {
    "attention": _Attention,
    "convlstm": _ConvLSTM,
    "mean": _Mean,
}


def load_clips(url: str) -> tuple[ClipClassifier, dict[str, Any]]:
    """The clip classifier of a run folder or of its `model/` folder, on the CPU, and its
    configuration; raises as `weights.load_network`."""
    return weights.load_network(url, ROLE, ClipClassifier)
