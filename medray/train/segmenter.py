"""The segmenter's training: one supervised step, its state, the best weights so far.

Shape letters: N images of this rank, C channels, H = W pixels.

Every random number is an address, so the step has no generator state. What is scored and left is
the moving average of the weights, as it was at its best score on validation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from monai.losses.dice import DiceCELoss, DiceLoss
from torch import Tensor

from medray.dist.engine import check_state, make_engine
from medray.errors import DataError
from medray.models.pixels import resized, to_unit
from medray.models.segmenter import Segmenter
from medray.train import ema
from medray.train.segmenter_augment import AugmentPairs
from medray.train.segmenter_config import SegmenterConfig

if TYPE_CHECKING:
    from medray.dist.context import Context
    from medray.records import Batch

BETAS = (0.9, 0.999)
EPSILON = 1e-8
EMA_RAMPUP = 0.1
NETWORKS = ("network", "average", "best")


class SegmenterTraining:
    """A segmenter on this rank, for images of `channels` channels with masks."""

    def __init__(self, config: SegmenterConfig, channels: int, context: Context) -> None:
        self.config, self.context, self.channels = config, context, channels
        self.network, self.average = self._network(), self._network().requires_grad_(False)
        self.best = {n: p.detach().clone() for n, p in self.average.named_parameters()}
        self.best_score, self.best_images = float("inf"), 0
        self._augment = AugmentPairs(config, context.device)
        self.loss = loss_of(config)
        self.engine = make_engine(
            "torch",
            self.network,
            list(self.network.named_parameters()),
            context,
            lr=config.lr,
            betas=BETAS,
            eps=EPSILON,
        )

    def _network(self) -> Segmenter:
        c = self.config
        network = Segmenter(channels=self.channels, size_px=c.size_px, width=c.width)
        return network.seed_weights(c.seed).to(self.context.device)

    # --- the step -----------------------------------------------------------------------------

    def step(self, batch: Batch, images: int) -> dict[str, Tensor]:
        """Train on this rank's part of a batch, `images` images into the run."""
        images_NCHW, masks_N1HW = self._inputs(batch)
        lr = self.config.lr_at(images)
        self.engine.set_lr(lr)
        self.engine.zero_grad()
        with self._autocast():
            logits_N1HW = self.network(images_NCHW)
        loss = self.loss(logits_N1HW, masks_N1HW)
        self.engine.backward(loss)
        self._decay(lr)
        self.engine.step()
        self._update_average(images + len(batch.keys) * self.context.world, len(batch.keys))
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

    def _autocast(self) -> torch.autocast:
        on = self.config.precision == "bf16"
        return torch.autocast(self.context.device.type, torch.bfloat16, enabled=on)

    @torch.no_grad()
    def _decay(self, lr: float) -> None:
        """Decoupled weight decay (Loshchilov and Hutter, ICLR 2019), not of biases and norms."""
        if self.config.weight_decay:
            large: list[Tensor] = [p for p in self.network.parameters() if p.ndim > 1]
            torch._foreach_mul_(large, 1 - lr * self.config.weight_decay)

    def _update_average(self, images: int, part: int) -> None:
        c = self.config
        batch_images = part * self.context.world
        decay = ema.decay_at(images, batch_images, c.ema_half_life_images, EMA_RAMPUP)
        ema.update_([*self.average.parameters()], [*self.network.parameters()], decay)

    # --- judged and kept ----------------------------------------------------------------------

    def keep_if_best(self, score: float, images: int) -> bool:
        """Remembers the averaged weights where no score was lower yet; whether it did."""
        if not score < self.best_score:
            return False
        self.best_score, self.best_images = score, images
        self.best = {n: p.detach().clone() for n, p in self.average.named_parameters()}
        return True

    def take_best(self) -> Segmenter:
        """The averaged network with its best weights."""
        own = dict(self.average.named_parameters())
        with torch.no_grad():
            for name, tensor in self.best.items():
                own[name].copy_(tensor)
        return self.average

    # --- state --------------------------------------------------------------------------------

    def nonfinite(self) -> str | None:
        """The first non-finite gradient since the last call."""
        name = self.engine.nonfinite()
        return None if name is None else f"gradient of {name}"

    def state_dict(self) -> dict[str, Tensor]:
        """Network, average, best and Adam's state, whole on every rank."""
        parts: dict[str, dict[str, Tensor]] = {
            "network": self.engine.full_parameters(),
            "average": dict(self.average.named_parameters()),
            "best": self.best,
            "adam": self.engine.optimizer_state(),
            "progress": {
                "best_score": torch.tensor(self.best_score, dtype=torch.float64),
                "best_images": torch.tensor(self.best_images),
            },
        }
        return {f"{p}.{n}": t.detach() for p, tensors in parts.items() for n, t in tensors.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes what `state_dict` gave; DataError where a tensor lacks or has another shape."""
        own: dict[str, Tensor] = dict(self.network.named_parameters())
        check_state(state, own, NETWORKS)
        if "progress.best_score" not in state or "progress.best_images" not in state:
            raise DataError("checkpoint lacks progress.best_score or best_images", code="MR-D060")
        self.engine.load_parameters(_part(state, "network"))
        self.engine.load_optimizer_state(_part(state, "adam"))
        with torch.no_grad():
            for name, parameter in self.average.named_parameters():
                parameter.copy_(state[f"average.{name}"])
        self.best = {name: state[f"best.{name}"].to(self.context.device) for name in own}
        self.best_score = float(state["progress.best_score"])
        self.best_images = int(state["progress.best_images"])


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


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n[len(prefix) + 1 :]: t for n, t in state.items() if n.startswith(prefix + ".")}
