"""An adversarial step is a list of named phases; a phase moves one network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor, nn

from medray.dist.engine import Engine

Inputs = TypeVar("Inputs")


@dataclass(frozen=True)
class Phase(Generic[Inputs]):
    """`loss` of the step's inputs, the engine that moves the one network, and who stands still.

    `loss` gives the loss and the scalars to report, all on the device.
    """

    name: str
    engine: Engine
    frozen: tuple[nn.Module, ...]
    loss: Callable[[Inputs], tuple[Tensor, dict[str, Tensor]]]


def run(phases: list[Phase[Inputs]], inputs: Inputs) -> dict[str, Tensor]:
    """Run the phases in order; returns their scalars, on the device, without a host sync."""
    scalars: dict[str, Tensor] = {}
    for phase in phases:
        with standing_still(phase.frozen):
            phase.engine.zero_grad()
            loss, reported = phase.loss(inputs)
            phase.engine.backward(loss)
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
