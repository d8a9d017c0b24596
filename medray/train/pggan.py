"""The progressive GAN: one adversarial step, its state, and pictures from the averaged generator.

Shape letters: N images of this rank, C channels, H = W pixels, L numbers that G takes (latent
dimensions, and classes where it is conditional), K classes, A draws of an augmentation.

The method is that of Karras, Aila, Laine, Lehtinen (ICLR 2018). Every random number is an address
(seed, stream, global image number), so the step has no generator state and does not depend on
how often the run was resumed or on how many ranks share it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from medray import rng
from medray.dist.engine import Engine, check_state, joined, make_engine, part_of
from medray.errors import DataError, UsageError
from medray.models.layers import double
from medray.models.ops import halve
from medray.models.pggan import Discriminator, Generator, Network
from medray.models.pixels import to_unit
from medray.train import diffaugment, ema, losses, phases
from medray.train.conditioning import Conditioning
from medray.train.pggan_config import PgganConfig
from medray.train.schedule import Growth, is_due

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medray.dist.context import Context
    from medray.records import Batch

N = TypeVar("N", Discriminator, Generator)

BETAS = (0.0, 0.99)
EPSILON = 1e-8
SAMPLE_BATCH = 16


@dataclass(frozen=True)
class StepInputs:
    """What one step's phases take, on the device; `r1_weight` is 0 where R1 is not due.

    Real images are as D sees them, faded and augmented. Classes and draws are None where they are
    off, `fake_g_NCHW` until it is made.
    """

    real_NCHW: Tensor
    z_d_NL: Tensor
    z_g_NL: Tensor
    share_N: Tensor
    growth: Growth
    r1_weight: float
    classes_real_N: Tensor | None = None
    classes_d_N: Tensor | None = None
    classes_g_N: Tensor | None = None
    draws_d_NA: Tensor | None = None
    draws_g_NA: Tensor | None = None
    fake_g_NCHW: Tensor | None = None


def pieces_of(inputs: StepInputs, images: int) -> list[StepInputs]:
    """The inputs of a step in pieces of `images` consecutive images; views, nothing is copied."""
    total = len(inputs.real_NCHW)
    assert total % images == 0, f"{total} images are not whole pieces of {images}"
    if total == images:
        return [inputs]
    whole = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    tensors = {name: value for name, value in whole.items() if isinstance(value, Tensor)}
    return [
        StepInputs(**whole | {name: t[first : first + images] for name, t in tensors.items()})
        for first in range(0, total, images)
    ]


class Pggan:
    """Progressive GAN on this rank. `config.precision` must be resolved (`precision.resolve`)."""

    def __init__(self, config: PgganConfig, context: Context) -> None:
        if config.precision == "auto":
            raise UsageError("precision auto must be resolved before training, to bf16 or fp32")
        self.config, self.context = config, context
        self.conditioning = Conditioning(config) if config.conditional else None
        self.discriminator = self._network(Discriminator)
        self.generator = self._network(Generator)
        self.average = self._network(Generator).requires_grad_(False)
        for network, name in ((self.generator, "generator"), (self.average, "generator")):
            seed_weights(network, config.seed, name)
        seed_weights(self.discriminator, config.seed, "discriminator")
        self._enter(config.growth_at(0).px)

    def _network(self, kind: type[N]) -> N:
        c = self.config
        network = kind(**c.network_arguments())
        network.compute_dtype = torch.bfloat16 if c.precision == "bf16" else torch.float32
        return network.to(self.context.device)

    def _enter(self, px: int) -> None:
        """New engines over what is active at `px`: Adam's state starts anew at each level."""
        self.px = px
        self.engine_d = self._engine(self.discriminator, min(self.config.zero_stage, 2))
        self.engine_g = self._engine(self.generator, self.config.zero_stage)
        self._phases = [
            phases.Phase("D", self.engine_d, (), self._loss_d),
            phases.Phase("G", self.engine_g, (self.discriminator,), self._loss_g, self._ahead_g),
        ]

    def _leave(self) -> None:
        self.engine_d.close()
        self.engine_g.close()

    def _engine(self, network: Network, zero_stage: int) -> Engine:
        return make_engine(
            self.config.engine,
            network,
            network.active_parameters(self.px),
            self.context,
            lr=self.config.lr_at(self.px),
            betas=BETAS,
            eps=EPSILON,
            zero_stage=zero_stage,
        )

    # --- the step -----------------------------------------------------------------------------

    def step(self, batch: Batch, images: int) -> dict[str, Tensor]:
        """Train on this rank's part of a batch, `images` images into the run.

        Returns scalars of this rank as tensors on the device; nothing waits for the device.
        """
        growth = self.config.growth_at(images)
        if growth.px != self.px:
            self._leave()
            self._enter(growth.px)
        inputs = self._inputs(batch, images, growth)
        piece_images = self.config.piece_of(len(batch.keys), growth.px)
        scalars = phases.run(self._phases, *pieces_of(inputs, piece_images))
        batch_images = len(batch.keys) * self.context.world
        self._update_average(images + batch_images, batch_images)
        return scalars

    def _inputs(self, batch: Batch, images: int, growth: Growth) -> StepInputs:
        numbers_N = batch.first_index + np.arange(len(batch.keys))
        real_NCHW = self._device(batch.images_NCHW)
        if self.config.mirror:
            flip_N = self._draw("mirror", numbers_N, 1)[:, :, None, None] < 0.5
            real_NCHW = torch.where(flip_N, real_NCHW.flip(3), real_NCHW)
        real_NCHW = faded(reduced(to_unit(real_NCHW), growth.px), growth.alpha)
        z_d_NL, classes_d_N = self._latents("d", numbers_N)
        z_g_NL, classes_g_N = self._latents("g", numbers_N)
        return StepInputs(
            real_NCHW=self._augmented(real_NCHW, self._augmentation("real", numbers_N)),
            z_d_NL=z_d_NL,
            z_g_NL=z_g_NL,
            share_N=self._draw("penalty", numbers_N, 1)[:, 0],
            growth=growth,
            r1_weight=self._r1_weight(images, len(batch.keys) * self.context.world, growth.px),
            classes_real_N=self._classes(batch),
            classes_d_N=classes_d_N,
            classes_g_N=classes_g_N,
            draws_d_NA=self._augmentation("d", numbers_N),
            draws_g_NA=self._augmentation("g", numbers_N),
        )

    def _r1_weight(self, images: int, batch_images: int, px: int) -> float:
        """Half of gamma, times the steps that this one stands for; 0 where R1 is not due."""
        c = self.config
        if c.loss != "r1" or not is_due(images, batch_images, c.r1_every):
            return 0.0
        return c.r1_gamma_at(px) / 2 * c.r1_every

    def _loss_d(self, inputs: StepInputs) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            fake_NCHW = self._generate(self.generator, inputs.z_d_NL, inputs.growth)
            fake_NCHW = self._augmented(fake_NCHW, inputs.draws_d_NA)
        # The penalty's forward pass comes first: DeepSpeed's hooks need a plain one after it.
        penalty = self._penalty(inputs, fake_NCHW)
        loss, scalars = self._adversarial(inputs, fake_NCHW)
        if penalty is None:
            return loss, scalars
        return loss + penalty, scalars | {"penalty": penalty}

    def _adversarial(
        self, inputs: StepInputs, fake_NCHW: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        # One pass over both: the weights are prepared once, and the groups stay apart.
        both_NCHW = torch.cat([inputs.real_NCHW, fake_NCHW])
        on_real, on_fake = self._logits(both_NCHW, inputs.growth, parts=2).chunk(2)
        real_N, fake_N = on_real[:, 0], on_fake[:, 0]
        if self.config.loss == "r1":
            loss = losses.logistic_d(real_N, fake_N)
        else:
            loss = losses.wasserstein_d(real_N, fake_N, self.config.drift)
        scalars = {"loss_d": loss, "score_real": real_N.mean(), "score_fake": fake_N.mean()}
        loss = self._with_classes(loss, scalars, "class_real", on_real, inputs.classes_real_N)
        made_N = inputs.classes_d_N if self.config.class_on_fakes else None
        return self._with_classes(loss, scalars, "class_fake", on_fake, made_N), scalars

    def _with_classes(
        self,
        loss: Tensor,
        scalars: dict[str, Tensor],
        name: str,
        logits_NK: Tensor,
        classes_N: Tensor | None,
    ) -> Tensor:
        """The loss with the class term of D's logits beside it, which is reported as `name`."""
        if classes_N is None:
            return loss
        scalars[name] = losses.class_entropy(logits_NK[:, 1:], classes_N)
        return loss + self.config.class_weight * scalars[name]

    def _penalty(self, inputs: StepInputs, fake_NCHW: Tensor) -> Tensor | None:
        """On the score alone, at the augmented images that D is trained on, by their pixels."""

        def score(images_NCHW: Tensor) -> Tensor:
            return self._logits(images_NCHW, inputs.growth)[:, 0]

        if self.config.loss == "wgan-gp":
            share_N = inputs.share_N
            penalty = losses.gradient_penalty(score, inputs.real_NCHW, fake_NCHW, share_N)
            return self.config.gp_weight * penalty
        if inputs.r1_weight:
            return inputs.r1_weight * losses.r1_penalty(score, inputs.real_NCHW)
        return None

    def _ahead_g(self, inputs: StepInputs) -> StepInputs:
        """G's images, which D's step does not change."""
        return replace(inputs, fake_g_NCHW=self._fake_g(inputs))

    def _fake_g(self, inputs: StepInputs) -> Tensor:
        fake_NCHW = self._generate(self.generator, inputs.z_g_NL, inputs.growth)
        return self._augmented(fake_NCHW, inputs.draws_g_NA)

    def _loss_g(self, inputs: StepInputs) -> tuple[Tensor, dict[str, Tensor]]:
        fake_NCHW = inputs.fake_g_NCHW
        if fake_NCHW is None:
            fake_NCHW = self._fake_g(inputs)
        logits = self._logits(fake_NCHW, inputs.growth)
        r1 = self.config.loss == "r1"
        loss = losses.logistic_g(logits[:, 0]) if r1 else losses.wasserstein_g(logits[:, 0])
        scalars = {"loss_g": loss}
        return self._with_classes(loss, scalars, "class_g", logits, inputs.classes_g_N), scalars

    def _logits(self, images_NCHW: Tensor, growth: Growth, parts: int = 1) -> Tensor:
        """D's score in column 0, its logits of the classes in the others."""
        return self.discriminator.logits(images_NCHW, growth.px, growth.alpha, parts)

    def _augmented(self, images_NCHW: Tensor, draws_NA: Tensor | None) -> Tensor:
        if draws_NA is None:
            return images_NCHW
        return diffaugment.augment(images_NCHW, draws_NA, self.config.diffaugment)

    @staticmethod
    def _generate(network: Generator, z_NL: Tensor, growth: Growth) -> Tensor:
        images_NCHW: Tensor = network(z_NL, growth.px, growth.alpha)
        return images_NCHW

    def _update_average(self, images: int, batch_images: int) -> None:
        c = self.config
        decay = ema.decay_at(images, batch_images, c.ema_half_life_images, c.ema_rampup)
        current = self.engine_g.full_parameters()
        average = dict(self.average.named_parameters())
        names = [name for name, _ in self.generator.active_parameters(self.px)]
        ema.update_([average[n] for n in names], [current[n] for n in names], decay)

    # --- random draws by global image number --------------------------------------------------

    def _latents(self, phase: str, numbers_N: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        """What G takes in a phase, and the classes that are in it."""
        c = self.config
        z_NL = rng.normals(c.seed, f"pggan.latents_{phase}", numbers_N, c.latent_dims)
        if self.conditioning is None:
            return self._device(z_NL), None
        classes_N = self.conditioning.drawn(f"pggan.classes_{phase}", numbers_N)
        return self._device(self.conditioning.beside(z_NL, classes_N)), self._device(classes_N)

    def _classes(self, batch: Batch) -> Tensor | None:
        if self.conditioning is None:
            return None
        return self._device(self.conditioning.of_labels(batch.labels_N))

    def _augmentation(self, name: str, numbers_N: NDArray[np.int64]) -> Tensor | None:
        if not self.config.diffaugment:
            return None
        return self._draw(f"diffaugment_{name}", numbers_N, diffaugment.DRAWS)

    def _draw(self, stream: str, numbers_N: NDArray[np.int64], count: int) -> Tensor:
        return self._device(rng.uniforms(self.config.seed, f"pggan.{stream}", numbers_N, count))

    def _device(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self.context.device, non_blocking=True)

    # --- state and pictures -------------------------------------------------------------------

    def nonfinite(self) -> str | None:
        """Phase and tensor of the first non-finite gradient since the last call; waits for it."""
        for phase in self._phases:
            name = phase.engine.nonfinite()
            if name is not None:
                return f"phase {phase.name}: gradient of {name}"
        return None

    def state_dict(self) -> dict[str, Tensor]:
        """Networks, average, both Adam states and the level, whole on every rank (collective).

        Some tensors are the live ones: copy what must outlive the next step.
        """
        parts: dict[str, dict[str, Tensor]] = {
            "generator": _whole(self.generator, self.engine_g),
            "ema": dict(self.average.named_parameters()),
            "discriminator": _whole(self.discriminator, self.engine_d),
            "adam_g": self.engine_g.optimizer_state(),
            "adam_d": self.engine_d.optimizer_state(),
            "progress": {"px": torch.tensor(self.px)},
        }
        return joined(parts)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take what `state_dict` gave; DataError where a tensor lacks or has another shape."""
        self._leave()
        check_state(state, {"px": torch.tensor(0)}, ("progress",))
        networks = {
            "generator": self.generator,
            "ema": self.average,
            "discriminator": self.discriminator,
        }
        for prefix, network in networks.items():
            check_state(state, dict(network.named_parameters()), (prefix,))
        for prefix, network in networks.items():
            network.load_state_dict(part_of(state, prefix))
        self._enter(int(state["progress.px"]))
        self.engine_g.load_optimizer_state(part_of(state, "adam_g"))
        self.engine_d.load_optimizer_state(part_of(state, "adam_d"))

    @torch.no_grad()
    def sample(self, z_NL: Tensor, images: int) -> Tensor:
        """Pictures of the averaged generator after `images` images: uint8 (N, C, px, px)."""
        growth = self.config.growth_at(images)
        parts = []
        for z in torch.split(z_NL, SAMPLE_BATCH):
            made = self._generate(self.average, z.to(self.context.device), growth)
            parts.append(((made + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu())
        return torch.cat(parts)


def _whole(network: Network, engine: Engine) -> dict[str, Tensor]:
    """All parameters: what the engine trains, gathered, and what waits for its resolution."""
    return {**dict(network.named_parameters()), **engine.full_parameters()}


@torch.no_grad()
def seed_weights(network: Network, seed: int, name: str) -> None:
    """Weights N(0, 1) and biases 0, each parameter's draws from a stream of its own name."""
    for key, parameter in network.named_parameters():
        if key.endswith("bias"):
            parameter.zero_()
            continue
        drawn = rng.normals(seed, f"pggan.init.{name}.{key}", 0, parameter.numel())
        parameter.copy_(torch.from_numpy(drawn).view_as(parameter))


def reduced(images_NCHW: Tensor, px: int) -> Tensor:
    """Box mean down to `px`; DataError unless the images are square and a multiple of it."""
    height, width = images_NCHW.shape[2:]
    if height != width or height % px:
        raise DataError(
            f"images must be square and a multiple of {px} px, got {height} x {width}",
            hint="pack the set at the final resolution or a multiple of it",
        )
    return nn.functional.avg_pool2d(images_NCHW, height // px) if height > px else images_NCHW


def faded(images_NCHW: Tensor, alpha: float) -> Tensor:
    """Real images as the networks see them while a resolution fades in."""
    return torch.lerp(double(halve(images_NCHW)), images_NCHW, alpha) if alpha < 1 else images_NCHW
