"""Rows of the bench for one step of the progressive GAN, against the textbook's step.

The textbook is written as a paper's appendix reads: plain float32 layers, every pass on its own,
gradients for all weights in every backward pass, Adam and the average without fusion. It takes
the same weights, images, latents and interpolation shares, so its loss and gradients are checked
against medray's before anything is timed.

Shape letters: N images, C channels, H = W pixels, L latent dimensions.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from medray import log, rng
from medray.dist.context import local
from medray.models.pixels import to_unit
from medray.records import Batch
from medray.train import precision
from medray.train.pggan import BETAS, EPSILON, Pggan
from medray.train.pggan_config import PgganConfig

# A quarter of the paper's width at 64 px, fully grown.
PX, IMAGES, LATENT_DIMS, FMAP_BASE, FMAP_MAX = 64, 8, 512, 2048, 128
STEPS = 2
AGAINST = "textbook WGAN-GP step, fp32"
# Same arithmetic in another order: float32 sums of a million terms agree to about 1e-4.
LOSS_TOLERANCE, LEAST_COSINE = 1e-3, 0.9999
# At 8 images the slopes of the leaky ReLU that rounding flips still show; the tests hold bfloat16
# to 0.999 where gradients are means over 32 images and more.
LEAST_BF16_COSINE = 0.998

ROWS = ("gan_wgan", "gan_recommended")
Timed = Callable[[], float]
Case = tuple[str, str, float, Timed, Timed, Callable[[], None]]


def rows(rounds: int) -> Iterator[Case]:
    """Both rows: name, against what, target, a timed round of each in steps/s, and the check."""
    chosen = precision.resolve(_config("wgan-gp", "auto"), torch.device("cpu")).precision
    log.event("bench_gan", f"GAN step in {chosen}, {torch.get_num_threads()} threads")
    textbook = Textbook(Pggan(_config("wgan-gp", "fp32"), local()), "wgan-gp")
    for name, loss, target in (("gan_wgan", "wgan-gp", 1.3), ("gan_recommended", "r1", 2.0)):
        ours = Ours(Pggan(_config(loss, chosen), local()))
        yield name, AGAINST, target, ours, textbook, functools.partial(check, loss, chosen)


def _config(loss: str, chosen: str) -> PgganConfig:
    return PgganConfig.model_validate(
        {
            "final_px": PX,
            "start_px": PX,
            "batch": IMAGES,
            "latent_dims": LATENT_DIMS,
            "fmap_base": FMAP_BASE,
            "fmap_max": FMAP_MAX,
            "loss": loss,
            "precision": chosen,
        }
    )


def _batch(first: int) -> Batch:
    """Smooth made-up images: noise at 8 px, enlarged."""
    numbers = first + np.arange(IMAGES)
    words = rng.bits(0, "bench.images", numbers, 64).astype(np.uint8).reshape(IMAGES, 1, 8, 8)
    pixels = np.ascontiguousarray(words.repeat(PX // 8, 2).repeat(PX // 8, 3))
    keys = tuple(f"train-{number:08d}" for number in numbers)
    return Batch(keys, pixels, np.zeros(IMAGES, np.int64), [{}] * IMAGES, first)


class Ours:
    """A timed round of medray's step: steps/s, a lazy term counted at the share that it has."""

    def __init__(self, gan: Pggan) -> None:
        self.gan = gan
        self.every = gan.config.r1_every if gan.config.loss == "r1" else 1

    def __call__(self) -> float:
        due_s = _seconds(lambda: self.gan.step(_batch(0), 0))
        others_s = [_seconds(lambda: self.gan.step(_batch(IMAGES), IMAGES)) for _ in range(STEPS)]
        return self.every / (due_s + (self.every - 1) * sum(others_s) / STEPS)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


# --- the textbook -----------------------------------------------------------------------------


class TextbookConv(nn.Module):
    """Convolution or dense layer with the weight scaled at run time."""

    def __init__(self, weight: Tensor, bias: Tensor, gain: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
        self.scale = gain / math.sqrt(weight[0].numel())

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight * self.scale
        if weight.ndim == 2:
            return functional.linear(x, weight, self.bias)
        return functional.conv2d(x, weight, self.bias, padding=weight.shape[-1] // 2)


def textbook_pixel_norm(x: Tensor) -> Tensor:
    return x / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + 1e-8)


def textbook_stddev(x: Tensor) -> Tensor:
    """Groups of four images; the batch is a multiple of four."""
    n, c, h, w = x.shape
    y = x.reshape(4, n // 4, c, h, w)
    y = y - y.mean(0, keepdim=True)
    y = torch.sqrt((y**2).mean(0) + 1e-8).mean([1, 2, 3], keepdim=True)
    return torch.cat([x, y.repeat(4, 1, h, w)], 1)


class TextbookGenerator(nn.Module):
    """The generator at its final resolution, with the weights of medray's."""

    def __init__(self, weights: dict[str, Tensor], px: int) -> None:
        super().__init__()
        root2 = math.sqrt(2)
        self.names = ["block4.0"]
        self.names += [f"block{2**r}.{i}" for r in range(3, px.bit_length()) for i in (0, 1)]
        self.layers = nn.ModuleList(_layer(weights, name, root2) for name in self.names)
        self.rgb = _layer(weights, f"rgb{px}", 1.0)
        self.dense = _layer(weights, "dense", root2 / 4)
        self.by_name = dict(zip(self.names, self.layers, strict=True))
        self.by_name |= {f"rgb{px}": self.rgb, "dense": self.dense}

    def forward(self, z_NL: Tensor) -> Tensor:
        weight = self.dense.weight * self.dense.scale
        x = functional.linear(textbook_pixel_norm(z_NL), weight)
        x = x.reshape(len(z_NL), -1, 4, 4) + self.dense.bias[:, None, None]
        x = textbook_pixel_norm(functional.leaky_relu(x, 0.2))
        for name, layer in zip(self.names, self.layers, strict=True):
            if name.endswith(".0") and name != "block4.0":
                x = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = textbook_pixel_norm(functional.leaky_relu(layer(x), 0.2))
        images: Tensor = self.rgb(x)
        return images


class TextbookDiscriminator(nn.Module):
    """The discriminator at its final resolution, with the weights of medray's."""

    def __init__(self, weights: dict[str, Tensor], px: int) -> None:
        super().__init__()
        root2 = math.sqrt(2)
        self.rgb = _layer(weights, f"rgb{px}", root2)
        names = [f"block{2**r}.{i}" for r in range(px.bit_length() - 1, 2, -1) for i in (0, 1)]
        self.layers = nn.ModuleList(_layer(weights, name, root2) for name in names)
        self.last_conv = _layer(weights, "last_conv", root2)
        self.dense = _layer(weights, "dense", root2)
        self.out = _layer(weights, "out", 1.0)
        self.by_name = dict(zip(names, self.layers, strict=True)) | {f"rgb{px}": self.rgb}
        self.by_name |= {"last_conv": self.last_conv, "dense": self.dense, "out": self.out}

    def forward(self, images_NCHW: Tensor) -> Tensor:
        x = functional.leaky_relu(self.rgb(images_NCHW), 0.2)
        for i, layer in enumerate(self.layers):
            x = functional.leaky_relu(layer(x), 0.2)
            if i % 2:
                x = functional.avg_pool2d(x, 2)
        x = functional.leaky_relu(self.last_conv(textbook_stddev(x)), 0.2)
        scores: Tensor = self.out(functional.leaky_relu(self.dense(x.flatten(1)), 0.2))
        return scores[:, 0]


def _layer(weights: dict[str, Tensor], name: str, gain: float) -> TextbookConv:
    return TextbookConv(weights[f"{name}.weight"], weights[f"{name}.bias"], gain)


class Textbook:
    """The textbook's step on the weights and random numbers of `gan`."""

    def __init__(self, gan: Pggan, loss: str) -> None:
        self.loss, self.gan = loss, gan
        drawn, judge = gan.generator.state_dict(), gan.discriminator.state_dict()
        self.generator, self.average = TextbookGenerator(drawn, PX), TextbookGenerator(drawn, PX)
        self.discriminator = TextbookDiscriminator(judge, PX)
        rate = gan.config.lr_at(PX)
        self.adam_g = torch.optim.Adam(self.generator.parameters(), rate, BETAS, EPSILON)
        self.adam_d = torch.optim.Adam(self.discriminator.parameters(), rate, BETAS, EPSILON)

    def __call__(self) -> float:
        batches = [_batch(IMAGES * i) for i in range(STEPS)]
        return STEPS / sum(_seconds(functools.partial(self.step, batch)) for batch in batches)

    def step(self, batch: Batch) -> None:
        """One step: the discriminator's turn, the generator's, and the average."""
        self.turn_d(batch)
        self.turn_g(batch)
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.generator.parameters(), strict=True)
            for average, current in pairs:
                average.mul_(0.999).add_(current, alpha=0.001)

    def turn_d(self, batch: Batch) -> float:
        """Move the discriminator; returns its loss."""
        real = to_unit(torch.from_numpy(batch.images_NCHW))
        fake = self.generator(self._latents("d", batch)).detach()
        numbers = batch.first_index + np.arange(IMAGES)
        share = rng.uniforms(self.gan.config.seed, "pggan.penalty", numbers, 1)
        loss = self._loss_d(real, fake, torch.from_numpy(share).view(-1, 1, 1, 1))
        return self._move(self.adam_d, loss)

    def turn_g(self, batch: Batch) -> float:
        """Move the generator; returns its loss."""
        fake_N = self.discriminator(self.generator(self._latents("g", batch)))
        r1 = self.loss == "r1"
        return self._move(
            self.adam_g, functional.softplus(-fake_N).mean() if r1 else -fake_N.mean()
        )

    def _latents(self, name: str, batch: Batch) -> Tensor:
        seed, numbers = self.gan.config.seed, batch.first_index + np.arange(IMAGES)
        return torch.from_numpy(rng.normals(seed, f"pggan.latents_{name}", numbers, LATENT_DIMS))

    def _loss_d(self, real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
        real_N, fake_N = self.discriminator(real), self.discriminator(fake)
        config = self.gan.config
        if self.loss == "r1":
            gradient = self._input_gradient(real)
            r1 = (gradient**2).sum([1, 2, 3]).mean() * config.r1_gamma_at(PX) / 2
            main = functional.softplus(fake_N).mean() + functional.softplus(-real_N).mean()
            return main + r1 * config.r1_every
        norm = self._input_gradient(real + share * (fake - real)).pow(2).sum([1, 2, 3]).sqrt()
        penalty = config.gp_weight * ((norm - 1) ** 2).mean()
        drift = config.drift * (real_N**2).mean()
        loss: Tensor = fake_N.mean() - real_N.mean() + penalty + drift
        return loss

    def _input_gradient(self, images: Tensor) -> Tensor:
        images = images.detach().requires_grad_(True)
        scores = self.discriminator(images).sum()
        gradient: Tensor = torch.autograd.grad(scores, images, create_graph=True)[0]
        return gradient

    @staticmethod
    def _move(adam: torch.optim.Adam, loss: Tensor) -> float:
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        return float(loss.detach())


# --- the check --------------------------------------------------------------------------------


def check(loss: str, chosen: str) -> None:
    """RuntimeError unless a float32 step is the textbook's and `chosen` points the same way."""
    exact, judged = Pggan(_config(loss, "fp32"), local()), Pggan(_config(loss, chosen), local())
    textbook = Textbook(exact, loss)
    scalars = exact.step(_batch(0), 0)
    judged.step(_batch(0), 0)
    got_d, got_g = float(scalars["loss_d"] + scalars["penalty"]), float(scalars["loss_g"])
    least = LEAST_COSINE if chosen == "fp32" else LEAST_BF16_COSINE
    _same_loss("D", got_d, textbook.turn_d(_batch(0)))
    _same_direction("D", exact.discriminator, textbook.discriminator, LEAST_COSINE)
    _same_direction("D", judged.discriminator, textbook.discriminator, least)
    _same_loss("G", got_g, textbook.turn_g(_batch(0)))
    _same_direction("G", exact.generator, textbook.generator, LEAST_COSINE)
    _same_direction("G", judged.generator, textbook.generator, least)


def _same_loss(name: str, ours: float, theirs: float) -> None:
    if abs(ours - theirs) > LOSS_TOLERANCE * max(1.0, abs(theirs)):
        raise RuntimeError(f"loss of {name}: {ours} against the textbook's {theirs}")


def _same_direction(
    name: str, ours: nn.Module, theirs: TextbookGenerator | TextbookDiscriminator, least: float
) -> None:
    own = dict(ours.named_parameters())
    pairs = [
        (_gradient(own[f"{layer}.{kind}"]), _gradient(getattr(module, kind)))
        for layer, module in theirs.by_name.items()
        for kind in ("weight", "bias")
    ]
    a, b = (torch.cat(side) for side in zip(*pairs, strict=True))
    cosine = float(functional.cosine_similarity(a.double(), b.double(), 0))
    if cosine < least:
        raise RuntimeError(f"gradients of {name}: cosine {cosine}, at least {least} is asked")


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "a step leaves a gradient on every parameter it moved"
    return parameter.grad.flatten()
