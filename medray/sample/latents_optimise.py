"""Latent class optimisation: latents moved until a frozen classifier sees what is wanted.

Segal, Rubin, Rubin, Pantanowitz (arXiv 2010.03975) search a label-free generator's latents for
wanted labels; objective, steps and regulariser are not published. Here: Adam on the latents alone,
each for itself, on cross-entropy to the wanted label vector, a Gaussian shell and an anchor.

- Shell: a latent of D normal numbers lies near |z| = sqrt(D). The progressive generator normalises
  its latent, so only the direction counts there; the term keeps the length where a fit needs it.
- Against collapse: a latent that passes at its start is taken as it is, any other stops moving the
  moment it passes, and the anchor draws it back to its own start, so that the least of it changes.

A chunk is a function of (seed, target, chunk number) and the settings alone. In it, a fixed number
of slots move together; a slot whose latent has passed (or used up its steps) takes the next one.

Shape letters: N latents of a chunk, B slots, D latent dimensions, K classes, A accepted latents,
T steps.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from torch import Tensor
from torch.nn import functional

from medray import rng
from medray.errors import DataError, UsageError
from medray.models.classifier import Classifier
from medray.models.pggan import Generator
from medray.sample.images import one_thread
from medray.sample.latents import Floats, Target

# A pass is one image through generator and classifier; a backward pass counts as two forward ones.
FORWARD, BACKWARD = 1, 2
BETAS, EPSILON = (0.9, 0.99), 1e-8


@dataclass(frozen=True)
class Settings:
    """How latents are moved, and when one is accepted.

    `threshold`: the least probability of the wanted label, of every finding where there are several
    (`Pair.surety` says which probability). `shell` and `anchor` weigh the terms beside the
    cross-entropy; the anchor's weight falls to 0 with the steps.
    """

    steps: int = 100
    lr: float = 0.05
    threshold: float = 0.9
    slots: int = 32
    restarts: int = 128
    shell: float = 1.0
    anchor: float = 1.0


class Pair:
    """A frozen generator, run at `px` (none: its last resolution), and the classifier that looks.

    UsageError where the classifier does not take such images.
    """

    def __init__(
        self,
        generator: Generator,
        classifier: Classifier,
        *,
        px: int | None = None,
        generator_name: str = "",
        classifier_name: str = "",
    ) -> None:
        self.generator = generator.eval().requires_grad_(False)
        self.classifier = classifier.eval().requires_grad_(False)
        self.names = (generator_name or "the generator", classifier_name or "the classifier")
        self.px = px or self.generator.resolutions[-1]
        self._check()

    def _check(self) -> None:
        made = len(self.generator.get_parameter(f"rgb{self.px}.weight"))
        seen, seen_px = self.classifier.channels, self.classifier.size_px
        if made != seen:
            raise UsageError(
                f"{self.names[0]} makes images of {made} channel(s), {self.names[1]} takes {seen}",
                hint="train both on the same set",
            )
        if self.px < seen_px:
            raise UsageError(
                f"{self.names[0]} makes images of {self.px} px, {self.names[1]} looks at "
                f"{seen_px} px",
                hint=f"give a classifier of {self.px} px at most",
            )

    @property
    def device(self) -> torch.device:
        """Where both are."""
        device: torch.device = next(self.generator.parameters()).device
        return device

    @property
    def dims(self) -> int:
        """Latent dimensions."""
        return int(self.generator.latent_dims)

    def images(self, latents_ND: Tensor) -> Tensor:
        """(N, C, px, px) in [-1, 1]; DataError MR-D042 where the generator gives no numbers."""
        images_NCHW: Tensor = self.generator(latents_ND, self.px, 1.0)
        if not torch.isfinite(images_NCHW).all():
            raise DataError(
                f"{self.names[0]} gives images that are not finite",
                code="MR-D042",
                hint="take an earlier checkpoint: its weights are damaged or it has diverged",
            )
        return images_NCHW.clamp(-1, 1)

    def logits(self, latents_ND: Tensor) -> Tensor:
        """`surety` of the images that latents make."""
        return self.surety(self.images(latents_ND))

    def surety(self, images_NCHW: Tensor) -> Tensor:
        """Calibrated logits (N, K) with the border of the classifier's decision at zero.

        Logits calibrated for classes as frequent as they are can leave a rare one below 1/2 in
        every image that shows it. So they are shifted to where the classifier decides: classes
        counting alike where it gives one, each finding's threshold where it gives many. DataError
        MR-D043 where it gives no numbers.
        """
        classifier = self.classifier
        logits_NK: Tensor = classifier(images_NCHW) / classifier.temperature
        if classifier.multi_label:
            logits_NK = logits_NK + classifier.bias - torch.logit(classifier.thresholds)
        if not torch.isfinite(logits_NK).all():
            raise DataError(
                f"{self.names[1]} gives logits that are not finite",
                code="MR-D043",
                hint="train it again: its weights are damaged or it has diverged",
            )
        return logits_NK

    def wanted_of(self, target: Target) -> Tensor:
        """The target's label vector (K,)."""
        wanted = [float(target.wanted[name]) for name in self.classifier.classes]
        return torch.tensor(wanted, device=self.device)

    def probability(self, logits_NK: Tensor, wanted_K: Tensor) -> Tensor:
        """(N,) that the wanted label is right: of the least sure finding where there are several,
        of the least sure absence where none is wanted."""
        if not self.classifier.multi_label:
            return (functional.softmax(logits_NK, 1) * wanted_K).sum(1)
        present_NK = torch.sigmoid(logits_NK)
        if not wanted_K.any():
            return (1 - present_NK).amin(1)
        return present_NK[:, wanted_K > 0].amin(1)

    def passes(self, logits_NK: Tensor, wanted_K: Tensor, threshold: float) -> Tensor:
        """(N,) whether the wanted findings have the threshold's probability and no other is seen.

        Where none is wanted, none may be seen.
        """
        sure_N = self.probability(logits_NK, wanted_K) >= threshold
        if not self.classifier.multi_label:
            return sure_N
        none_else_N = (logits_NK[:, wanted_K == 0] < 0).all(1)
        return none_else_N & sure_N if wanted_K.any() else none_else_N

    def mismatch(self, logits_NK: Tensor, wanted_K: Tensor) -> Tensor:
        """Cross-entropy (N,) to the wanted label, summed over several labels."""
        wanted_NK = wanted_K.expand_as(logits_NK)
        if not self.classifier.multi_label:
            return functional.cross_entropy(logits_NK, wanted_NK, reduction="none")
        return functional.binary_cross_entropy_with_logits(
            logits_NK, wanted_NK, reduction="none"
        ).sum(1)


@dataclass
class Chunk:
    """What a chunk of N starts has given.

    `restarts_A` are the numbers of the starts that were accepted, in order, `steps_A` how far they
    were moved, `probabilities_A` what the classifier says; `loss_T` and `moved_T` are the losses'
    sum and the number of latents at each step.
    """

    latents_AD: Floats
    restarts_A: NDArray[np.int64]
    steps_A: NDArray[np.int64]
    probabilities_A: Floats
    starts: int
    passes: int
    best_refused: float
    loss_T: NDArray[np.float64]
    moved_T: NDArray[np.int64]

    def to_bytes(self, plan_hash: str) -> bytes:
        """As safetensors that name the plan they belong to."""
        fields = vars(self)
        tensors = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
        rest = {name: value for name, value in fields.items() if name not in tensors}
        return bytes(save_tensors(tensors, {"medray": json.dumps({"plan": plan_hash, **rest})}))

    @classmethod
    def from_bytes(cls, data: bytes, plan_hash: str) -> Chunk | None:
        """What `to_bytes` wrote; None where it belongs to another plan or is damaged."""
        try:
            length = int.from_bytes(data[:8], "little")
            rest = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["medray"])
            if rest.pop("plan") != plan_hash:
                return None
            fields: dict[str, Any] = {**load_tensors(data), **rest}
            return cls(**fields)
        except (ValueError, KeyError, TypeError, SafetensorError):
            return None


@dataclass
class _Slots:
    """The latents that move, each with its own Adam."""

    z_BD: Tensor
    start_BD: Tensor
    numbers_B: Tensor
    steps_B: Tensor
    mean_BD: Tensor
    square_BD: Tensor

    @classmethod
    def of(cls, starts_BD: Tensor, numbers_B: Tensor) -> _Slots:
        zeros = torch.zeros_like(starts_BD)
        steps_B = torch.zeros_like(numbers_B)
        return cls(starts_BD.clone(), starts_BD, numbers_B, steps_B, zeros, zeros.clone())

    def keep(self, rows_B: Tensor, fresh: _Slots) -> _Slots:
        """The chosen slots, and new ones behind them."""
        pairs = zip(vars(self).values(), vars(fresh).values(), strict=True)
        return _Slots(*(torch.cat([old[rows_B], new]) for old, new in pairs))

    def step(self, gradient_BD: Tensor, lr: float) -> None:
        """One step of Adam (Kingma and Ba 2015), each row with its own count."""
        self.steps_B = self.steps_B + 1
        self.mean_BD.lerp_(gradient_BD, 1 - BETAS[0])
        self.square_BD.lerp_(gradient_BD.square(), 1 - BETAS[1])
        count_B1 = self.steps_B[:, None].to(gradient_BD.dtype)
        mean_BD = self.mean_BD / (1 - BETAS[0] ** count_B1)
        square_BD = self.square_BD / (1 - BETAS[1] ** count_B1)
        self.z_BD = self.z_BD - lr * mean_BD / (square_BD.sqrt() + EPSILON)


@dataclass
class _Found:
    """What is known so far: accepted latents by the number of their start."""

    accepted: dict[int, tuple[Floats, int, float]] = field(default_factory=dict)
    best_refused: float = 0.0
    passes: int = 0

    def accept(self, z_AD: Tensor, numbers_A: Tensor, steps_A: Tensor, p_A: Tensor) -> None:
        rows = zip(
            z_AD.cpu().numpy(), numbers_A.tolist(), steps_A.tolist(), p_A.tolist(), strict=True
        )
        self.accepted |= {number: (z_D, steps, p) for z_D, number, steps, p in rows}

    def refuse(self, p_R: Tensor) -> None:
        self.best_refused = max([self.best_refused, *p_R.tolist()])


def starts_of(seed: int, target: Target, chunk: int, settings: Settings, dims: int) -> Floats:
    """The latents (N, D) that a chunk starts from."""
    first = chunk * settings.restarts
    numbers_N = np.arange(first, first + settings.restarts)
    return rng.normals(seed, f"sample.optimise.{target.name}", numbers_N, dims)


def optimise(pair: Pair, target: Target, seed: int, chunk: int, settings: Settings) -> Chunk:
    """Moves the latents of one chunk until each is accepted or has used up its steps."""
    # On another number of threads convolutions sum in another order.
    with one_thread():
        return _optimise(pair, target, seed, chunk, settings)


def _optimise(pair: Pair, target: Target, seed: int, chunk: int, settings: Settings) -> Chunk:
    starts_ND = torch.from_numpy(starts_of(seed, target, chunk, settings, pair.dims))
    starts_ND = starts_ND.to(pair.device)
    wanted_K, found = pair.wanted_of(target), _Found()
    waiting_N = _screen(pair, starts_ND, wanted_K, settings, found)
    loss_T = np.zeros(settings.steps + 1)
    moved_T = np.zeros(settings.steps + 1, np.int64)
    slots = _take(starts_ND, waiting_N[: settings.slots])
    waiting_N = waiting_N[settings.slots :]
    while len(slots.numbers_B):
        loss_B, p_B, passed_B, gradient_BD = _gradient(pair, slots, wanted_K, settings)
        found.passes += len(p_B) * (FORWARD + BACKWARD)
        np.add.at(loss_T, slots.steps_B.cpu().numpy(), loss_B.cpu().numpy())
        np.add.at(moved_T, slots.steps_B.cpu().numpy(), 1)
        spent_B = ~passed_B & (slots.steps_B >= settings.steps)
        found.accept(*(t[passed_B] for t in (slots.z_BD, slots.numbers_B, slots.steps_B, p_B)))
        found.refuse(p_B[spent_B])
        slots.step(gradient_BD, settings.lr)
        gone = int((passed_B | spent_B).sum())
        if gone:
            slots = slots.keep(~(passed_B | spent_B), _take(starts_ND, waiting_N[:gone]))
            waiting_N = waiting_N[gone:]
    return _chunk(found, chunk * settings.restarts, settings.restarts, pair.dims, loss_T, moved_T)


def _take(starts_ND: Tensor, numbers_B: Tensor) -> _Slots:
    return _Slots.of(starts_ND[numbers_B], numbers_B)


def _screen(
    pair: Pair, starts_ND: Tensor, wanted_K: Tensor, settings: Settings, found: _Found
) -> Tensor:
    """Accepts the starts that pass as they are; the numbers of the others."""
    left = []
    numbers_N = torch.arange(len(starts_ND), device=starts_ND.device)
    for first in range(0, len(starts_ND), settings.slots):
        numbers_B = numbers_N[first : first + settings.slots]
        with torch.no_grad():
            logits_BK = pair.logits(starts_ND[numbers_B])
        found.passes += len(logits_BK) * FORWARD
        p_B = pair.probability(logits_BK, wanted_K)
        passed_B = pair.passes(logits_BK, wanted_K, settings.threshold)
        accepted_A = numbers_B[passed_B]
        found.accept(starts_ND[accepted_A], accepted_A, accepted_A * 0, p_B[passed_B])
        left.append(numbers_B[~passed_B])
    return torch.cat(left)


def _gradient(
    pair: Pair, slots: _Slots, wanted_K: Tensor, settings: Settings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, probability, whether it passes, each (B,), and each slot's gradient (B, D)."""
    z_BD = slots.z_BD.requires_grad_(True)
    logits_BK = pair.logits(z_BD)
    length_B = z_BD.norm(dim=1) / pair.dims**0.5
    moved_B = (z_BD - slots.start_BD).square().mean(1)
    # Near its start while that may do; free in the end, where it may not.
    held_B = settings.anchor * (1 - slots.steps_B / settings.steps)
    loss_B = (
        pair.mismatch(logits_BK, wanted_K)
        + settings.shell * (length_B - 1).square()
        + held_B * moved_B
    )
    (gradient_BD,) = torch.autograd.grad(loss_B.sum(), z_BD)
    slots.z_BD = z_BD.detach()
    logits_BK = logits_BK.detach()
    p_B = pair.probability(logits_BK, wanted_K)
    passed_B = pair.passes(logits_BK, wanted_K, settings.threshold)
    return loss_B.detach(), p_B, passed_B, gradient_BD


def _chunk(
    found: _Found,
    first: int,
    starts: int,
    dims: int,
    loss_T: NDArray[np.float64],
    moved_T: NDArray[np.int64],
) -> Chunk:
    numbers = sorted(found.accepted)
    rows = [found.accepted[number] for number in numbers]
    return Chunk(
        latents_AD=np.array([z_D for z_D, _, _ in rows], np.float32).reshape(-1, dims),
        restarts_A=np.array(numbers, np.int64) + first,
        steps_A=np.array([steps for _, steps, _ in rows], np.int64),
        probabilities_A=np.array([p for _, _, p in rows], np.float32),
        starts=starts,
        passes=found.passes,
        best_refused=found.best_refused,
        loss_T=loss_T,
        moved_T=moved_T,
    )


def settings_record(settings: Settings) -> dict[str, Any]:
    """The settings as they stand in the plan."""
    return asdict(settings)
