"""The segmenter's training: one supervised step; its state and its best are `averaged`'s.

Shape letters: N images of this rank, C channels, H = W pixels.

Every random number is an address, so the step has no generator state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from monai.losses.dice import DiceCELoss, DiceLoss
from torch import Tensor

from medray.errors import DataError
from medray.models.pixels import resized, to_unit
from medray.models.segmenter import Segmenter
from medray.train.averaged import AveragedTraining
from medray.train.segmenter_augment import AugmentPairs
from medray.train.segmenter_config import SegmenterConfig

if TYPE_CHECKING:
    from medray.dist.context import Context
    from medray.records import Batch


class SegmenterTraining(AveragedTraining[Segmenter]):
    """A segmenter on this rank, for images of `channels` channels with masks."""

    def __init__(self, config: SegmenterConfig, channels: int, context: Context) -> None:
        self.config, self.channels = config, channels
        super().__init__(config, self._network, context)
        self._augment = AugmentPairs(config, context.device)
        self.loss = loss_of(config)

    def _network(self) -> Segmenter:
        c = self.config
        network = Segmenter(channels=self.channels, size_px=c.size_px, width=c.width)
        return network.seed_weights(c.seed).to(self.context.device)

    def step(self, batch: Batch, images: int) -> dict[str, Tensor]:
        """Train on this rank's part of a batch, `images` images into the run."""
        images_NCHW, masks_N1HW = self._inputs(batch)
        with self.autocast():
            logits_N1HW = self.network(images_NCHW)
        loss = self.loss(logits_N1HW, masks_N1HW)
        self.descend(loss, images, len(batch.keys))
        return {"loss": loss.detach(), "dice": _dice(logits_N1HW.detach() > 0, masks_N1HW > 0)}

    def _inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.masks_NHW is None:
            raise DataError(
                f"no sample of a batch has a mask ({batch.keys[0]} and {len(batch.keys) - 1} more)",
                code="MR-D075",
            )
        numbers_N = batch.first_index + np.arange(len(batch.keys))
        device, px = self.context.device, self.config.size_px
        unit_NCHW = to_unit(torch.from_numpy(batch.images_NCHW).to(device))
        masks_NHW = torch.from_numpy(batch.masks_NHW != 0).to(device)
        masks_N1HW = (resized(masks_NHW[:, None].float(), px) >= 0.5).float()
        return self._augment(resized(unit_NCHW, px), masks_N1HW, numbers_N)


def loss_of(config: SegmenterConfig) -> torch.nn.Module:
    """MONAI's soft Dice loss of logits (Milletari et al. 2016), alone or with cross-entropy.

    Over a batch as one it is of this rank's part: on several ranks the mean over them.
    """
    over_batch = config.dice_over == "batch"
    kind = DiceLoss if config.loss == "dice" else DiceCELoss
    loss: torch.nn.Module = kind(sigmoid=True, batch=over_batch)
    return loss


def _dice(said: Tensor, true: Tensor) -> Tensor:
    """Dice of all pixels of a batch; 1 where nothing is there and nothing said."""
    both, all_ = (said & true).sum(), said.sum() + true.sum()
    return torch.where(all_ == 0, 1.0, 2 * both / all_.clamp(min=1))
