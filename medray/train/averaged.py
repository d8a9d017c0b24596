"""A network that is trained by Adam on one loss; the average of its weights is the model.

What is scored and left is the moving average, as it was at its best score on validation. Networks
have parameters alone: they normalise within an image, and keep no running statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from medray.dist.engine import State, check_state, joined, make_engine, part_of
from medray.errors import DataError
from medray.train import ema

if TYPE_CHECKING:
    from medray.dist.context import Context

BETAS = (0.9, 0.999)
EPSILON = 1e-8
NETWORKS = ("network", "average", "best")

N = TypeVar("N", bound=nn.Module)


class Settings(Protocol):
    """What a training of this kind is set by."""

    lr: float
    weight_decay: float
    ema_half_life_images: float

    @property
    def precision(self) -> str:
        """fp32 or bf16."""

    def lr_at(self, images: int) -> float:
        """Learning rate after `images` images."""


class AveragedTraining(Generic[N]):
    """Network, average, best average and Adam's state on this rank.

    Who builds on it has a `step` that makes the inputs and the loss; nothing here calls it.
    """

    network: N
    average: N

    def __init__(
        self,
        config: Settings,
        make: Callable[[], N],
        context: Context,
        *,
        anew_after: int = 0,
        engine: str = "torch",
        zero_stage: int = 0,
    ) -> None:
        """`make` gives the network as it is at the start, the same each time.

        The first score past `anew_after` images is the best, whatever came before.
        """
        self._settings, self.context, self._anew_after = config, context, anew_after
        self.network, self.average = make(), make().requires_grad_(False)
        self.best = self._averaged()
        self.best_score, self.best_images = float("inf"), 0
        self.engine = make_engine(
            engine,
            self.network,
            list(self.network.named_parameters()),
            context,
            lr=config.lr,
            betas=BETAS,
            eps=EPSILON,
            zero_stage=zero_stage,
        )

    # --- the step -----------------------------------------------------------------------------

    def autocast(self) -> torch.autocast:
        """In which the network runs, in the type of `precision`."""
        on = self._settings.precision == "bf16"
        return torch.autocast(self.context.device.type, torch.bfloat16, enabled=on)

    def descend(self, loss: Tensor, images: int, part: int) -> None:
        """Down the loss of `part` images of this rank, `images` images into the run."""
        lr = self._settings.lr_at(images)
        self.engine.set_lr(lr)
        self.engine.zero_grad()
        self.engine.backward(loss)
        self._decay(lr)
        self.engine.step()
        batch_images = part * self.context.world
        half_life = self._settings.ema_half_life_images
        ema.follow(self.average, self.network, images + batch_images, batch_images, half_life)

    @torch.no_grad()
    def _decay(self, lr: float) -> None:
        """Decoupled weight decay (Loshchilov and Hutter, ICLR 2019), not of biases and norms."""
        if self._settings.weight_decay:
            large: list[Tensor] = [p for p in self.network.parameters() if p.ndim > 1]
            torch._foreach_mul_(large, 1 - lr * self._settings.weight_decay)

    # --- the best -----------------------------------------------------------------------------

    def _averaged(self) -> State:
        return {n: p.detach().clone() for n, p in self.average.named_parameters()}

    def keep_if_best(self, score: float, images: int) -> bool:
        """Remembers the averaged weights where no score was lower yet; whether it did."""
        anew = 0 < self._anew_after and self.best_images <= self._anew_after < images
        if not (anew or score < self.best_score):
            return False
        self.best_score, self.best_images = score, images
        self.best = self._averaged()
        return True

    def take_best(self) -> N:
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

    def state_dict(self) -> State:
        """Network, average, best and Adam's state, whole on every rank."""
        return joined(
            {
                "network": self.engine.full_parameters(),
                "average": dict(self.average.named_parameters()),
                "best": self.best,
                "adam": self.engine.optimizer_state(),
                "progress": {
                    "best_score": torch.tensor(self.best_score, dtype=torch.float64),
                    "best_images": torch.tensor(self.best_images),
                },
            }
        )

    def load_state_dict(self, state: State) -> None:
        """Takes what `state_dict` gave; DataError where a tensor lacks or has another shape."""
        own: State = dict(self.network.named_parameters())
        check_state(state, own, NETWORKS)
        if "progress.best_score" not in state or "progress.best_images" not in state:
            raise DataError("checkpoint lacks progress.best_score or best_images", code="MR-D060")
        self.engine.load_parameters(part_of(state, "network"))
        self.engine.load_optimizer_state(part_of(state, "adam"))
        with torch.no_grad():
            for name, parameter in self.average.named_parameters():
                parameter.copy_(state[f"average.{name}"])
        self.best = {name: state[f"best.{name}"].to(self.context.device) for name in own}
        self.best_score = float(state["progress.best_score"])
        self.best_images = int(state["progress.best_images"])
