"""Networks that say which permutation shuffled the nine patches of a frame.

Shape letters: N puzzles, S = 9 places shown, Q = 9 places of origin, C channels, p pixels of a
view, D features, P permutations.

Compact: the encoder sees each patch by itself; a trunk lets the nine features attend to each other
and gives a table of logits (S, Q): how well the patch shown at s fits place q. The logit of a
permutation is the sum of its nine entries, so that whatever is learnt of one permutation holds for
all that share a patch with it: a softmax over 1,000 of them needs far fewer images than a dense
layer of 1,000 outputs. The trunk does not know the places shown at: shuffled views give a shuffled
table.

Published: nine branches that share no weights, joined, and a dense head (Manna, Bhattacharya, Pal,
arXiv 2104.10481); the layers as its public code gives them, the head our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from medray.errors import UsageError
from medray.models.encoder import Encoder, EncoderConfig, seed_weights

Form = Literal["compact", "published"]
FORMS = ("compact", "published")
PLACES = 9
TRUNK_DIMS, TRUNK_HEADS, TRUNK_LAYERS = 128, 4, 2
BRANCH_CHANNELS, FIRST_CHANNELS, DENSE = 256, 1024, 1024
SKIP_SHARE = 0.25
# A table's logits begin small, so that the first steps are calm.
CALM = 0.1


class Jigsaw(nn.Module):
    """Views `(N, 9, C, p, p)` in [-1, 1] -> logits of the permutations `(N, P)` float32.

    UsageError for what are not different permutations of 0 to 8, and for another form.
    """

    orders: Tensor

    def __init__(
        self,
        permutations: Sequence[str],
        *,
        form: Form = "compact",
        channels: int = 1,
        width: int = 32,
    ) -> None:
        super().__init__()
        _check(permutations, form)
        self.permutations, self.form = tuple(permutations), form
        self.channels, self.width = channels, width
        orders_PS = torch.tensor([[int(place) for place in text] for text in permutations])
        self.register_buffer("orders", orders_PS, persistent=False)
        self.encoder: Encoder | None = None
        self.trunk: Trunk | PublishedTrunk
        self.head: nn.Module
        if form == "compact":
            self.encoder = Encoder(EncoderConfig(channels, width))
            self.trunk, self.head = Trunk(self.encoder.dims), nn.Identity()
        else:
            self.trunk, self.head = PublishedTrunk(channels), _published_head(len(permutations))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def arguments(self) -> dict[str, Any]:
        """What makes this network again: `Jigsaw(**arguments)`."""
        return {
            "permutations": list(self.permutations),
            "form": self.form,
            "channels": self.channels,
            "width": self.width,
        }

    def table(self, views_NSCpp: Tensor) -> Tensor:
        """How well the view shown at s fits place q, `(N, S, Q)`; of the compact form alone."""
        assert self.encoder is not None, "the published form has no table"
        count, places, *image = views_NSCpp.shape
        features = self.encoder(views_NSCpp.reshape(count * places, *image))
        table_NSQ: Tensor = self.trunk(features.view(count, places, -1))
        return table_NSQ.float()

    def forward(self, views_NSCpp: Tensor) -> Tensor:
        if views_NSCpp.ndim != 5 or views_NSCpp.shape[1:3] != (PLACES, self.channels):
            raise UsageError(
                f"views must have shape (N, {PLACES}, {self.channels}, p, p), "
                f"got {tuple(views_NSCpp.shape)}"
            )
        if self.form == "compact":
            return logits_of(self.table(views_NSCpp), self.orders)
        logits_NP: Tensor = self.head(self.trunk(views_NSCpp))
        return logits_NP.float()

    def features(self, images_NCHW: Tensor) -> Tensor:
        """Features of whole images, `(N, D)` float32: the encoder's; the published branches' side
        by side."""
        if self.encoder is not None:
            made: Tensor = self.encoder(images_NCHW)
            return made
        assert isinstance(self.trunk, PublishedTrunk)
        maps = [branch(images_NCHW) for branch in self.trunk.branches]
        return torch.cat([m.float().mean((2, 3)) for m in maps], 1)

    @torch.no_grad()
    def seed_weights(self, seed: int) -> Jigsaw:
        """Weights as the encoder's; the compact form's table begins at a tenth."""
        seed_weights(self, seed, "jigsaw")
        if isinstance(self.trunk, Trunk):
            self.trunk.table.weight.mul_(CALM)
        return self


def logits_of(table_NSQ: Tensor, orders_PS: Tensor) -> Tensor:
    """Logits `(N, P)`: of each permutation the sum over s of the table at (s, its place)."""
    places_S = torch.arange(table_NSQ.shape[1], device=table_NSQ.device)
    chosen_PSQ = functional.one_hot(orders_PS, table_NSQ.shape[2]).to(table_NSQ.dtype)
    assert chosen_PSQ.shape[1] == len(places_S), "a permutation has a place for every view"
    return table_NSQ.flatten(1) @ chosen_PSQ.flatten(1).T


def _check(permutations: Sequence[str], form: str) -> None:
    if form not in FORMS:
        raise UsageError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    places = [str(place) for place in range(PLACES)]
    wrong = [text for text in permutations if sorted(text) != places]
    if wrong or len(set(permutations)) < max(2, len(permutations)):
        raise UsageError(
            "permutations must be two or more different orders of 012345678, got "
            f"{wrong[0] if wrong else f'{len(permutations)} with {len(set(permutations))} of them'}"
        )


# --- compact --------------------------------------------------------------------------------------


class Trunk(nn.Module):
    """Features `(N, S, D)` -> table `(N, S, Q)`: self-attention over the views of a puzzle."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.entry = nn.Linear(dims, TRUNK_DIMS)
        self.layers = nn.ModuleList(_Attention() for _ in range(TRUNK_LAYERS))
        self.norm = nn.LayerNorm(TRUNK_DIMS)
        self.table = nn.Linear(TRUNK_DIMS, PLACES)

    def forward(self, features_NSD: Tensor) -> Tensor:
        x = self.entry(features_NSD)
        for layer in self.layers:
            x = layer(x)
        table_NSQ: Tensor = self.table(self.norm(x))
        return table_NSQ


class _Attention(nn.Module):
    """Pre-norm attention and a dense layer, each added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(TRUNK_DIMS), nn.LayerNorm(TRUNK_DIMS)
        self.qkv = nn.Linear(TRUNK_DIMS, 3 * TRUNK_DIMS)
        self.out = nn.Linear(TRUNK_DIMS, TRUNK_DIMS)
        self.dense1 = nn.Linear(TRUNK_DIMS, 2 * TRUNK_DIMS)
        self.dense2 = nn.Linear(2 * TRUNK_DIMS, TRUNK_DIMS)

    def forward(self, x_NSD: Tensor) -> Tensor:
        count, places, dims = x_NSD.shape
        qkv = self.qkv(self.norm1(x_NSD)).view(count, places, 3, TRUNK_HEADS, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x_NSD = x_NSD + self.out(mixed.transpose(1, 2).reshape(count, places, dims))
        added: Tensor = self.dense2(functional.gelu(self.dense1(self.norm2(x_NSD))))
        return x_NSD + added


# --- published ------------------------------------------------------------------------------------


def _layer(fan_in: int, fan_out: int, kernel_px: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution with bias -> batch norm -> ReLU."""
    conv = nn.Conv2d(fan_in, fan_out, kernel_px, stride, kernel_px // 2)
    return nn.Sequential(conv, nn.BatchNorm2d(fan_out), nn.ReLU(inplace=True))


def _branch(channels: int) -> nn.Sequential:
    wide = BRANCH_CHANNELS
    return nn.Sequential(
        _layer(channels, wide),
        _layer(wide, wide),
        nn.MaxPool2d(2),
        _layer(wide, wide),
        _layer(wide, wide),
    )


class _Skip(nn.Module):
    """Down to half the channels and up again, a quarter of it added to what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = _layer(channels, channels // 2), _layer(channels // 2, channels)

    def forward(self, x_NFHW: Tensor) -> Tensor:
        added: Tensor = self.up(self.down(x_NFHW))
        return x_NFHW + SKIP_SHARE * added


class _Reduction(nn.Module):
    """Halves the size and doubles the channels: two convolutions beside an average pool."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.long = nn.Sequential(_layer(channels, channels), _layer(channels, channels, stride=2))
        self.short = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), _layer(channels, channels, 1))

    def forward(self, x_NFHW: Tensor) -> Tensor:
        return torch.cat([self.long(x_NFHW), self.short(x_NFHW)], 1)


class PublishedTrunk(nn.Module):
    """Nine branches without shared weights and what joins them: `(N, 9, C, p, p)` -> maps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first = FIRST_CHANNELS
        self.branches = nn.ModuleList(_branch(channels) for _ in range(PLACES))
        self.join = _layer(PLACES * BRANCH_CHANNELS, first, 1)
        self.rest = nn.Sequential(
            _Skip(first), _Reduction(first), _Skip(2 * first), _Reduction(2 * first)
        )

    def forward(self, views_NSCpp: Tensor) -> Tensor:
        maps = [branch(views_NSCpp[:, place]) for place, branch in enumerate(self.branches)]
        made: Tensor = self.rest(self.join(torch.cat(maps, 1)))
        return made


def _published_head(permutations: int) -> nn.Sequential:
    dense = nn.Linear(4 * FIRST_CHANNELS, DENSE)
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*pool, dense, nn.ReLU(inplace=True), nn.Linear(DENSE, permutations))
