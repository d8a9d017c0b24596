"""The jigsaw's training: one step of telling permutations apart; its state is `averaged`'s.

Shape letters: N puzzles of this rank, S = 9 places, C channels, p pixels of a view, P permutations.

Every random number is an address, so the step has no generator state. The published form has batch
norms: their running means and variances go with the averaged weights as the network has them, the
mean over ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from medray.dist.engine import State, joined, part_of
from medray.errors import DataError, UsageError
from medray.models.jigsaw import PLACES, Jigsaw
from medray.train.averaged import AveragedTraining
from medray.train.jigsaw_config import JigsawConfig

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from medray.dist.context import Context
    from medray.records import Batch


class JigsawTraining(AveragedTraining[Jigsaw]):
    """A jigsaw's network on this rank; `precision` of the configuration is resolved."""

    def __init__(
        self, config: JigsawConfig, permutations: Sequence[str], channels: int, context: Context
    ) -> None:
        if config.precision == "auto":
            raise UsageError("precision auto is to be resolved before training")
        self.config, self.channels, self.permutations = config, channels, tuple(permutations)
        super().__init__(
            config, self._network, context, engine=config.engine, zero_stage=config.zero_stage
        )
        self._best_moving = self._moving()

    def _network(self) -> Jigsaw:
        c = self.config
        network = Jigsaw(self.permutations, form=c.form, channels=self.channels, width=c.width)
        network = network.seed_weights(c.seed).to(self.context.device)
        if c.engine == "deepspeed":
            # It sends weights as bytes, which it takes to lie in the order of their axes.
            network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return network

    # --- the step -----------------------------------------------------------------------------

    def step(self, batch: Batch, images: int) -> dict[str, Tensor]:
        """Train on this rank's part of a batch, `images` frames into the run."""
        views_NSCpp = self.views_of(batch.images_NCHW)
        order_N = torch.from_numpy(batch.labels_N).to(self.context.device)
        self.network.train()
        with self.autocast():
            logits_NP = self.network(views_NSCpp)
        loss = functional.cross_entropy(logits_NP.float(), order_N)
        self.descend(loss, images, len(batch.keys))
        right = (logits_NP.detach().argmax(1) == order_N).float().mean()
        return {"loss": loss.detach(), "accuracy": right}

    def views_of(self, images_NCHW: npt.NDArray[np.float32]) -> Tensor:
        """A batch's images, `(N, 9 C, p, p)`, as views on the device."""
        images = torch.from_numpy(images_NCHW).to(self.context.device)
        return images.view(len(images), PLACES, self.channels, *images.shape[-2:])

    # --- what batch norms keep ------------------------------------------------------------------

    def ready(self) -> Jigsaw:
        """The averaged network as it is to be judged."""
        _take(self.average, _moving_of(self.network))
        return self.average.eval()

    def keep_if_best(self, score: float, images: int) -> bool:
        """Remembers the averaged weights where no score was lower yet; whether it did."""
        kept = super().keep_if_best(score, images)
        if kept:
            self._best_moving = self._moving()
        return kept

    def take_best(self) -> Jigsaw:
        """The averaged network with its best weights."""
        network = super().take_best()
        _take(network, self._best_moving)
        return network.eval()

    def _moving(self) -> State:
        return {name: b.detach().clone() for name, b in _moving_of(self.network).items()}

    def _mean_moving(self) -> None:
        """Makes running means and variances the mean over ranks (collective)."""
        moving = list(_moving_of(self.network).values())
        if moving and self.context.world > 1:
            flat = self.context.all_reduce_mean_(torch.cat([b.flatten() for b in moving]))
            sizes = [buffer.numel() for buffer in moving]
            for buffer, part in zip(moving, torch.split(flat, sizes), strict=True):
                buffer.copy_(part.view_as(buffer))

    # --- state --------------------------------------------------------------------------------

    def state_dict(self) -> State:
        """As `averaged`'s; what batch norms keep; the permutations themselves."""
        self._mean_moving()
        return {
            **super().state_dict(),
            **joined({"moving": _moving_of(self.network), "best_moving": self._best_moving}),
            "permutations": self.network.orders.to(torch.uint8),
        }

    def load_state_dict(self, state: State) -> None:
        """Takes what `state_dict` gave; UsageError where the permutations are others."""
        given = state.get("permutations")
        if given is None:
            raise DataError("checkpoint lacks permutations", code="MR-D060")
        own = self.network.orders.to(torch.uint8)
        if given.shape != own.shape or not torch.equal(given.to(own.device), own):
            raise UsageError(
                f"the checkpoint tells {len(given):,} permutations apart, not these {len(own):,}",
                hint="resume with the same --permutations and --seed, or start a new run",
            )
        super().load_state_dict(state)
        _take(self.network, part_of(state, "moving"))
        device = self.context.device
        self._best_moving = {n: t.to(device) for n, t in part_of(state, "best_moving").items()}


def _moving_of(network: nn.Module) -> State:
    """Running means and variances, the live ones."""
    return {name: b for name, b in network.named_buffers() if b.is_floating_point()}


@torch.no_grad()
def _take(network: nn.Module, moving: State) -> None:
    own = _moving_of(network)
    for name, buffer in own.items():
        if name not in moving or moving[name].shape != buffer.shape:
            raise DataError(f"checkpoint lacks the running figure {name}", code="MR-D060")
        buffer.copy_(moving[name])
