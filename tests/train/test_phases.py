"""The order of a step: what is ahead is done while gradients travel, and changes no bit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from medray import rng
from medray.dist.context import local
from medray.records import Batch
from medray.train import phases
from medray.train.pggan import Pggan
from medray.train.pggan_config import PgganConfig


class Recorder:
    """An engine that writes down what is asked of it."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls

    def __getattr__(self, call: str) -> Any:
        return lambda *_: self.calls.append(f"{self.name} {call}")


def test_what_is_ahead_is_done_between_sending_and_stepping() -> None:
    calls: list[str] = []

    def loss(name: str) -> Any:
        def give(inputs: tuple[str, ...]) -> Any:
            calls.append(f"{name} loss of {'+'.join(inputs)}")
            return torch.zeros(()), {f"loss_{name}": torch.zeros(())}

        return give

    def ahead(inputs: tuple[str, ...]) -> tuple[str, ...]:
        calls.append("G ahead")
        return (*inputs, "fakes")

    engines = {name: Recorder(name, calls) for name in ("D", "G")}
    both: list[Any] = [
        phases.Phase("D", engines["D"], (), loss("D")),  # type: ignore[arg-type]
        phases.Phase("G", engines["G"], (), loss("G"), ahead),  # type: ignore[arg-type]
    ]
    assert set(phases.run(both, ("reals",))) == {"loss_D", "loss_G"}
    assert calls == [
        *("D zero_grad", "D loss of reals", "D backward", "D send", "G ahead", "D step"),
        *("G zero_grad", "G loss of reals+fakes", "G backward", "G send", "G step"),
    ]


def test_pieces_are_worked_off_before_their_mean_gradient_is_sent_and_nothing_is_ahead() -> None:
    calls: list[str] = []
    weight = torch.ones((), requires_grad=True)

    class Summed(Recorder):
        def backward(self, loss: torch.Tensor, *, more: bool = False) -> None:
            loss.backward()  # type: ignore[no-untyped-call]
            self.calls.append(f"{self.name} backward{' more' * more}")

    def loss(piece: float) -> Any:
        return weight * piece, {"loss": torch.tensor(piece)}

    def ahead(piece: float) -> float:
        raise AssertionError("what is ahead would be held through D's step")

    both: list[Any] = [
        phases.Phase("D", Summed("D", calls), (), loss),  # type: ignore[arg-type]
        phases.Phase("G", Summed("G", calls), (), loss, ahead),  # type: ignore[arg-type]
    ]
    scalars = phases.run(both, 1.0, 2.0, 6.0)
    assert calls == [
        f"{name} {call}"
        for name in "DG"
        for call in ("zero_grad", "backward more", "backward more", "backward", "send", "step")
    ]
    assert scalars["loss"] == pytest.approx(3.0)
    assert weight.grad is not None and float(weight.grad) == pytest.approx(2 * 3.0)


@pytest.mark.parametrize("loss", ["r1", "wgan-gp"])
def test_the_generators_images_ahead_of_the_discriminators_step_are_the_same_bits(
    loss: str,
) -> None:
    fields = {
        "final_px": 16,
        "start_px": 16,
        "latent_dims": 8,
        "batch": 4,
        "seed": 5,
        "loss": loss,
        "fmap_base": 128,
        "fmap_max": 16,
        "precision": "fp32",
    }
    config = PgganConfig.model_validate(fields)
    ahead, after = Pggan(config, local()), Pggan(config, local())
    after._phases = [dataclasses.replace(phase, ahead=None) for phase in after._phases]
    for images in range(0, 16, 4):
        numbers = images + np.arange(4)
        pixels = rng.bits(9, "test.images", numbers, 256).astype(np.uint8).reshape(4, 1, 16, 16)
        keys = tuple(f"train-{number:08d}" for number in numbers)
        batch = Batch(keys, pixels, np.zeros(4, np.int64), [{}] * 4, images)
        scalars = [gan.step(batch, images) for gan in (ahead, after)]
        assert all(torch.equal(scalars[0][name], scalars[1][name]) for name in scalars[1])
    states = ahead.state_dict(), after.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
