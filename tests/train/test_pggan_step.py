"""One step of the progressive GAN against a textbook written here, in float64.

The textbook shares nothing with medray but the weights: functions, NCHW, every pass on its own,
up-sampling before the convolution, Adam written out.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as f

from medray import rng
from medray.dist.context import local
from medray.records import Batch
from medray.train import pggan as module
from medray.train.pggan import Pggan
from medray.train.pggan_config import PgganConfig

Weights = dict[str, Tensor]
ROOT2 = math.sqrt(2)
FADE, STABLE = 40, 24
CASES = [  # px, images, weight of the new layers: whole, fades at their start, middle and end
    (4, 0, 1.0),
    (8, STABLE, 1 / FADE),
    (16, 2 * STABLE + FADE + 24, 24 / FADE),
    (16, 2 * STABLE + FADE + 39, 39 / FADE),
    (16, 2 * STABLE + 2 * FADE, 1.0),
]


def _config(loss: str, **changes: object) -> PgganConfig:
    fields = {
        "final_px": 16, "fade_images": FADE, "stable_images": STABLE, "latent_dims": 6,
        "fmap_base": 64, "fmap_max": 8, "batch": 8, "loss": loss, "precision": "fp32", "seed": 3,
        "r1_gamma": 5.0, "r1_every": 1, "ema_half_life_images": 100.0,
    }  # fmt: skip
    return PgganConfig(**{**fields, **changes})  # type: ignore[arg-type]


def _batch(first: int, images: int = 8, px: int = 16, bits: int = 8) -> Batch:
    words = rng.bits(9, "test.images", first + np.arange(images), px * px)
    pixels = words.astype(np.uint8 if bits == 8 else np.uint16).reshape(images, 1, px, px)
    keys = tuple(f"train-{first + i:08d}" for i in range(images))
    return Batch(keys, pixels, np.zeros(images, np.int64), [{}] * images, first)


# --- the textbook -----------------------------------------------------------------------------


def _norm(x: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).mean(1, keepdim=True) + 1e-8)


def _layer(w: Weights, name: str, x: Tensor, gain: float = ROOT2) -> Tensor:
    weight = w[f"{name}.weight"]
    weight = weight * gain / math.sqrt(weight[0].numel())
    if weight.ndim == 2:
        return x @ weight.T + w[f"{name}.bias"]
    return f.conv2d(x, weight, w[f"{name}.bias"], padding=weight.shape[-1] // 2)


def _up(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def _down(x: Tensor) -> Tensor:
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def _generate(w: Weights, z: Tensor, px: int, alpha: float) -> Tensor:
    weight = w["dense.weight"] * ROOT2 / 4 / math.sqrt(z.shape[1])
    x = (_norm(z) @ weight.T).reshape(len(z), -1, 4, 4) + w["dense.bias"][:, None, None]
    x = _norm(f.leaky_relu(x, 0.2))
    x, before = _norm(f.leaky_relu(_layer(w, "block4.0", x), 0.2)), None
    for at in [2**r for r in range(3, px.bit_length())]:
        before, x = x, _up(x)
        for i in (0, 1):
            x = _norm(f.leaky_relu(_layer(w, f"block{at}.{i}", x), 0.2))
    images = _layer(w, f"rgb{px}", x, 1.0)
    if before is None or alpha == 1:
        return images
    return (1 - alpha) * _up(_layer(w, f"rgb{px // 2}", before, 1.0)) + alpha * images


def _score(w: Weights, images: Tensor, px: int, alpha: float) -> Tensor:
    x = f.leaky_relu(_layer(w, f"rgb{px}", images), 0.2)
    for at in [2**r for r in range(px.bit_length() - 1, 2, -1)]:
        for i in (0, 1):
            x = f.leaky_relu(_layer(w, f"block{at}.{i}", x), 0.2)
        x = _down(x)
        if at == px and alpha < 1:
            old = f.leaky_relu(_layer(w, f"rgb{px // 2}", _down(images)), 0.2)
            x = (1 - alpha) * old + alpha * x
    groups = x.reshape(4, len(x) // 4, -1)
    spread = torch.sqrt(((groups - groups.mean(0)) ** 2).mean(0) + 1e-8).mean(1)
    channel = spread.repeat(4)[:, None, None, None].expand(-1, 1, 4, 4)
    x = f.leaky_relu(_layer(w, "last_conv", torch.cat([x, channel], 1)), 0.2)
    x = f.leaky_relu(_layer(w, "dense", x.reshape(len(x), -1)), 0.2)
    return _layer(w, "out", x, 1.0)[:, 0]


def _input_gradient(score: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    images = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(score(images).sum(), images, create_graph=True)
    return gradient


def _loss_d(
    loss: str, score: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, share: Tensor
) -> Tensor:
    on_real, on_fake = score(real), score(fake)
    if loss == "wgan-gp":
        mixed = real + share[:, None, None, None] * (fake - real)
        norm = (_input_gradient(score, mixed) ** 2).sum((1, 2, 3)).sqrt()
        drift = 0.001 * (on_real**2).mean()
        return on_fake.mean() - on_real.mean() + 10 * ((norm - 1) ** 2).mean() + drift
    gamma = 5.0 * (real.shape[-1] / 64) ** 2
    r1 = gamma / 2 * (_input_gradient(score, real) ** 2).sum((1, 2, 3)).mean()
    return torch.log1p(on_fake.exp()).mean() + torch.log1p((-on_real).exp()).mean() + r1


def _adam(w: Weights, gradients: Weights, lr: float) -> Weights:
    """First step of Adam with betas (0, 0.99): the gradient over its own size."""
    moved = dict(w)
    for name, g in gradients.items():
        moved[name] = w[name] - lr * g / ((0.01 * g**2 / (1 - 0.99)).sqrt() + 1e-8)
    return moved


def _gradients(loss: Tensor, weights: Weights) -> Weights:
    grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {n: g for n, g in zip(weights, grads, strict=True) if g is not None}


def _textbook(config: PgganConfig, start: dict[str, Weights], images: int, px: int, alpha: float):
    numbers = images + np.arange(8)
    z_d, z_g = (
        torch.from_numpy(rng.normals(3, f"pggan.latents_{n}", numbers, 6)).double() for n in "dg"
    )
    share = torch.from_numpy(rng.uniforms(3, "pggan.penalty", numbers, 1)[:, 0]).double()
    real = torch.from_numpy(_batch(images).images_NCHW).double() / 127.5 - 1
    while real.shape[-1] > px:
        real = _down(real)
    real = (1 - alpha) * _up(_down(real)) + alpha * real
    g, d = start["generator"], start["discriminator"]
    fake = _generate(g, z_d, px, alpha).detach()
    loss_d = _loss_d(config.loss, lambda x: _score(d, x, px, alpha), real, fake, share)
    grad_d = _gradients(loss_d, d)
    d = {n: t.detach() for n, t in _adam(d, grad_d, 0.001).items()}
    on_fake = _score(d, _generate(g, z_g, px, alpha), px, alpha)
    loss_g = -on_fake.mean() if config.loss == "wgan-gp" else torch.log1p((-on_fake).exp()).mean()
    grad_g = _gradients(loss_g, g)
    return loss_d, loss_g, grad_d, grad_g, d, _adam(g, grad_g, 0.001)


# --- the comparison ---------------------------------------------------------------------------


class _Double(Pggan):
    """The same step in float64."""

    def _network(self, kind):  # type: ignore[no-untyped-def]
        network = super()._network(kind).double()
        network.compute_dtype = torch.float64
        return network

    def _device(self, array):  # type: ignore[no-untyped-def]
        tensor = torch.from_numpy(array)
        return tensor.double() if tensor.is_floating_point() else tensor


@pytest.fixture
def double_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "to_unit", lambda images: images.double() / 127.5 - 1)


def _start(gan: Pggan) -> dict[str, Weights]:
    return {
        name: {n: p.detach().clone().requires_grad_(True) for n, p in network.named_parameters()}
        for name, network in (("generator", gan.generator), ("discriminator", gan.discriminator))
    }


def _same(got: dict[str, Tensor], wanted: Weights, **tolerance: float) -> None:
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value.detach(), msg=lambda m, n=name: f"{n}: {m}",
                                   **tolerance)  # fmt: skip


@pytest.mark.parametrize("loss", ["r1", "wgan-gp"])
@pytest.mark.parametrize(("px", "images", "alpha"), CASES)
def test_one_step_is_the_textbooks(
    loss: str, px: int, images: int, alpha: float, double_images: None
) -> None:
    config = _config(loss)
    gan = _Double(config, local())
    start = _start(gan)
    scalars = gan.step(_batch(images), images)
    loss_d, loss_g, grad_d, grad_g, d, g = _textbook(config, start, images, px, alpha)
    total_d = scalars["loss_d"] + scalars["penalty"]
    torch.testing.assert_close(total_d, loss_d.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(scalars["loss_g"], loss_g.detach(), rtol=1e-9, atol=1e-9)
    tight = {"rtol": 1e-7, "atol": 1e-10}
    _same({n: p.grad for n, p in gan.discriminator.named_parameters()}, grad_d, **tight)
    _same({n: p.grad for n, p in gan.generator.named_parameters()}, grad_g, **tight)
    _same(dict(gan.discriminator.named_parameters()), d, rtol=1e-5, atol=1e-7)
    _same(dict(gan.generator.named_parameters()), g, rtol=1e-5, atol=1e-7)
    decay = 0.5 ** (8 / min(100, 0.05 * (images + 8)))
    averaged = {n: decay * start["generator"][n] + (1 - decay) * t for n, t in g.items()}
    _same(dict(gan.average.named_parameters()), averaged, rtol=1e-5, atol=1e-7)


def test_the_comparison_can_fail(double_images: None) -> None:
    gan = _Double(_config("wgan-gp", drift=0.1), local())
    start = _start(gan)
    scalars = gan.step(_batch(0), 0)
    loss_d = _textbook(_config("wgan-gp"), start, 0, 4, 1.0)[0]
    difference = float((scalars["loss_d"] + scalars["penalty"] - loss_d).abs().detach())
    assert difference > 1e-6
