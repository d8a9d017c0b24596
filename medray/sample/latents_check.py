"""What fitted latents are worth: hits as an independent judge sees them, diversity, cost.

Everything is compared with plain sampling from the same generator, at equal numbers: rejection
(draw, classify, keep) for the cost of a labelled image, plain images for diversity and coverage.

Shape letters: N images, T targets, K classes, D features, P pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medray.errors import UsageError
from medray.metrics.intervals import binomial_interval
from medray.metrics.manifold import prdc
from medray.models.classifier import Classifier
from medray.models.pixels import to_unit
from medray.sample.images import BATCH, Pixels, Renderer, one_thread
from medray.sample.latents import Floats, LatentModel, Target, prior, target_of
from medray.sample.latents_optimise import Pair

# Pixel distances are taken at this size at most.
THUMB_PX = 32
# Beside the search's threshold: the wanted label is likelier than not.
LIKELY = 0.5
NEIGHBOURS = 5
# Coverage and pairwise distances of fewer images than this say little and are left out.
LEAST_IMAGES = 50
_PAIRS_AT_ONCE = 256

Truth = NDArray[np.bool_]


@dataclass(frozen=True)
class Views:
    """N images as they are looked at: whether they pass for each target by the classifier that
    steers, at the search's threshold and at 1/2, whether the judge sees each target in them, the
    judge's features, small pictures."""

    passes_NT: Truth
    likely_NT: Truth
    hit_NT: Truth
    features_ND: Floats
    pixels_NP: Floats

    def __getitem__(self, rows: Any) -> Views:
        return Views(*(values[rows] for values in vars(self).values()))

    def __len__(self) -> int:
        return len(self.hit_NT)


@dataclass(frozen=True)
class Judge:
    """A classifier that decides whether an image shows what was wanted."""

    network: Classifier
    name: str
    independent: bool

    def wanted(self, targets: Sequence[Target]) -> list[Target]:
        """The targets in this judge's classes; UsageError where it does not know one."""
        try:
            return [
                target_of(t.name, self.network.classes, self.network.multi_label) for t in targets
            ]
        except UsageError as error:
            raise UsageError(
                f"the judge {self.name} cannot judge: {error.message}", hint=error.hint
            ) from error

    def decisions(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """What it sees, 0 or 1 a class (N, K), and its features (N, D)."""
        features_ND = self.network.features(images_NCHW)
        logits_NK = self.network.head(features_ND).float()
        says = self.network.decisions(logits_NK)
        if not self.network.multi_label:
            says = functional.one_hot(says, len(self.network.classes))
        return says.to(torch.int64), features_ND


def shows(says_NK: NDArray[np.integer[Any]], target: Target) -> Truth:
    """Whether rows of 0 and 1 show every finding that the target names (for "normal": none)."""
    wanted_K = np.array(list(target.wanted.values()))
    if not wanted_K.any():
        return np.asarray((says_NK == 0).all(1))
    return np.asarray((says_NK[:, wanted_K > 0] == 1).all(1))


def planes(images: Pixels) -> Pixels:
    """(N, H, W) or (N, H, W, 3) as (N, C, H, W)."""
    stacked = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(stacked)


class Bench:
    """A generator, its classifier and a judge, looking at many latents in bounded memory."""

    def __init__(
        self,
        pair: Pair,
        renderer: Renderer,
        judge: Judge,
        targets: Sequence[Target],
        threshold: float,
    ) -> None:
        self.pair, self.renderer, self.threshold = pair, renderer, threshold
        self.judge, self.targets = judge, tuple(targets)
        self._wanted = [pair.wanted_of(target) for target in targets]
        self._judged = judge.wanted(targets)

    def images(self, latents_ND: Floats) -> Iterator[Pixels]:
        """uint8 (N, C, px, px), batch by batch, as an archive would hold them."""
        for first in range(0, len(latents_ND), BATCH):
            yield planes(self.renderer.render(latents_ND[first : first + BATCH]))

    def look(self, batches: Iterator[Pixels]) -> Views:
        """What classifier and judge see in images."""
        with one_thread():
            parts = [self._look(torch.from_numpy(images_NCHW)) for images_NCHW in batches]
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return Views(*(np.concatenate(column) for column in columns))

    @torch.no_grad()
    def _look(self, eight_NCHW: Tensor) -> Views:
        unit_NCHW = to_unit(eight_NCHW).to(self.pair.device)
        logits_NK = self.pair.surety(unit_NCHW)
        says_NK, features_ND = self.judge.decisions(unit_NCHW)
        says = says_NK.cpu().numpy()
        small = functional.adaptive_avg_pool2d(unit_NCHW, min(self.pair.px, THUMB_PX))
        return Views(
            self._pass(logits_NK, self.threshold),
            self._pass(logits_NK, LIKELY),
            np.stack([shows(says, target) for target in self._judged], 1),
            features_ND.cpu().numpy(),
            small.flatten(1).cpu().numpy(),
        )

    def _pass(self, logits_NK: Tensor, threshold: float) -> Truth:
        passes = [self.pair.passes(logits_NK, wanted, threshold) for wanted in self._wanted]
        return torch.stack(passes, 1).cpu().numpy()

    def plain(self, seed: int, count: int) -> Views:
        """`count` images of plain sampling."""
        return self.look(self.images(prior(seed, np.arange(count), self.pair.dims)))

    def drawn(self, model: LatentModel, seed: int, number: int, count: int) -> Views:
        """`count` fresh images of target `number`, by the fitted model."""
        indices_N = np.arange(count) + number * count
        latents_ND = model.draw(seed, np.full(count, number), indices_N)
        return self.look(self.images(latents_ND))


# --- figures ----------------------------------------------------------------------------------


def share(hits_N: Truth) -> dict[str, Any]:
    """How often, of how many, with the exact 95% interval; None of none."""
    hits, count = int(hits_N.sum()), len(hits_N)
    if not count:
        return {"share": None, "ci_low": None, "ci_high": None, "n": 0}
    low, high = binomial_interval(hits, count)
    return {"share": hits / count, "ci_low": low, "ci_high": high, "n": count}


def pairwise(rows_ND: Floats) -> float | None:
    """Mean Euclidean distance of two different rows; None where there are too few."""
    count = len(rows_ND)
    if count < LEAST_IMAGES:
        return None
    wide = torch.from_numpy(rows_ND).double()
    total = sum(
        float(torch.cdist(wide[first : first + _PAIRS_AT_ONCE], wide).sum())
        for first in range(0, count, _PAIRS_AT_ONCE)
    )
    return total / (count * (count - 1))


def nearest(rows_ND: Floats) -> float | None:
    """Median distance from a row to its nearest other one; None where there are too few."""
    if len(rows_ND) < LEAST_IMAGES:
        return None
    wide, found = torch.from_numpy(rows_ND).double(), []
    for first in range(0, len(wide), _PAIRS_AT_ONCE):
        part = torch.cdist(wide[first : first + _PAIRS_AT_ONCE], wide)
        part[torch.arange(len(part)), torch.arange(len(part)) + first] = torch.inf
        found.append(part.amin(1))
    return float(torch.cat(found).median())


def coverage(reference_ND: Floats, rows_ND: Floats, other_ND: Floats) -> dict[str, Any]:
    """Coverage of the reference by two sets of equal number, and their ratio (k = 5)."""
    count = min(len(rows_ND), len(other_ND))
    if min(count, len(reference_ND)) < LEAST_IMAGES:
        return {"ours": None, "plain": None, "ratio": None, "n": count}
    ours, plain = (
        float(prdc(reference_ND, rows[:count], k=NEIGHBOURS)["coverage"])
        for rows in (rows_ND, other_ND)
    )
    ratio = ours / plain if plain else None
    return {"ours": ours, "plain": plain, "ratio": ratio, "n": count}


def of_target(number: int, drawn: Views, plain: Views) -> dict[str, Any]:
    """Hits, diversity and cost of one target's draws, beside those of rejection sampling."""
    kept = plain[plain.passes_NT[:, number]]
    count = min(len(kept), len(drawn))
    half = len(kept) // 2
    return {
        "judge_hits": share(drawn.hit_NT[:, number]),
        "judge_hits_of_accepted": share(drawn.hit_NT[drawn.passes_NT[:, number], number]),
        "judge_hits_of_rejection": share(kept.hit_NT[:, number]),
        "judge_hits_of_plain": share(plain.hit_NT[:, number]),
        "accepted_of_drawn": share(drawn.passes_NT[:, number]),
        "accepted_of_plain": share(plain.passes_NT[:, number]),
        "likely_of_drawn": share(drawn.likely_NT[:, number]),
        "likely_of_plain": share(plain.likely_NT[:, number]),
        "pairwise_features": _compared(pairwise, drawn.features_ND, kept.features_ND, count),
        "pairwise_pixels": _compared(pairwise, drawn.pixels_NP, kept.pixels_NP, count),
        "nearest_features": _compared(nearest, drawn.features_ND, kept.features_ND, count),
        "coverage": coverage(
            kept.features_ND[:half], drawn.features_ND[:half], kept.features_ND[half:]
        ),
    }


def _compared(measure: Any, ours_ND: Floats, plain_ND: Floats, count: int) -> dict[str, Any]:
    """A measure of both sets at the same number of rows."""
    ours, plain = measure(ours_ND[:count]), measure(plain_ND[:count])
    return {"ours": ours, "plain": plain, "ratio": ours / plain if plain else None, "n": count}


def mixed(drawn: Sequence[Views], weights_T: Sequence[float], count: int) -> Views | None:
    """Rows of every target's draws in proportion to the weights, `count` in all if there are so
    many; None where no target has weight."""
    total = sum(weights_T)
    if total <= 0:
        return None
    shares = [weight / total for weight in weights_T]
    # As many as the scarcest target allows.
    count = min([count, *(int(len(v) / s) for v, s in zip(drawn, shares, strict=True) if s > 0)])
    parts = [views[: round(s * count)] for views, s in zip(drawn, shares, strict=True)]
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Views(*(np.concatenate(column) for column in columns))
