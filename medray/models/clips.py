"""Classifiers of clips: maps of frames by a shared encoder, pooled over the clip, a logit each.

Shape letters: N clips, T frames, H and W pixels, D maps, g cells a side, F features,
K findings.

A frame is g x g cells, each the mean and the greatest value of every map of the encoder there, so
that where something lies is not lost, nor what is small. Frames are spread evenly over a clip, so
frame t of one clip is about where frame t of another is: from each cell of it the mean that it had
over the training clips before the first step is taken off, what is left is scaled. What a network
sees is how a clip differs from others there; encoders of any scale are alike.
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

    mean_TDgg: Tensor
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
        self.body = _BODIES[pool](2 * trunk.dims, CELLS[pool], units)
        self.head = nn.Linear(self.body.feature_dims, len(classes))
        cells = CELLS[pool]
        self.register_buffer("mean_TDgg", torch.zeros(frames, 2 * trunk.dims, cells, cells))
        self.register_buffer("scale_D", torch.ones(2 * trunk.dims))

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
        """Takes the mean of every cell of every frame over clips, and the scale of each map about
        it; a constant one has scale 1."""
        mean_TDgg = maps_NTDgg.double().mean(0)
        scale_D = (maps_NTDgg - mean_TDgg).square().mean((0, 1, 3, 4)).sqrt()
        scale_D[scale_D <= 1e-6 * scale_D.max()] = 1.0
        self.mean_TDgg.copy_(mean_TDgg)
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
        if clips.shape[1:2] != (self.frames,) or clips.ndim not in (4, 5):
            raise UsageError(
                f"clips must have shape (N, {self.frames}, H, W), maps (N, {self.frames}, D, g, g),"
                f" got {tuple(clips.shape)}"
            )
        maps = self.maps(clips) if clips.ndim == 4 else clips
        if maps.shape[1:] != self.mean_TDgg.shape:
            wanted = ", ".join(map(str, self.mean_TDgg.shape))
            raise UsageError(f"maps must have shape (N, {wanted}), got {tuple(maps.shape)}")
        return (maps - self.mean_TDgg) / self.scale_D[:, None, None]


def frame_maps(encoder: Encoder, clips_NTHW: Tensor, size_px: int, cells: int) -> Tensor:
    """Maps of every frame of clips in [-1, 1], `(N, T, 2 D, cells, cells)` float32.

    Frames are resized to `size_px`; of each cell the means of all maps, then their greatest values.
    """
    count, frames = clips_NTHW.shape[:2]
    flat = clips_NTHW.reshape(count * frames, 1, *clips_NTHW.shape[2:])
    # Without gradients nothing of a frame has to stay but its cells.
    at_once = len(flat) if torch.is_grad_enabled() else FRAMES_AT_ONCE
    maps = torch.cat(
        [
            _cells(encoder.maps(resized(p, size_px)).float(), cells)
            for p in torch.split(flat, at_once)
        ]
    )
    return maps.reshape(count, frames, *maps.shape[1:])


def _cells(maps_NDhw: Tensor, cells: int) -> Tensor:
    """Mean and greatest value of each map in each cell, `(N, 2 D, cells, cells)`."""
    mean = functional.adaptive_avg_pool2d(maps_NDhw, cells)
    return torch.cat([mean, functional.adaptive_max_pool2d(maps_NDhw, cells)], 1)


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
