"""Features of images for the judge and the gate, by an extractor that is named by its SHA-256.

    random:SEED                                a seeded network without training: a smoke test
    PATH.pt[,px=N][,channels=N][,norm=NAME]    a TorchScript file (Inception, DINOv2, a medical one)
    PATH.safetensors, or a run's folder or URL a classifier trained here, its pooled last layer

TorchScript is code: what is in such a file runs when it is loaded. So only a file on this machine
that the user named is opened; nothing is searched for and nothing is fetched. The other two kinds
are data and hold no code.

Images go through in batches of one fixed, padded size, so that a row is a function of its image and
not of what stands beside it.

Shape letters: N images, C channels, H and W pixels, D features.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from medray import rng
from medray.errors import DataError, UsageError

Features = npt.NDArray[np.float32]

BATCH = 16
# Rec. 601, as `pack` makes luminance of colour.
LUMINANCE = (0.299, 0.587, 0.114)
RANDOM_PX, RANDOM_WIDTHS, RANDOM_VERSION = 64, (16, 32, 64, 128), 1

# Scale and shift of pixels in [0, 1], per channel.
NORMS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "bytes": ((255.0,), (0.0,)),
    "unit": ((1.0,), (0.0,)),
    "signed": ((2.0,), (-1.0,)),
    "imagenet": (
        (1 / 0.229, 1 / 0.224, 1 / 0.225),
        (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225),
    ),
}


@dataclass(frozen=True)
class Form:
    """What an extractor takes: `px` (None: as it comes), `channels` (None: any), normalisation."""

    px: int | None
    channels: int | None
    norm: str


class Extractor:
    """Images to features; `load` makes one, `record()` says what it is and does to an image."""

    def __init__(
        self,
        spec: str,
        name: str,
        sha256: str,
        form: Form,
        network: Callable[[Tensor], Tensor],
        *,
        smoke_test: bool = False,
    ) -> None:
        self.spec, self.name, self.sha256, self.smoke_test = spec, name, sha256, smoke_test
        self.form = form
        self._network = network

    @classmethod
    def load(cls, spec: str) -> Extractor:
        """The extractor that `spec` names; UsageError where it is none, DataError if damaged."""
        if spec.startswith("random:"):
            return _random(spec)
        path = spec.split(",")[0]
        if path.endswith((".pt", ".pth", ".ts", ".torchscript")):
            return _torchscript(spec)
        return _classifier(spec)

    def record(self) -> dict[str, Any]:
        """What belongs beside every figure that was made with it."""
        resize = f"bilinear with antialias to {self.form.px} px" if self.form.px else "its own"
        return {
            "name": self.name,
            "sha256": self.sha256,
            "smoke_test": self.smoke_test,
            "resize": resize,
            "channels": self.form.channels,
            "normalisation": self.form.norm,
            "batch": BATCH,
        }

    def features(self, images_NCHW: npt.NDArray[Any]) -> Features:
        """(N, D) float32 of uint8 or uint16 images with 1 or 3 channels.

        ValueError for another shape or type; DataError for features that are not finite.
        """
        _check(images_NCHW)
        parts = [
            self._batch(images_NCHW[first : first + BATCH])
            for first in range(0, len(images_NCHW), BATCH)
        ]
        if not parts:
            raise ValueError("no images to take features of")
        return np.concatenate(parts)

    def _batch(self, images_NCHW: npt.NDArray[Any]) -> Features:
        """Up to BATCH images, padded with black ones."""
        padded_NCHW = np.zeros((BATCH, *images_NCHW.shape[1:]), images_NCHW.dtype)
        padded_NCHW[: len(images_NCHW)] = images_NCHW
        with torch.inference_mode():
            found = self._network(prepared(padded_NCHW, self.form))
        features_ND = self._flat(found)[: len(images_NCHW)].float().numpy()
        bad = np.flatnonzero(~np.isfinite(features_ND).all(axis=1))
        if len(bad):
            raise DataError(
                f"{self.name} gave features that are not finite for {len(bad)} of "
                f"{len(images_NCHW)} images",
                code="MR-D301",
                hint="the file is damaged, or wants another norm= or px=",
            )
        return np.ascontiguousarray(features_ND)

    def _flat(self, found: object) -> Tensor:
        """(N, D) of what a network returns; maps (N, D, H, W) are averaged over their pixels."""
        if isinstance(found, Tensor) and found.ndim == 4:
            found = found.mean((2, 3))
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != BATCH:
            kind = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise DataError(
                f"{self.name} must return features (N, D) or (N, D, H, W) for {BATCH} images, "
                f"got {kind}",
                code="MR-D302",
                hint="script a module whose forward(images) returns one tensor",
            )
        return found


def prepared(images_NCHW: npt.NDArray[Any], form: Form) -> Tensor:
    """uint8 or uint16 pixels as a network takes them: channels, then size, then normalisation."""
    top = float(np.iinfo(images_NCHW.dtype).max)
    unit_NCHW = torch.from_numpy(images_NCHW.astype(np.float32) / np.float32(top))
    if form.channels == 1 and unit_NCHW.shape[1] == 3:
        weights_C11 = torch.tensor(LUMINANCE)[:, None, None]
        unit_NCHW = (unit_NCHW * weights_C11).sum(1, keepdim=True)
    elif form.channels == 3 and unit_NCHW.shape[1] == 1:
        unit_NCHW = unit_NCHW.expand(-1, 3, -1, -1)
    if form.px is not None and unit_NCHW.shape[2:] != (form.px, form.px):
        unit_NCHW = functional.interpolate(
            unit_NCHW, (form.px, form.px), mode="bilinear", antialias=True, align_corners=False
        )
    scale_C, shift_C = NORMS[form.norm]
    return unit_NCHW * _per_channel(scale_C) + _per_channel(shift_C)


def _per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[None, :, None, None]


def _check(images_NCHW: npt.NDArray[Any]) -> None:
    if images_NCHW.ndim != 4 or images_NCHW.shape[1] not in (1, 3):
        raise ValueError(f"images must have shape (N, 1 or 3, H, W), got {images_NCHW.shape}")
    if images_NCHW.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"images must be uint8 or uint16, got {images_NCHW.dtype}")


# --- a network without training ---------------------------------------------------------------


class RandomNetwork(nn.Module):
    """Four strided convolutions with weights that are addresses; the mean of every layer's maps.

    Its features see edges, brightness and texture, nothing of anatomy: good for finding out whether
    a pipeline works, and for little else.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        layers, before = [], 1
        for number, width in enumerate(RANDOM_WIDTHS):
            layer = nn.Conv2d(before, width, 3, stride=2, padding=1)
            drawn = rng.normals(seed, f"extract.random.{number}", 0, width * before * 9)
            gain = (2 / (before * 9)) ** 0.5
            layer.weight.data = torch.from_numpy(drawn).reshape(layer.weight.shape) * gain
            small = rng.normals(seed, f"extract.random.{number}.bias", 0, width) * np.float32(0.1)
            layer.bias = nn.Parameter(torch.from_numpy(small))
            layers.append(layer)
            before = width
        self.layers = nn.ModuleList(layers)
        self.eval().requires_grad_(False)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """(N, 240) of images in [-1, 1]."""
        means, maps_NCHW = [], images_NCHW
        for layer in self.layers:
            maps_NCHW = functional.leaky_relu(layer(maps_NCHW), 0.2)
            means.append(maps_NCHW.mean((2, 3)))
        return torch.cat(means, 1)


def _random(spec: str) -> Extractor:
    text = spec.removeprefix("random:")
    if not text.isdecimal() or int(text) >= rng.SEEDS:
        raise UsageError(f"--extractor: random:SEED wants a whole number, got {spec!r}")
    network = RandomNetwork(int(text))
    # What decides the features, without the weights, whose last bit may differ between machines.
    facts = f"random:{int(text)} version {RANDOM_VERSION} {RANDOM_PX} px {RANDOM_WIDTHS}"
    sha256 = hashlib.sha256(facts.encode()).hexdigest()
    form = Form(RANDOM_PX, 1, "signed")
    return Extractor(spec, f"random:{int(text)}", sha256, form, network, smoke_test=True)


# --- files ------------------------------------------------------------------------------------


def _torchscript(spec: str) -> Extractor:
    name, _, options = spec.partition(",")
    form = _form(spec, options)
    if "://" in name:
        raise UsageError(
            f"--extractor: TorchScript is code, so only a file on this machine is opened, "
            f"got {name}",
            hint="download it, look at where it came from, and give its path",
        )
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"--extractor: there is no file {path}")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    with warnings.catch_warnings():
        # torch tells its users to move to torch.export; the files that people have are these.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            network = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise DataError(
                f"not a TorchScript file: {str(error).splitlines()[0]}",
                code="MR-D303",
                where=str(path),
                hint="save the network with torch.jit.script(network).save(PATH)",
            ) from error
    return Extractor(spec, path.name, sha256, form, network)


def _form(spec: str, options: str) -> Form:
    """What stands behind a TorchScript's path; the defaults are those of the FID Inception."""
    given = dict(part.partition("=")[::2] for part in options.split(",") if part)
    px, channels = given.pop("px", "299"), given.pop("channels", "3")
    norm = given.pop("norm", "bytes")
    wrong = given or not px.isdecimal() or channels not in ("1", "3") or norm not in NORMS
    if wrong or len(NORMS[norm][0]) not in (1, int(channels)):
        raise UsageError(
            f"--extractor: after the path come px=N, channels=1|3, norm={'|'.join(NORMS)} "
            f"(imagenet with 3 channels), got {spec!r}"
        )
    return Form(int(px), int(channels), norm)


def _classifier(spec: str) -> Extractor:
    from medray.models.weights import load_classifier

    url = spec.rpartition("/")[0] or "." if spec.endswith(".safetensors") else spec
    classifier, about = load_classifier(url)
    channels = int(about["arguments"]["channels"])
    sha256 = str(about["classifier_sha256"])
    name = f"classifier {sha256[:12]}"
    return Extractor(spec, name, sha256, Form(None, channels, "signed"), classifier.features)
