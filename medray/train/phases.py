"""An adversarial step is a list of named phases; a phase moves one network."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor, nn

from medray.dist.engine import Engine

Inputs = TypeVar("Inputs")


@dataclass(frozen=True)
class Phase(Generic[Inputs]):
    """`loss` of the step's inputs, the engine that moves the one network, and who stands still.

    `loss` gives the loss and the scalars to report, all on the device. `ahead` does what of it the
    phase before cannot change, while that one's gradients travel: it adds to the inputs.
    """

    name: str
    engine: Engine
    frozen: tuple[nn.Module, ...]
    loss: Callable[[Inputs], tuple[Tensor, dict[str, Tensor]]]
    ahead: Callable[[Inputs], Inputs] | None = None


def run(phases: list[Phase[Inputs]], *pieces: Inputs) -> dict[str, Tensor]:
    """Run the phases in order; returns their scalars, on the device, without a host sync.

    The inputs come whole or in pieces of equal size. Of several, a phase works off one after
    another, so that the activations of one are held at a time, and steps by the mean.
    """
    scalars: dict[str, Tensor] = {}
    for phase, following in itertools.zip_longest(phases, phases[1:]):
        with standing_still(phase.frozen):
            phase.engine.zero_grad()
            reported = _gradients(phase, pieces)
            phase.engine.send()
        # What is done ahead is held until its phase: no pieces then.
        if following is not None and following.ahead is not None and len(pieces) == 1:
            pieces = (following.ahead(pieces[0]),)
        phase.engine.step()
        scalars |= reported
    return scalars


def _gradients(phase: Phase[Inputs], pieces: Sequence[Inputs]) -> dict[str, Tensor]:
    """Adds up the mean gradients of the pieces; the mean scalars."""
    sums: dict[str, Tensor] = {}
    for number, piece in enumerate(pieces, 1):
        loss, reported = phase.loss(piece)
        if len(pieces) == 1:
            phase.engine.backward(loss)
            return {name: value.detach() for name, value in reported.items()}
        phase.engine.backward(loss / len(pieces), more=number < len(pieces))
        for name, value in reported.items():
            part = value.detach() / len(pieces)
            sums[name] = sums[name] + part if name in sums else part
    return sums


@contextlib.contextmanager
def standing_still(modules: tuple[nn.Module, ...]) -> Iterator[None]:
    """No gradients for the weights of `modules` inside the block, forward passes included."""
    for module in modules:
        module.requires_grad_(False)
    try:
        yield
    finally:
        for module in modules:
            module.requires_grad_(True)
