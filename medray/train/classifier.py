"""The classifier's training: one supervised step; its state and its best are `averaged`'s.

Shape letters: N images of this rank, C channels, H = W pixels, K classes.

Every random number is an address, so the step has no generator state.

With `pretrain_images` the first so many images are a stage of their own: at the boundary the
learning rate starts anew and the best score is forgotten, so that what is left was fine-tuned;
weights (the last layer too), their average and Adam's moments go on.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medray.models.classifier import Classifier
from medray.models.decider import Decider
from medray.models.encoder import Encoder
from medray.models.pixels import resized, to_unit
from medray.train.augment import Augment
from medray.train.averaged import AveragedTraining
from medray.train.classifier_config import ClassifierConfig
from medray.train.targets import Targets

if TYPE_CHECKING:
    import numpy.typing as npt

    from medray.dist.context import Context
    from medray.records import Batch


D = TypeVar("D", bound=Decider)


class LabelledTraining(AveragedTraining[D], Generic[D]):
    """What learns labels on this rank; `weights_2K` as `targets.weights` gives them.

    Who builds on it says in `_network` what is trained.
    """

    def __init__(
        self,
        config: ClassifierConfig,
        targets: Targets,
        channels: int,
        weights_2K: npt.NDArray[np.float64],
        context: Context,
        *,
        pretrain_weights_2K: npt.NDArray[np.float64] | None = None,
        trunk: Encoder | None = None,
    ) -> None:
        """`pretrain_weights_2K` are those of the first stage; without them `weights_2K` are.

        The network stands on `trunk`, where there is one, and begins with its weights.
        """
        self._trunk = trunk
        self.config, self.targets, self.channels = config, targets, channels
        super().__init__(config, self._network, context, anew_after=config.pretrain_images)
        first_2K = weights_2K if pretrain_weights_2K is None else pretrain_weights_2K
        self._stages_2K = [
            torch.from_numpy(rows_2K).float().to(context.device)
            for rows_2K in (first_2K, weights_2K)
        ]
        self._weights_2K = self._stages_2K[1]

    @functools.cached_property
    def _augment(self) -> Augment:
        return Augment(self.config, self.channels, self.context.device)

    def trunk_of(self) -> Encoder:
        """The encoder that the network began with."""
        assert self._trunk is not None, "the network stands on no encoder"
        return self._trunk

    def _network(self) -> D:
        """The network as it is at the start, the same each time."""
        raise NotImplementedError

    # --- the step -----------------------------------------------------------------------------

    def step(self, batch: Batch, images: int) -> dict[str, Tensor]:
        """Train on this rank's part of a batch, `images` images into the run."""
        images_NCHW, truth_NK = self._inputs(batch)
        self._weights_2K = self._stages_2K[images >= self.config.pretrain_images]
        with self.autocast():
            logits_NK = self.network(images_NCHW)
        loss = self.loss(logits_NK.float(), truth_NK)
        self.descend(loss, images, len(batch.keys))
        return {"loss": loss.detach(), "accuracy": self._accuracy(logits_NK.detach(), truth_NK)}

    def _inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        numbers_N = batch.first_index + np.arange(len(batch.keys))
        unit_NCHW = to_unit(torch.from_numpy(batch.images_NCHW).to(self.context.device))
        images_NCHW = self._augment(resized(unit_NCHW, self.config.size_px), numbers_N)
        truth_NK = torch.from_numpy(self.targets.of_records(batch.records))
        return images_NCHW, truth_NK.to(self.context.device)

    def loss(self, logits_NK: Tensor, truth_NK: Tensor) -> Tensor:
        """Weighted cross-entropy, or the mean over findings of the weighted binary one.

        What is not known counts for nothing. The sum is divided by the batch, not by its weights,
        so that it means the same on any number of ranks.
        """
        smooth = self.config.label_smoothing
        wanted_NK = (truth_NK == 1).float()
        if self.targets.multi_label:
            weight_NK = torch.where(truth_NK == 1, self._weights_2K[1], self._weights_2K[0])
            each_NK = functional.binary_cross_entropy_with_logits(
                logits_NK, wanted_NK * (1 - smooth) + smooth / 2, reduction="none"
            )
            return (each_NK * weight_NK * (truth_NK >= 0)).mean()
        weight_N = (wanted_NK * self._weights_2K[1]).sum(1)
        wanted_NK = wanted_NK * (1 - smooth) + smooth / len(self.targets.classes)
        each_N = -(wanted_NK * logits_NK.log_softmax(1)).sum(1)
        return (each_N * weight_N).mean()

    def _accuracy(self, logits_NK: Tensor, truth_NK: Tensor) -> Tensor:
        """Share of right answers among those known."""
        if self.targets.multi_label:
            right, known = (logits_NK > 0) == (truth_NK == 1), truth_NK >= 0
        else:
            right, known = logits_NK.argmax(1) == truth_NK.argmax(1), truth_NK[:, 0] >= 0
        return (right & known).sum() / known.sum().clamp(min=1)

    @torch.no_grad()
    def logits(self, images_NCHW: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """What the averaged network says of stored images, (N, K)."""
        unit_NCHW = to_unit(torch.from_numpy(images_NCHW).to(self.context.device))
        logits_NK: npt.NDArray[np.float32] = self.average(unit_NCHW).cpu().numpy()
        return logits_NK


class ClassifierTraining(LabelledTraining[Classifier]):
    """A classifier of images in training."""

    def _network(self) -> Classifier:
        c, trunk = self.config, self._trunk
        network = Classifier(
            self.targets.classes,
            architecture="encoder" if trunk is not None else c.architecture,
            channels=self.channels,
            size_px=c.size_px,
            width=c.width,
            multi_label=self.targets.multi_label,
            encoder=None if trunk is None else trunk.arguments(),
        ).seed_weights(c.seed)
        if trunk is not None and network.encoder is not None:
            network.encoder.load_state_dict(trunk.state_dict())
        return network.to(self.context.device)
