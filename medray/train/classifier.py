"""The classifier's training: one supervised step, its state, the best weights so far.

Shape letters: N images of this rank, C channels, H = W pixels, K classes.

Every random number is an address, so the step has no generator state. What is scored and left is
the moving average of the weights, as it was at its best score on validation.

With `pretrain_images` the first so many images are a stage of their own: at the boundary the
learning rate starts anew and the best score is forgotten, so that what is left was fine-tuned;
weights (the last layer too), their average and Adam's moments go on. Networks have no running
statistics: they normalise within an image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medray.dist.engine import check_state, make_engine
from medray.errors import DataError
from medray.models.classifier import Classifier
from medray.models.pixels import resized, to_unit
from medray.train import ema
from medray.train.augment import Augment
from medray.train.classifier_config import ClassifierConfig
from medray.train.targets import Targets

if TYPE_CHECKING:
    import numpy.typing as npt

    from medray.dist.context import Context
    from medray.records import Batch

BETAS = (0.9, 0.999)
EPSILON = 1e-8
EMA_RAMPUP = 0.1
NETWORKS = ("network", "average", "best")


class ClassifierTraining:
    """A classifier on this rank; `weights_2K` as `targets.weights` gives them."""

    def __init__(
        self,
        config: ClassifierConfig,
        targets: Targets,
        channels: int,
        weights_2K: npt.NDArray[np.float64],
        context: Context,
        *,
        pretrain_weights_2K: npt.NDArray[np.float64] | None = None,
    ) -> None:
        """`pretrain_weights_2K` are those of the first stage; without them `weights_2K` are."""
        self.config, self.context, self.targets, self.channels = config, context, targets, channels
        self.network, self.average = self._network(), self._network().requires_grad_(False)
        self.best = {n: p.detach().clone() for n, p in self.average.named_parameters()}
        self.best_score, self.best_images = float("inf"), 0
        first_2K = weights_2K if pretrain_weights_2K is None else pretrain_weights_2K
        self._stages_2K = [
            torch.from_numpy(rows_2K).float().to(context.device)
            for rows_2K in (first_2K, weights_2K)
        ]
        self._weights_2K = self._stages_2K[1]
        self._augment = Augment(config, channels, context.device)
        self.engine = make_engine(
            "torch",
            self.network,
            list(self.network.named_parameters()),
            context,
            lr=config.lr,
            betas=BETAS,
            eps=EPSILON,
        )

    def _network(self) -> Classifier:
        c = self.config
        network = Classifier(
            self.targets.classes,
            architecture=c.architecture,
            channels=self.channels,
            size_px=c.size_px,
            width=c.width,
            multi_label=self.targets.multi_label,
        )
        return network.seed_weights(c.seed).to(self.context.device)

    # --- the step -----------------------------------------------------------------------------

    def step(self, batch: Batch, images: int) -> dict[str, Tensor]:
        """Train on this rank's part of a batch, `images` images into the run."""
        images_NCHW, truth_NK = self._inputs(batch)
        lr = self.config.lr_at(images)
        self._weights_2K = self._stages_2K[images >= self.config.pretrain_images]
        self.engine.set_lr(lr)
        self.engine.zero_grad()
        with self._autocast():
            logits_NK = self.network(images_NCHW)
        loss = self.loss(logits_NK.float(), truth_NK)
        self.engine.backward(loss)
        self._decay(lr)
        self.engine.step()
        self._update_average(images + len(batch.keys) * self.context.world, len(batch.keys))
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

    def _autocast(self) -> torch.autocast:
        on = self.config.precision == "bf16"
        return torch.autocast(self.context.device.type, torch.bfloat16, enabled=on)

    @torch.no_grad()
    def _decay(self, lr: float) -> None:
        """Decoupled weight decay (Loshchilov and Hutter, ICLR 2019), not of biases and norms."""
        large: list[Tensor] = [p for p in self.network.parameters() if p.ndim > 1]
        torch._foreach_mul_(large, 1 - lr * self.config.weight_decay)

    def _update_average(self, images: int, part: int) -> None:
        c = self.config
        batch_images = part * self.context.world
        decay = ema.decay_at(images, batch_images, c.ema_half_life_images, EMA_RAMPUP)
        ema.update_([*self.average.parameters()], [*self.network.parameters()], decay)

    # --- judged and kept ----------------------------------------------------------------------

    @torch.no_grad()
    def logits(self, images_NCHW: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """What the averaged network says of stored images, (N, K)."""
        unit_NCHW = to_unit(torch.from_numpy(images_NCHW).to(self.context.device))
        logits_NK: npt.NDArray[np.float32] = self.average(unit_NCHW).cpu().numpy()
        return logits_NK

    def keep_if_best(self, score: float, images: int) -> bool:
        """Remembers the averaged weights where no score was lower yet; whether it did.

        The first score after pre-training is the lowest of fine-tuning, whatever came before.
        """
        boundary = self.config.pretrain_images
        first = 0 < boundary and self.best_images <= boundary < images
        if not (first or score < self.best_score):
            return False
        self.best_score, self.best_images = score, images
        self.best = {n: p.detach().clone() for n, p in self.average.named_parameters()}
        return True

    def take_best(self) -> Classifier:
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


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n[len(prefix) + 1 :]: t for n, t in state.items() if n.startswith(prefix + ".")}
