"""A rank's part of a batch in pieces: the same step as one pass, to rounding, in float64."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from medray.dist.context import local
from medray.models import layers
from medray.train import pggan_config
from medray.train.pggan import StepInputs, pieces_of
from medray.train.rehearsal import rehearse
from tests.train.test_pggan_step import _batch, _config, _Double, double_images

__all__ = ["double_images"]

PART, PIECE = 12, 4
CLASSES = {
    "conditional": True,
    "classes": ("a", "b"),
    "class_counts": (4, 3),
    "diffaugment": ("tone", "translation", "cutout"),
    "mirror": True,
}
SMALL = {"final_px": 8, "start_px": 8}
CASES = [("r1", {}), ("wgan-gp", {}), ("r1", CLASSES)]


class Interleaved(_Double):
    """One pass over all images, ordered so that a group of the deviation is a piece.

    Groups are strided: with the pieces' images in turn, image i belongs to piece i mod pieces.
    """

    def _inputs(self, *given: Any) -> StepInputs:
        inputs = super()._inputs(*given)
        tensors = {
            field.name: value.unflatten(0, (-1, PIECE)).transpose(0, 1).flatten(0, 1)
            for field in fields(inputs)
            if isinstance(value := getattr(inputs, field.name), Tensor)
        }
        return replace(inputs, **tensors)


def trained(kind: type[_Double], loss: str, more: dict[str, Any], pieces: bool) -> dict[str, Any]:
    """State and scalars after two steps, the second of which has no R1."""
    at_once = {"images_at_once": PIECE} if pieces else {}
    config = _config(loss, batch=PART, r1_every=2, lr=1e-12, **SMALL, **more, **at_once)
    gan = kind(config, local())
    scalars = [gan.step(_batch(n * PART, images=PART), n * PART) for n in range(2)]
    return {
        **{name: value.clone() for name, value in gan.state_dict().items()},
        **{f"scalar {n} {name}": v for n, step in enumerate(scalars) for name, v in step.items()},
    }


def gap(one: dict[str, Any], other: dict[str, Any], part: str = "") -> float:
    assert one.keys() == other.keys()
    names = [name for name in one if part in name]
    assert len(names) > 8
    return max(
        float((one[n] - other[n]).abs().max() / other[n].abs().max().clamp_min(1e-12))
        for n in names
    )


@pytest.mark.parametrize(("loss", "more"), CASES, ids=["r1", "wgan-gp", "classes"])
def test_pieces_give_the_gradients_scalars_and_average_of_one_pass(
    loss: str, more: dict[str, Any], double_images: None
) -> None:
    found = trained(_Double, loss, more, pieces=True)
    wanted = trained(Interleaved, loss, more, pieces=False)
    assert "scalar 0 penalty" in found and ("scalar 1 penalty" in found) == (loss == "wgan-gp")
    assert gap(found, wanted) < 1e-7
    # The control: one pass in the usual order has other groups, and other gradients.
    usual = trained(_Double, loss, more, pieces=False)
    assert gap(usual, wanted, "adam_d.exp_avg.") > 1e-3


def test_pieces_are_views_of_consecutive_images_and_one_piece_is_the_inputs_themselves() -> None:
    gan = _Double(_config("r1", **SMALL), local())
    inputs = gan._inputs(_batch(0), 0, gan.config.growth_at(0))
    assert pieces_of(inputs, 8) == [inputs] and pieces_of(inputs, 8)[0] is inputs
    first, second = pieces_of(inputs, 4)
    assert torch.equal(torch.cat([first.z_d_NL, second.z_d_NL]), inputs.z_d_NL)
    assert second.real_NCHW.data_ptr() == inputs.real_NCHW[4:].data_ptr()
    assert second.r1_weight == inputs.r1_weight and second.draws_d_NA is None
    with pytest.raises(AssertionError, match="8 images are not whole pieces of 3"):
        pieces_of(inputs, 3)


def test_the_configuration_knows_the_group_of_the_deviation() -> None:
    assert pggan_config.STDDEV_GROUP == layers.STDDEV_GROUP


def test_a_step_in_pieces_is_reckoned_with_less_memory_and_the_same_operations() -> None:
    whole = _config("r1", batch=32, **SMALL, precision="fp32")
    pieces = whole.model_copy(update={"images_at_once": 4})
    (one,), (other,) = rehearse(whole).costs, rehearse(pieces).costs
    assert other.with_penalty.peak_bytes < one.with_penalty.peak_bytes / 2
    assert other.images == one.images == 32
    assert other.with_penalty.flops == pytest.approx(one.with_penalty.flops, rel=0.01)
