"""Generator and discriminator of the progressive GAN (Karras, Aila, Laine, Lehtinen, ICLR 2018).

Shape letters: N images, C image channels, H = W = `px` pixels, L latent dimensions.

Width at resolution R = 2^r is `width(r - 1)`. Both networks hold the layers of every resolution up
to `final_px` and run those up to `px`: while `px` fades in, its image output is mixed with the
one of half that size by `alpha` in [0, 1].
"""

import math

import torch
from torch import Tensor, nn

from medray.errors import UsageError
from medray.models.layers import (
    DoublingConv,
    EqualConv,
    EqualLinear,
    LeakyConv,
    NormConv,
    channels_last,
    double,
    leaky,
    minibatch_stddev,
    pixel_norm,
)
from medray.models.ops import at_least_float32, halve, leaky_norm_

START_PX = 4
MAX_PX = 1024
# Up to here bfloat16 networks compute in float32: a few percent of the work, and the minibatch
# standard deviation and the first layers decide by small differences, which rounding would drown.
WIDE_PX = 8


def width(step: int, fmap_base: int, fmap_max: int) -> int:
    """Feature maps at step s: min(fmap_base / 2^s, fmap_max), at least 1."""
    return max(1, min(fmap_base >> step, fmap_max))


def resolutions(final_px: int) -> list[int]:
    """4, 8, ... `final_px`; UsageError unless that is a power of two from 4 to 1024."""
    if not START_PX <= final_px <= MAX_PX or final_px & (final_px - 1):
        raise UsageError(f"final px must be a power of two from 4 to 1024, got {final_px}")
    return [2**r for r in range(2, int(math.log2(final_px)) + 1)]


class Network(nn.Module):
    """What both networks share: the layers' names by resolution, and the type they compute in."""

    def __init__(self, final_px: int) -> None:
        super().__init__()
        self.resolutions = resolutions(final_px)
        self.compute_dtype = torch.float32

    def _check(self, px: int, alpha: float) -> None:
        if px not in self.resolutions:
            raise UsageError(f"px must be one of {self.resolutions}, got {px}")
        if not 0 <= alpha <= 1:
            raise UsageError(f"alpha must be from 0 to 1, got {alpha}")

    def _dtype_at(self, px: int) -> torch.dtype:
        wide = px <= WIDE_PX and self.compute_dtype == torch.bfloat16
        return torch.float32 if wide else self.compute_dtype

    def active_parameters(self, px: int) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that the forward pass at `px` can use, fading included."""
        idle = {f"{kind}{r}" for kind in ("block", "rgb") for r in self.resolutions if r > px}
        idle |= {f"rgb{r}" for r in self.resolutions if r < px // 2}
        return [(name, p) for name, p in self.named_parameters() if name.split(".")[0] not in idle]


class Generator(Network):
    """Latents `(N, L)` -> images `(N, C, px, px)` float32, in about [-1, 1].

    `classes` one-hot labels are appended to the latent, so L = latent_dims + classes.
    """

    def __init__(
        self,
        final_px: int,
        channels: int = 1,
        latent_dims: int = 512,
        fmap_base: int = 8192,
        fmap_max: int = 512,
        classes: int = 0,
    ) -> None:
        super().__init__(final_px)
        widths = [width(r, fmap_base, fmap_max) for r in range(len(self.resolutions) + 1)]
        self.latent_dims = latent_dims + classes
        self.dense = EqualLinear(self.latent_dims, widths[1] * 16, gain=math.sqrt(2) / 4)
        # One bias a feature map, not one a pixel: it is added after the reshape to 4 x 4.
        self.dense.bias = nn.Parameter(torch.zeros(widths[1]))
        for r, px in enumerate(self.resolutions, 1):
            convs: list[EqualConv] = [NormConv(widths[r], widths[r], 3)]
            if px > START_PX:
                convs.insert(0, DoublingConv(widths[r - 1], widths[r], 3))
            self.add_module(f"block{px}", nn.ModuleList(convs))
            self.add_module(f"rgb{px}", EqualConv(widths[r], channels, 1, gain=1.0))

    def forward(self, z_NL: Tensor, px: int, alpha: float) -> Tensor:
        self._check(px, alpha)
        x = self._first(z_NL)
        faded = None
        for at_px in self.resolutions[: self.resolutions.index(px) + 1]:
            if at_px == px and alpha < 1 and px > START_PX:
                faded = double(self._rgb(x, px // 2))
            x = self._block(x, at_px)
        images = self._rgb(x, px)
        return images if faded is None else torch.lerp(faded, images, alpha)

    def _first(self, z_NL: Tensor) -> Tensor:
        z = pixel_norm(z_NL).to(self._dtype_at(START_PX))
        weight = (self.dense.weight * self.dense.scale).to(z.dtype)
        x = (z @ weight.T).reshape(len(z), -1, 4, 4) + self.dense.bias.to(z.dtype)[:, None, None]
        return leaky_norm_(channels_last(x))

    def _block(self, x: Tensor, px: int) -> Tensor:
        x = x.to(self._dtype_at(px))
        for conv in self.get_submodule(f"block{px}").children():
            x = conv(x)
        return x

    def _rgb(self, x: Tensor, px: int) -> Tensor:
        # An image rounded to 8 bits of mantissa would feed the discriminator another image.
        images: Tensor = self.get_submodule(f"rgb{px}")(at_least_float32(x))
        return images


class Discriminator(Network):
    """Images `(N, C, px, px)` -> scores `(N,)` float32; higher is more real.

    With `classes` the last layer has as many outputs more; `logits` returns those too. `parts`
    says how many batches were joined, so that each keeps its own minibatch statistics.
    """

    def __init__(
        self,
        final_px: int,
        channels: int = 1,
        latent_dims: int = 512,
        fmap_base: int = 8192,
        fmap_max: int = 512,
        classes: int = 0,
    ) -> None:
        super().__init__(final_px)
        widths = [width(r, fmap_base, fmap_max) for r in range(len(self.resolutions) + 1)]
        for r, px in enumerate(self.resolutions, 1):
            self.add_module(f"rgb{px}", LeakyConv(channels, widths[r], 1))
            if px > START_PX:
                convs = [LeakyConv(widths[r], widths[r], 3), LeakyConv(widths[r], widths[r - 1], 3)]
                self.add_module(f"block{px}", nn.ModuleList(convs))
        self.last_conv = LeakyConv(widths[1] + 1, widths[1], 3)
        self.dense = EqualLinear(widths[1] * 16, widths[0])
        self.out = EqualLinear(widths[0], 1 + classes, gain=1.0)

    def forward(self, images_NCHW: Tensor, px: int, alpha: float, parts: int = 1) -> Tensor:
        return self.logits(images_NCHW, px, alpha, parts)[:, 0]

    def logits(self, images_NCHW: Tensor, px: int, alpha: float, parts: int = 1) -> Tensor:
        """Score and one logit a class, `(N, 1 + classes)` float32."""
        self._check(px, alpha)
        images = channels_last(images_NCHW)
        x = self._rgb(images, px)
        for at_px in reversed(self.resolutions[1 : self.resolutions.index(px) + 1]):
            x = self._block(x, at_px)
            if at_px == px and alpha < 1:
                x = torch.lerp(self._rgb(halve(images), px // 2).to(x.dtype), x, alpha)
        x = x.to(self._dtype_at(START_PX))
        x = self.last_conv(minibatch_stddev(x, parts))
        return self.out(leaky(self.dense(x.flatten(1))))  # type: ignore[no-any-return]

    def _rgb(self, images: Tensor, px: int) -> Tensor:
        x: Tensor = self.get_submodule(f"rgb{px}")(images.to(self._dtype_at(px)))
        return x

    def _block(self, x: Tensor, px: int) -> Tensor:
        x = x.to(self._dtype_at(px))
        for conv in self.get_submodule(f"block{px}").children():
            x = conv(x)
        return halve(x)
