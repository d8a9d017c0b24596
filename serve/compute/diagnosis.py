"""A trained classifier that judges images: probabilities, features, how familiar, why.

Shape letters: N images, C channels, H and W pixels, K classes, D features.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medray.errors import DataError, ResourceError, UsageError
from medray.evaluate import gradcam, ood
from medray.models.classifier import Classifier
from medray.models.cuda_graph import CudaGraph
from medray.models.pixels import to_unit
from medray.models.weights import load_classifier
from medray.sample.images import one_thread
from medray.store import Store
from serve.compute.fit import fitted
from serve.problems import shown
from serve.records import Array, Diagnosed, Heat, Want

Floats = npt.NDArray[np.float32]
# A batch is padded to the next of these: few shapes, so that a GPU plans each once.
SHAPES = (1, 2, 4, 8, 16, 32)
DIGITS = 6


class Diagnosis:
    """A classifier, and the distance by which it knows what is unlike its training data.

    Safe from several threads. An image goes in as it was decoded: (H, W) or (H, W, 3), uint8 or
    uint16, any size.
    """

    def __init__(
        self,
        network: Classifier,
        sha256: str,
        familiarity: ood.Familiarity | None,
        name: str = "",
        device: str = "cpu",
    ) -> None:
        if device != "cpu" and not torch.cuda.is_available():
            raise ResourceError(f"device {device!r} was asked for, this machine has no GPU")
        self.device = torch.device(device)
        self.network, self.sha256, self.name = network.to(self.device), sha256, name
        self.familiarity = familiarity
        self._graphs: dict[int, CudaGraph] = {}
        self._recording = threading.Lock()
        self.classes, self.multi_label = network.classes, network.multi_label
        self.size_px, self.channels = network.size_px, network.channels
        layers = gradcam.usual_layers(network, self.channels, self.size_px)
        # One before the last: its maps are finer, and say as much of the class.
        self.layer = layers[-2:][0]

    @classmethod
    def load(cls, url: str, *, name: str = "", device: str = "cpu") -> Diagnosis:
        """The classifier of a run. UsageError where there is none, DataError for damage."""
        network, about = load_classifier(url)
        sha256 = str(about["classifier_sha256"])
        store = Store(url)
        store = store if store.exists("classifier.safetensors") else store.child("model")
        familiarity = ood.Familiarity.load(store, sha256)
        return cls(network, sha256, familiarity, name or store.url, device)

    @property
    def facts(self) -> dict[str, Any]:
        """What callers may know of it, as JSON has it."""
        known = None
        if self.familiarity is not None:
            about = self.familiarity.facts
            known = {
                "threshold": round(about.threshold, DIGITS),
                "expected": round(about.expected, DIGITS),
                "validation_images": about.validation_images,
            }
        return {
            "channels": self.channels,
            "multi_label": self.multi_label,
            "calibrated": "on validation images of its training data",
            "heatmap_layer": self.layer,
            "ood": known,
            "ood_reason": None if known else NO_FAMILIARITY,
        }

    # --- what it says -------------------------------------------------------------------------

    def diagnose(self, images: Sequence[Array], wants: Sequence[Want]) -> list[Diagnosed]:
        """What the classifier says of each image, in one pass for all.

        DataError (MR-D043) where it gives something that is not finite; UsageError for a heatmap of
        a class that it does not know.
        """
        for want in wants:
            self.check(want)
        inputs_NCHW = self.prepared(images)
        features_ND, logits_NK = self._forward(inputs_NCHW)
        with torch.no_grad():
            chances_NK = self.network.calibrated(logits_NK).cpu().numpy()
            decided = self.network.decisions(logits_NK).cpu().numpy()
        scores, flags = self._familiar(inputs_NCHW, features_ND)
        heats = self._heats(inputs_NCHW, wants, logits_NK)
        return [
            Diagnosed(
                probabilities=self._named(chances_NK[n]),
                model_sha256=self.sha256,
                decided=self._decided(decided[n]),
                ood_score=scores[n],
                unlike=flags[n],
                heat_HW=heats[n][0],
                heatmap_class=heats[n][1],
            )
            for n in range(len(images))
        ]

    def probabilities(self, images: Sequence[Array]) -> Floats:
        """Calibrated probabilities (N, K)."""
        _, logits_NK = self._forward(self.prepared(images))
        with torch.no_grad():
            return self.network.calibrated(logits_NK).cpu().numpy()

    def features(self, images: Sequence[Array]) -> Floats:
        """Features before the last layer (N, D)."""
        features_ND, _ = self._forward(self.prepared(images))
        return features_ND

    def ood(self, images: Sequence[Array]) -> list[tuple[float | None, bool | None]]:
        """Distance from the training data and whether it is past the threshold; None: not known."""
        inputs_NCHW = self.prepared(images)
        features_ND, _ = self._forward(inputs_NCHW)
        return list(zip(*self._familiar(inputs_NCHW, features_ND), strict=True))

    def explain(self, image: Array, name: str | None = None) -> Heat:
        """Heat (S, S) in [0, 1] for a class (None: what the classifier says), at its own size."""
        heat = self.diagnose([image], [Want(heatmap=True, heatmap_class=name)])[0].heat_HW
        assert heat is not None
        return heat

    def check(self, want: Want) -> None:
        """UsageError for a want that cannot be met: what was given, what is allowed."""
        if want.heatmap_class is not None and want.heatmap_class not in self.classes:
            allowed = ", ".join(self.classes)
            raise UsageError(f"given: class {shown(want.heatmap_class)}; allowed: {allowed}")

    # --- the pass -----------------------------------------------------------------------------

    def prepared(self, images: Sequence[Array]) -> Floats:
        """Images as the network sees them, (N, C, S, S) in [-1, 1]."""
        squares = [prepared(image, self.size_px, self.channels) for image in images]
        shape = (0, self.channels, self.size_px, self.size_px)
        return np.stack(squares) if squares else np.empty(shape, np.float32)

    def _forward(self, inputs_NCHW: Floats) -> tuple[Floats, Tensor]:
        """Features (N, D) and logits (N, K), on padded batches of few shapes."""
        features, logits = [], []
        with one_thread(), torch.no_grad():
            for batch_NCHW, count in self._batches(inputs_NCHW):
                features_ND = self._features(batch_NCHW)
                logits.append(self.network.head(features_ND).float()[:count])
                features.append(features_ND[:count])
        if not logits:
            return np.empty((0, self.network.feature_dims), np.float32), torch.empty(
                0, len(self.classes)
            )
        features_ND, logits_NK = torch.cat(features), torch.cat(logits)
        if not (torch.isfinite(logits_NK).all() and torch.isfinite(features_ND).all()):
            raise DataError(
                "the classifier gives logits that are not finite",
                code="MR-D043",
                hint="train it again: its weights are damaged or it has diverged",
            )
        return features_ND.cpu().numpy(), logits_NK

    def _features(self, batch_NCHW: Tensor) -> Tensor:
        if self.device.type == "cpu":
            return self.network.features(batch_NCHW)
        with self._recording:
            if len(batch_NCHW) not in self._graphs:
                self._graphs[len(batch_NCHW)] = CudaGraph(self.network.features, batch_NCHW)
        return self._graphs[len(batch_NCHW)](batch_NCHW)

    def _batches(self, inputs_NCHW: Floats) -> Iterator[tuple[Tensor, int]]:
        for at in range(0, len(inputs_NCHW), SHAPES[-1]):
            part_NCHW = inputs_NCHW[at : at + SHAPES[-1]]
            size = next(shape for shape in SHAPES if shape >= len(part_NCHW))
            padded_NCHW = np.zeros((size, *part_NCHW.shape[1:]), np.float32)
            padded_NCHW[: len(part_NCHW)] = part_NCHW
            yield torch.from_numpy(padded_NCHW).to(self.device), len(part_NCHW)

    def _familiar(
        self, inputs_NCHW: Floats, features_ND: Floats
    ) -> tuple[list[float | None], list[bool | None]]:
        count = len(inputs_NCHW)
        if self.familiarity is None or not count:
            return [None] * count, [None] * count
        scores_N = self.familiarity.scores(ood.describe(inputs_NCHW, features_ND))
        flags_N = self.familiarity.unlike(scores_N)
        return [round(float(s), DIGITS) for s in scores_N], [bool(flag) for flag in flags_N]

    def _heats(
        self, inputs_NCHW: Floats, wants: Sequence[Want], logits_NK: Tensor
    ) -> list[tuple[Heat | None, str | None]]:
        asked = [n for n, want in enumerate(wants) if want.heatmap]
        found: list[tuple[Heat | None, str | None]] = [(None, None)] * len(wants)
        if not asked:
            return found
        usual_N = gradcam.said(self.network, logits_NK).tolist()
        numbers = [
            usual_N[n] if (name := wants[n].heatmap_class) is None else self.classes.index(name)
            for n in asked
        ]
        for at in range(0, len(asked), SHAPES[-1]):
            some, of = asked[at : at + SHAPES[-1]], numbers[at : at + SHAPES[-1]]
            for n, number, heat_HW in zip(some, of, self._heat(inputs_NCHW[some], of), strict=True):
                found[n] = heat_HW, self.classes[number]
        return found

    def _heat(self, inputs_NCHW: Floats, numbers: Sequence[int]) -> Floats:
        padded_NCHW, count = next(iter(self._batches(inputs_NCHW)))
        padded_N = torch.zeros(len(padded_NCHW), dtype=torch.long)
        padded_N[:count] = torch.tensor(numbers)
        with one_thread():
            heat_NHW = gradcam.gradcam(
                self.network, padded_NCHW, self.layer, padded_N.to(self.device)
            )
        return heat_NHW[:count].cpu().numpy()

    def _named(self, chances_K: Floats) -> dict[str, float]:
        pairs = zip(self.classes, chances_K, strict=True)
        return {name: round(float(value), DIGITS) for name, value in pairs}

    def _decided(self, decided: npt.NDArray[Any]) -> tuple[str, ...]:
        if not self.multi_label:
            return (self.classes[int(decided)],)
        return tuple(name for name, yes in zip(self.classes, decided, strict=True) if yes)


NO_FAMILIARITY = (
    "this classifier's run left no distance (ood.safetensors): it is of before there was one, "
    f"or had fewer than {ood.LEAST_VALIDATION} validation images"
)


def prepared(image: Array, size_px: int, channels: int) -> Floats:
    """One image as networks see it, (C, S, S) in [-1, 1]; UsageError for what is no image."""
    square = fitted(image, size_px, channels)
    square = square[..., None] if square.ndim == 2 else square
    # Copied: what came out of a child is not for writing, which torch asks for.
    stored_NCHW = torch.from_numpy(square.transpose(2, 0, 1)[None].copy())
    unit_CHW: Floats = to_unit(stored_NCHW)[0].numpy()
    return unit_CHW
