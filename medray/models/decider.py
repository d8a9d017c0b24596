"""What every classifier says of its logits: calibrated probabilities, and decisions.

Shape letters: N samples, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from medray import rng

D = TypeVar("D", bound="Decider")


class Decider(nn.Module):
    """Logits `(N, K)` -> probabilities and decisions; `forward` is the network's own.

    `multi_label`: the classes are findings, each present or not; else exactly one is.
    """

    temperature: Tensor
    bias: Tensor
    thresholds: Tensor

    def __init__(self, classes: Sequence[str], multi_label: bool) -> None:
        super().__init__()
        self.classes, self.multi_label = tuple(classes), multi_label
        # A finding is calibrated by itself; classes of which one holds have one temperature.
        self.register_buffer("temperature", torch.ones(len(classes) if multi_label else ()))
        self.register_buffer("bias", torch.zeros(len(classes)))
        self.register_buffer("thresholds", torch.full((len(classes),), 0.5))

    def arguments(self) -> dict[str, Any]:
        """What makes this network again."""
        return {"classes": list(self.classes), "multi_label": self.multi_label}

    def calibrated(self, logits_NK: Tensor) -> Tensor:
        """Probabilities of logits: rows sum to 1, or each finding by itself."""
        scaled_NK = logits_NK / self.temperature + self.bias
        return scaled_NK.sigmoid() if self.multi_label else scaled_NK.softmax(1)

    def probabilities(self, images: Tensor) -> Tensor:
        """Calibrated probabilities, `(N, K)`."""
        return self.calibrated(self(images))

    def decisions(self, logits_NK: Tensor) -> Tensor:
        """What the classifier says: the class `(N,)`, or whether each finding is there `(N, K)`.

        The class of the highest logit, all classes counting alike; a finding whose probability
        reaches the threshold chosen on validation.
        """
        if self.multi_label:
            return self.calibrated(logits_NK) >= self.thresholds
        return logits_NK.argmax(1)

    @torch.no_grad()
    def seed_weights(self: D, seed: int) -> D:
        """Weights N(0, 2 / fan in) (He et al., ICCV 2015), each from a stream of its own name.

        The head begins at a tenth, so that the first steps are calm.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            drawn = rng.normals(seed, f"classifier.init.{name}", 0, parameter.numel())
            scale = math.sqrt(2 / parameter[0].numel()) * (0.1 if name.startswith("head") else 1)
            parameter.copy_(torch.from_numpy(drawn).view(parameter.shape) * scale)
        return self
