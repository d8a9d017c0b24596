"""An ACGAN on features: one adversarial step, its state, and a whole training in memory.

D tells real from generated and names the class; L_S is the log-likelihood of the right source, L_C
of the right class, on real and generated features: D raises L_S + L_C, G raises L_C - L_S, here in
the form that does not saturate (Odena, Olah, Shlens, ICML 2017). Every random number is an address,
so the step has no generator state. The model is the moving average of G.

Shape letters: N features of a step, M rows of the table, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medray.dist.context import Context
from medray.dist.engine import Engine, State, check_state, joined, make_engine, part_of
from medray.errors import DataError, UsageError
from medray.models.acgan import Discriminator, Generator, noise, seed_weights
from medray.records import Batch
from medray.train import ema, losses
from medray.train.acgan_config import ACGANConfig
from medray.train.loop import NonFiniteError
from medray.train.phases import Phase, run
from medray.train.table_batches import TableBatches

BETAS = (0.5, 0.999)
EPSILON = 1e-8
# Of a run, this share at its end has a falling learning rate.
FALLING = 0.5
# The two phases of a step draw other noise.
D_NOISE, G_NOISE = "acgan.noise.d", "acgan.noise.g"
INIT = "acgan.init"

Rows = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Inputs:
    """What a step works on: real features (standardised), their classes, their numbers."""

    real_NCHW: Tensor
    classes_N: Tensor
    numbers_N: Numbers


class ACGANTraining:
    """An ACGAN in training on this rank; `rows_MCHW` are the features that it standardises by."""

    def __init__(
        self, config: ACGANConfig, classes: Sequence[str], rows_MCHW: Rows, context: Context
    ) -> None:
        self.config, self.context = config, context
        shape, device = rows_MCHW.shape[1:], context.device
        c = config
        sizes = {"width": c.width, "layers": c.layers}
        self.generator, self.average = (
            Generator(classes, shape, noise_dims=c.noise_dims, **sizes) for _ in range(2)
        )
        self.discriminator = Discriminator(
            classes, shape, spectral=c.regulariser == "spectral", **sizes
        )
        for network in (self.generator, self.average):
            seed_weights(network, c.seed, f"{INIT}.g")
            network.standardise(torch.from_numpy(rows_MCHW))
            network.to(device)
        self.average.requires_grad_(False).eval()
        seed_weights(self.discriminator, c.seed, f"{INIT}.d")
        self.discriminator.to(device)
        self.g_engine, self.d_engine = (
            self._engine(self.generator),
            self._engine(self.discriminator),
        )
        self._phases = [
            Phase("d", self.d_engine, (self.generator,), self._d_loss),
            Phase("g", self.g_engine, (self.discriminator,), self._g_loss),
        ]

    def _engine(self, network: nn.Module) -> Engine:
        return make_engine(
            "torch",
            network,
            list(network.named_parameters()),
            self.context,
            lr=self.config.lr,
            betas=BETAS,
            eps=EPSILON,
        )

    # --- the step -----------------------------------------------------------------------------

    def step(self, batch: Batch, images: int) -> dict[str, Tensor]:
        """Train on this rank's part of a batch, `images` features into the run."""
        device = self.context.device
        real_NCHW = torch.from_numpy(batch.images_NCHW).to(device)
        inputs = Inputs(
            self.generator.standardised(real_NCHW),
            torch.from_numpy(batch.labels_N).to(device),
            batch.first_index + np.arange(len(batch.keys)),
        )
        lr = self.config.lr * share_of_lr(images, self.config.total_images)
        self.g_engine.set_lr(lr)
        self.d_engine.set_lr(lr * self.config.d_lr_factor)
        scalars = run(self._phases, inputs)
        self._update_average(images, len(batch.keys))
        return scalars

    def _fakes(self, inputs: Inputs, stream: str) -> Tensor:
        drawn_NZ = noise(self.config.seed, stream, inputs.numbers_N, self.config.noise_dims)
        made: Tensor = self.generator(drawn_NZ.to(self.context.device), inputs.classes_N)
        return made

    def _d_loss(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        c, real = self.config, inputs.real_NCHW
        with torch.no_grad():
            fake = self._fakes(inputs, D_NOISE)
        source, labels = self.discriminator(torch.cat([real, fake]))
        (real_N, fake_N), (real_NK, fake_NK) = source.chunk(2), labels.chunk(2)
        loss = losses.logistic_d(real_N, fake_N)
        on_real = losses.class_entropy(real_NK, inputs.classes_N)
        on_fake = losses.class_entropy(fake_NK, inputs.classes_N)
        total = loss + c.class_weight * on_real + c.fake_class_weight * on_fake
        if c.regulariser == "gradient":
            penalty = losses.r1_penalty(lambda x: self.discriminator(x)[0], real)
            total = total + c.penalty / 2 * penalty
        return total, {"loss_d": loss, "class_real": on_real, "class_fake": on_fake}

    def _g_loss(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        fake_N, fake_NK = self.discriminator(self._fakes(inputs, G_NOISE))
        loss = losses.logistic_g(fake_N)
        on_fake = losses.class_entropy(fake_NK, inputs.classes_N)
        named = (fake_NK.detach().argmax(1) == inputs.classes_N).double().mean()
        total = loss + self.config.class_weight * on_fake
        return total, {"loss_g": loss, "accepted": named}

    def _update_average(self, images: int, part: int) -> None:
        batch_images = part * self.context.world
        half_life = self.config.ema_half_life_images
        ema.follow(self.average, self.generator, images + batch_images, batch_images, half_life)

    # --- state --------------------------------------------------------------------------------

    def nonfinite(self) -> str | None:
        """Phase and name of the first non-finite gradient since the last call."""
        for phase, engine in (("d", self.d_engine), ("g", self.g_engine)):
            if name := engine.nonfinite():
                return f"phase {phase}: gradient of {name}"
        return None

    def state_dict(self) -> dict[str, Tensor]:
        """Both networks, the average and Adam's state, whole."""
        parts: dict[str, State] = {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "average": self.average.state_dict(),
            "g_adam": self.g_engine.optimizer_state(),
            "d_adam": self.d_engine.optimizer_state(),
        }
        return joined(parts)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes what `state_dict` gave; DataError where a tensor lacks or has another shape."""
        networks = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "average": self.average,
        }
        for role, network in networks.items():
            check_state(state, dict(network.state_dict()), (role,))
            network.load_state_dict(part_of(state, role))
        self.g_engine.load_optimizer_state(part_of(state, "g_adam"))
        self.d_engine.load_optimizer_state(part_of(state, "d_adam"))


def share_of_lr(images: int, total_images: int) -> float:
    """Share of the learning rate after `images` features: whole, then half a cosine to zero."""
    begin = (1 - FALLING) * total_images
    done = max(0.0, (images - begin) / max(1.0, total_images - begin))
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


# --- what can be trained on, and training in memory ----------------------------------------------


def as_maps(features: npt.NDArray[np.floating]) -> Rows:
    """Features (M, D) or (M, C, H, W) as (M, C, H, W) float32."""
    rows: Rows = np.ascontiguousarray(features, np.float32)
    if rows.ndim not in (2, 4):
        raise UsageError(f"features must have shape (M, D) or (M, C, H, W), got {rows.shape}")
    return rows[:, :, None, None] if rows.ndim == 2 else rows


def check_rows(rows_MCHW: Rows, counts_K: Numbers, classes: Sequence[str], where: str) -> None:
    """DataError for what cannot be trained on: one class, one row of a class, NaN, constants."""
    named = ", ".join(f"{n} {c:,}" for n, c in zip(classes, counts_K.tolist(), strict=True))
    bad = int((~np.isfinite(rows_MCHW).reshape(len(rows_MCHW), -1).all(1)).sum())
    faults = {
        ("MR-D404", f"features of {bad} of {len(rows_MCHW)} rows are not finite"): bad > 0,
        ("MR-D071", f"one class only ({named}): there is nothing to be conditional on"): (
            int((counts_K > 0).sum()) < 2
        ),
        ("MR-D405", f"a class has fewer than 2 rows ({named}): it would be copied"): (
            0 < int(counts_K.min()) < 2 or (counts_K == 0).any() and int((counts_K > 0).sum()) >= 2
        ),
        ("MR-D406", "all features are constant: there is nothing to learn"): (
            not bad and float(np.ptp(rows_MCHW, axis=0).max()) == 0
        ),
    }
    for (code, text), wrong in faults.items():
        if wrong:
            raise DataError(text, code=code, where=where)


def trained_in_memory(
    config: ACGANConfig, classes: Sequence[str], rows_MCHW: Rows, numbers_M: Numbers
) -> ACGANTraining:
    """An ACGAN trained to the end, nothing written; NonFiniteError where it diverges.

    The same arguments give the same weights (CPU, same threads).
    """
    counts_K = np.bincount(numbers_M, minlength=len(classes))
    check_rows(rows_MCHW, counts_K, classes, "features in memory")
    context = Context(0, 1, 0, torch.device("cpu"), threads_per_rank=torch.get_num_threads())
    training = ACGANTraining(config, classes, rows_MCHW, context)
    batches = TableBatches(rows_MCHW, numbers_M, seed=config.seed, balanced=config.balanced)
    images = 0
    while images < config.total_images:
        training.step(batches.next(config.batch), images)
        images += config.batch
    if found := training.nonfinite():
        raise NonFiniteError(f"{found} is not finite", hint="try a smaller lr")
    return training
