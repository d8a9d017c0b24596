"""Augmentation: a function of the image's number; what is switched off changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medray.train.augment import Augment
from medray.train.classifier_config import ClassifierConfig

OFF = {"shift": 0, "rotate_deg": 0, "zoom": 0, "brightness": 0, "contrast": 0, "noise": 0}
NUMBERS = np.arange(70, 82)


def made(**named: object) -> Augment:
    config = ClassifierConfig.model_validate({"size_px": 32, **named})
    return Augment(config, 1, torch.device("cpu"))


def pictures(count: int = len(NUMBERS)) -> Tensor:
    """A smooth picture that is no mirror image of itself, many times."""
    rows = torch.linspace(-1, 1, 32)
    picture = 0.5 * torch.sin(3 * rows)[:, None] * torch.cos(2 * rows - 1)[None, :]
    return picture.expand(count, 1, 32, 32).clone()


def test_a_picture_depends_on_its_number_alone() -> None:
    augment, images = made(), pictures()
    whole = augment(images, NUMBERS)
    parts = torch.cat([augment(images[i : i + 4], NUMBERS[i : i + 4]) for i in (0, 4, 8)])
    assert torch.equal(whole, parts)
    assert torch.equal(whole, made()(images, NUMBERS))
    assert len({row.numpy().tobytes() for row in whole}) == len(NUMBERS)
    assert not torch.equal(whole, made(seed=1)(images, NUMBERS))


def test_with_everything_off_the_images_stay_as_they_are() -> None:
    images = pictures()
    assert torch.equal(made(**OFF)(images, NUMBERS), images)


@pytest.mark.parametrize("name", ["shift", "rotate_deg", "zoom", "brightness", "contrast", "noise"])
def test_each_part_changes_the_picture_a_little(name: str) -> None:
    amount = 10 if name == "rotate_deg" else 0.1
    changed = made(**{**OFF, name: amount})(pictures(), NUMBERS)
    gap = (changed - pictures()).abs().mean()
    assert 0.001 < float(gap) < 0.2
    assert float(changed.abs().max()) <= 1


def test_mirroring_flips_half_of_the_images_and_only_when_asked() -> None:
    numbers, images = np.arange(200), pictures(200)
    flipped = made(**{**OFF, "mirror": True})(images, numbers)
    is_flipped = [(row - images[0].flip(2)).abs().max() < 1e-4 for row in flipped]
    is_same = [(row - images[0]).abs().max() < 1e-4 for row in flipped]
    assert 70 < sum(is_flipped) < 130 and sum(is_flipped) + sum(is_same) == 200


def test_a_shift_moves_the_picture_by_a_share_of_its_width_at_most() -> None:
    images = torch.zeros(300, 1, 32, 32)
    images[:, :, 16, 16] = 1
    moved = made(**{**OFF, "shift": 0.25})(images, np.arange(300))
    places = [divmod(int(row.argmax()), 32) for row in moved]
    offsets = np.asarray(places) - 16
    assert 6 <= np.abs(offsets).max() <= 8 and abs(offsets.mean()) < 1
