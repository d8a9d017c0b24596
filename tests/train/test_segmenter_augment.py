"""Augmentation of pairs: image and mask move alike, by address, no further than asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medray.train.segmenter_augment import AugmentPairs
from medray.train.segmenter_config import SegmenterConfig

NOTHING = {"rotate_deg": 0, "shift": 0, "shear": 0, "zoom": 0, "elastic": 0}
CPU = torch.device("cpu")


def augment(seed: int = 0, **named: float) -> AugmentPairs:
    return AugmentPairs(SegmenterConfig.model_validate({"seed": seed, **named}), CPU)


def pairs(count: int, px: int = 48) -> tuple[Tensor, Tensor]:
    """A bright ellipse off the middle, and its mask."""
    y, x = torch.meshgrid(torch.arange(px), torch.arange(px), indexing="ij")
    mask = (((x - 0.6 * px) / 9) ** 2 + ((y - 0.45 * px) / 5) ** 2 < 1).float()
    mask_N1HW = mask.expand(count, 1, px, px).clone()
    return mask_N1HW * 1.6 - 0.8, mask_N1HW


def centres(mask_N1HW: Tensor) -> Tensor:
    """Mean row and column of each mask, (N, 2)."""
    return torch.stack([mask[0].nonzero().float().mean(0) for mask in mask_N1HW])


@pytest.mark.parametrize(
    "named", [{}, {"elastic": 0.0}, {"mirror": True}, {"rotate_deg": 90}], ids=str
)
def test_the_mask_stays_on_what_it_marks(named: dict[str, float]) -> None:
    images, masks = pairs(24)
    moved, moved_masks = augment(**named)(images, masks, np.arange(24))
    assert moved.shape == images.shape and moved_masks.shape == masks.shape
    assert set(moved_masks.unique().tolist()) == {0.0, 1.0}
    # Half way between inside and outside is where the mask's edge lies.
    agree = ((moved > 0) == (moved_masks > 0)).float().mean((1, 2, 3))
    assert float(agree.min()) > 0.995
    assert not torch.equal(moved_masks, masks)


def test_an_image_is_changed_by_its_number_and_the_seed_alone() -> None:
    images, masks = pairs(6)
    whole = augment()(images, masks, np.arange(10, 16))
    part = augment()(images[:2], masks[:2], np.arange(13, 15))
    assert torch.equal(whole[0][3:5], part[0]) and torch.equal(whole[1][3:5], part[1])
    assert len({image.numpy().tobytes() for image in whole[0]}) == 6
    other = augment(seed=1)(images, masks, np.arange(10, 16))
    assert not torch.equal(whole[0], other[0])


def test_nothing_asked_for_changes_nothing() -> None:
    images, masks = pairs(3)
    same, same_masks = augment(**NOTHING)(images, masks, np.arange(3))
    assert torch.equal(same, images) and torch.equal(same_masks, masks)


def test_a_mirror_turns_half_of_the_images_and_nothing_else() -> None:
    images, masks = pairs(40)
    turned, _ = augment(**NOTHING, mirror=True)(images, masks, np.arange(40))
    kept = [torch.allclose(a, b, atol=1e-4) for a, b in zip(turned, images, strict=True)]
    flipped = [torch.allclose(a, b.flip(2), atol=1e-4) for a, b in zip(turned, images, strict=True)]
    assert all(a != b for a, b in zip(kept, flipped, strict=True)) and 10 < sum(kept) < 30


def test_shifts_keep_within_their_share_and_use_it() -> None:
    images, masks = pairs(200)
    moved = centres(augment(**{**NOTHING, "shift": 0.1})(images, masks, np.arange(200))[1])
    off = moved - centres(masks)
    assert 3.8 < float(off.abs().max()) < 4.8 + 0.6
    assert float(off.mean(0).abs().max()) < 0.6


def test_zoom_changes_the_area_within_its_share_and_shear_does_not() -> None:
    images, masks = pairs(100)
    zoomed = augment(**{**NOTHING, "zoom": 0.1})(images, masks, np.arange(100))[1]
    share = zoomed.sum((1, 2, 3)) / masks.sum((1, 2, 3))
    assert 0.76 < float(share.min()) < 0.9 and 1.1 < float(share.max()) < 1.28
    sheared = augment(**{**NOTHING, "shear": 0.05})(images, masks, np.arange(100))[1]
    share = sheared.sum((1, 2, 3)) / masks.sum((1, 2, 3))
    assert 0.93 < float(share.min()) and float(share.max()) < 1.07


def test_an_elastic_warp_bends_and_stays_smooth() -> None:
    warp = augment(**{**NOTHING, "elastic": 0.03})
    bent_N2HW = warp._bent(np.arange(50), 48)
    assert 0.6 * 0.03 * 48 < float(bent_N2HW.abs().max()) < 1.8 * 0.03 * 48
    assert float((bent_N2HW[..., 1:] - bent_N2HW[..., :-1]).abs().max()) < 0.5
