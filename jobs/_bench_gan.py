"""Rows of the bench for one step of the progressive GAN, against the textbook's step.

On the CPU one size; the suite `gpu` has the paper's widths at 64, 256 and 1024 px, the textbook
with TF32 convolutions, as torch has them by default.

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
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from medray import log, rng
from medray.dist.context import Context, local
from medray.models.pixels import to_unit
from medray.records import Batch
from medray.train import precision
from medray.train.pggan import BETAS, EPSILON, Pggan
from medray.train.pggan_config import PgganConfig

LATENT_DIMS = 512
# Images of a step on a GPU, by pixels.
GPU_IMAGES = {64: 64, 256: 32, 1024: 8}
AGAINST = "textbook WGAN-GP step, fp32"
# Same arithmetic in another order: float32 sums of a million terms agree to about 1e-4.
LOSS_TOLERANCE, LEAST_COSINE = 1e-3, 0.9999
# At 8 images the slopes of the leaky ReLU that rounding flips still show; the tests hold bfloat16
# to 0.999 where gradients are means over 32 images and more.
LEAST_BF16_COSINE = 0.998

ROWS = ("gan_wgan", "gan_recommended")
Timed = Callable[[], float]
Case = tuple[str, str, float, Timed, Timed, Callable[[], None]]


@dataclass(frozen=True)
class Size:
    """What is timed, fully grown: pixels, images and widths; `steps` between two looks at a clock.

    By default a quarter of the paper's width at 64 px.
    """

    px: int = 64
    images: int = 8
    fmap_base: int = 2048
    fmap_max: int = 128
    gpu: bool = False
    steps: int = 2

    def context(self) -> Context:
        """This process, on the device."""
        return local(gpus_per_worker=int(self.gpu))

    def config(self, loss: str, chosen: str) -> PgganConfig:
        """Of the GAN with this loss in the chosen precision."""
        return PgganConfig.model_validate(
            {
                "final_px": self.px,
                "start_px": self.px,
                "batch": self.images,
                "latent_dims": LATENT_DIMS,
                "fmap_base": self.fmap_base,
                "fmap_max": self.fmap_max,
                "loss": loss,
                "precision": chosen,
            }
        )

    def batch(self, first: int) -> Batch:
        """Smooth made-up images: noise at 8 px, enlarged."""
        numbers = first + np.arange(self.images)
        words = rng.bits(0, "bench.images", numbers, 64).astype(np.uint8)
        coarse = words.reshape(self.images, 1, 8, 8)
        pixels = np.ascontiguousarray(coarse.repeat(self.px // 8, 2).repeat(self.px // 8, 3))
        keys = tuple(f"train-{number:08d}" for number in numbers)
        records: list[dict[str, object]] = [{}] * self.images
        return Batch(keys, pixels, np.zeros(self.images, np.int64), records, first)

    def seconds(self, run: Callable[[], object], times: int = 1) -> float:
        """Of so many runs; waits for the GPU before and after."""
        self._wait()
        start_s = time.perf_counter()
        for _ in range(times):
            run()
        self._wait()
        return time.perf_counter() - start_s

    def _wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()


def rows(rounds: int) -> Iterator[Case]:
    """Both rows: name, against what, target, a timed round of each in steps/s, and the check."""
    size = Size()
    chosen = precision.resolve(size.config("wgan-gp", "auto"), torch.device("cpu")).precision
    log.event("bench_gan", f"GAN step in {chosen}, {torch.get_num_threads()} threads")
    textbook = Textbook(size, "wgan-gp")
    for name, loss, target in (("gan_wgan", "wgan-gp", 1.3), ("gan_recommended", "r1", 2.0)):
        yield name, AGAINST, target, Ours(size, loss, chosen), textbook, _checks(size, loss, chosen)


def gpu_rows() -> Iterator[Case]:
    """The recommended step in bfloat16 at the paper's widths, against WGAN-GP of the textbook."""
    for px, images in GPU_IMAGES.items():
        size = Size(px, images, 8192, 512, gpu=True, steps=16)
        ours, textbook = Ours(size, "r1", "bf16"), Textbook(size, "wgan-gp")
        against = f"{AGAINST} with TF32, batch {images}"
        yield f"gpu_gan_{px}", against, 0.0, ours, textbook, _checks(size, "r1", "bf16")
        del ours, textbook
        torch.cuda.empty_cache()


def _checks(size: Size, loss: str, chosen: str) -> Callable[[], None]:
    return functools.partial(check, size, loss, chosen)


class Ours:
    """A timed round of medray's step: steps/s, a lazy term counted at the share that it has."""

    def __init__(self, size: Size, loss: str, chosen: str) -> None:
        self.size = size
        self.gan = Pggan(size.config(loss, chosen), size.context())
        self.every = self.gan.config.r1_every if loss == "r1" else 1

    def __call__(self) -> float:
        images, steps = self.size.images, self.size.steps
        due, other = self.size.batch(0), self.size.batch(images)
        due_s = self.size.seconds(lambda: self.gan.step(due, 0))
        others_s = self.size.seconds(lambda: self.gan.step(other, images), steps)
        return self.every / (due_s + (self.every - 1) * others_s / steps)


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
    """The textbook's step, on the weights and random numbers that our float32 step begins with."""

    def __init__(self, size: Size, loss: str) -> None:
        self.loss, self.size = loss, size
        gan, px = Pggan(size.config(loss, "fp32"), size.context()), size.px
        self.config, self.device = gan.config, gan.context.device
        drawn, judge = gan.generator.state_dict(), gan.discriminator.state_dict()
        self.generator, self.average = TextbookGenerator(drawn, px), TextbookGenerator(drawn, px)
        self.discriminator = TextbookDiscriminator(judge, px)
        rate = gan.config.lr_at(px)
        self.adam_g = torch.optim.Adam(self.generator.parameters(), rate, BETAS, EPSILON)
        self.adam_d = torch.optim.Adam(self.discriminator.parameters(), rate, BETAS, EPSILON)

    def __call__(self) -> float:
        batch, steps = self.size.batch(self.size.images), self.size.steps
        return steps / self.size.seconds(lambda: self.step(batch), steps)

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
        real = to_unit(torch.from_numpy(batch.images_NCHW).to(self.device))
        fake = self.generator(self._latents("d", batch)).detach()
        numbers = batch.first_index + np.arange(len(batch.keys))
        share = rng.uniforms(self.config.seed, "pggan.penalty", numbers, 1)
        share_N111 = torch.from_numpy(share).view(-1, 1, 1, 1).to(self.device)
        loss = self._loss_d(real, fake, share_N111)
        return self._move(self.adam_d, loss)

    def turn_g(self, batch: Batch) -> float:
        """Move the generator; returns its loss."""
        fake_N = self.discriminator(self.generator(self._latents("g", batch)))
        r1 = self.loss == "r1"
        return self._move(
            self.adam_g, functional.softplus(-fake_N).mean() if r1 else -fake_N.mean()
        )

    def _latents(self, name: str, batch: Batch) -> Tensor:
        seed, numbers = self.config.seed, batch.first_index + np.arange(len(batch.keys))
        drawn = rng.normals(seed, f"pggan.latents_{name}", numbers, LATENT_DIMS)
        return torch.from_numpy(drawn).to(self.device)

    def _loss_d(self, real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
        real_N, fake_N = self.discriminator(real), self.discriminator(fake)
        config = self.config
        if self.loss == "r1":
            gradient = self._input_gradient(real)
            r1 = (gradient**2).sum([1, 2, 3]).mean() * config.r1_gamma_at(self.size.px) / 2
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


def check(size: Size, loss: str, chosen: str) -> None:
    """RuntimeError unless a float32 step is the textbook's and `chosen` points the same way."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        _check(size, loss, chosen)


def _check(size: Size, loss: str, chosen: str) -> None:
    exact, judged = (Pggan(size.config(loss, kind), size.context()) for kind in ("fp32", chosen))
    textbook, batch = Textbook(size, loss), size.batch(0)
    scalars = exact.step(batch, 0)
    judged.step(batch, 0)
    got_d, got_g = float(scalars["loss_d"] + scalars["penalty"]), float(scalars["loss_g"])
    least = LEAST_COSINE if chosen == "fp32" else LEAST_BF16_COSINE
    _same_loss("D", got_d, textbook.turn_d(batch))
    _same_direction("D", exact.discriminator, textbook.discriminator, LEAST_COSINE)
    _same_direction("D", judged.discriminator, textbook.discriminator, least)
    _same_loss("G", got_g, textbook.turn_g(batch))
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
