"""Losses of the adversarial step, as scores and images in, float32 scalars out.

Shape letters: N images of this rank, C channels, H = W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from medray.models.ops import at_least_float32, input_gradients_only

Score = Callable[[Tensor], Tensor]


def wasserstein_d(real_N: Tensor, fake_N: Tensor, drift: float) -> Tensor:
    """`E[D(fake)] - E[D(real)] + drift E[D(real)^2]` (Karras et al., ICLR 2018, appendix A.1)."""
    return fake_N.mean() - real_N.mean() + drift * real_N.square().mean()


def wasserstein_g(fake_N: Tensor) -> Tensor:
    """`-E[D(fake)]`."""
    return -fake_N.mean()


def logistic_d(real_N: Tensor, fake_N: Tensor) -> Tensor:
    """`E[softplus(D(fake))] + E[softplus(-D(real))]` (Goodfellow et al. 2014)."""
    return functional.softplus(fake_N).mean() + functional.softplus(-real_N).mean()


def logistic_g(fake_N: Tensor) -> Tensor:
    """`E[softplus(-D(fake))]`, the non-saturating form."""
    return functional.softplus(-fake_N).mean()


def class_entropy(logits_NK: Tensor, classes_N: Tensor) -> Tensor:
    """Softmax cross-entropy, mean over all images; one whose class is -1 counts as 0.

    Not the mean over those that have a class: the mean of several ranks would be another.
    """
    total = functional.cross_entropy(logits_NK, classes_N, ignore_index=-1, reduction="sum")
    return total / len(classes_N)


def input_gradient(score: Score, images_NCHW: Tensor) -> Tensor:
    """Gradient of the summed scores by the images, float32, itself differentiable."""
    images = images_NCHW.detach().requires_grad_(True)
    summed = score(images).sum()
    with input_gradients_only():
        (gradient_NCHW,) = torch.autograd.grad(summed, images, create_graph=True)
    return at_least_float32(gradient_NCHW)


def gradient_penalty(score: Score, real: Tensor, fake: Tensor, share_N: Tensor) -> Tensor:
    """`E[(|grad D(x)| - 1)^2]` at x = real + share (fake - real) (Gulrajani et al. 2017)."""
    mixed = torch.lerp(real, fake, share_N[:, None, None, None])
    # vector_norm has a gradient (zero) where the norm is zero; sqrt of a sum of squares has none.
    norm_N: Tensor = torch.linalg.vector_norm(input_gradient(score, mixed), dim=(1, 2, 3))
    return (norm_N - 1).square().mean()


def r1_penalty(score: Score, real: Tensor) -> Tensor:
    """`E[|grad D(real)|^2]` (Mescheder, Geiger, Nowozin, ICML 2018)."""
    return input_gradient(score, real).square().sum((1, 2, 3)).mean()
