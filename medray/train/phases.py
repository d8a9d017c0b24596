"""An adversarial step is a list of named phases; a phase moves one network."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
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


def run(phases: list[Phase[Inputs]], inputs: Inputs) -> dict[str, Tensor]:
    """Run the phases in order; returns their scalars, on the device, without a host sync."""
    scalars: dict[str, Tensor] = {}
    for phase, following in itertools.zip_longest(phases, phases[1:]):
        with standing_still(phase.frozen):
            phase.engine.zero_grad()
            loss, reported = phase.loss(inputs)
            phase.engine.backward(loss)
            phase.engine.send()
        if following is not None and following.ahead is not None:
            inputs = following.ahead(inputs)
        phase.engine.step()
        scalars |= {name: value.detach() for name, value in reported.items()}
    return scalars


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
