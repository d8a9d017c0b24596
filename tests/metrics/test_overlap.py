"""Dice and IoU against sets of pixels, of empty masks, of patients as volumes."""

import numpy as np
import pytest

from medray.metrics import overlap


def masks(seed, count=7, px=6, share=0.3):
    return np.random.default_rng(seed).random((count, px, px)) < share


def test_dice_and_iou_equal_those_of_sets_of_pixels():
    said_NHW, true_NHW = masks(0), masks(1)
    found = overlap.of_masks(said_NHW, true_NHW)
    for number in range(7):
        said = {tuple(p) for p in np.argwhere(said_NHW[number])}
        true = {tuple(p) for p in np.argwhere(true_NHW[number])}
        assert found.dice()[number] == 2 * len(said & true) / (len(said) + len(true))
        assert found.iou()[number] == len(said & true) / len(said | true)


def test_two_empty_masks_agree_and_one_empty_mask_does_not():
    empty, some = np.zeros((1, 4, 4), bool), np.ones((1, 4, 4), bool)
    both = overlap.of_masks(empty, empty)
    assert both.dice() == both.iou() == 1.0
    for said, true in ((empty, some), (some, empty)):
        one = overlap.of_masks(said, true)
        assert one.dice() == one.iou() == 0.0


def test_a_patients_images_count_as_one_volume():
    said_NHW, true_NHW = masks(2), masks(3)
    groups_N = np.array(["b", "a", "b", "a", "b", "c", "a"])
    found = overlap.of_masks(said_NHW, true_NHW).by_group(groups_N)
    for number, name in enumerate("abc"):
        said, true = (m[groups_N == name].reshape(1, 1, -1) for m in (said_NHW, true_NHW))
        assert found.dice()[number] == overlap.of_masks(said, true).dice()[0]
    mean_of_images = overlap.of_masks(said_NHW, true_NHW).dice()[groups_N == "b"].mean()
    assert found.dice()[1] != mean_of_images


def test_parts_joined_are_the_whole_and_rows_can_be_chosen():
    whole = overlap.of_masks(masks(4), masks(5))
    parts = [overlap.of_masks(masks(4)[rows], masks(5)[rows]) for rows in (slice(3), slice(3, 7))]
    assert (overlap.joined(parts).dice() == whole.dice()).all()
    assert (whole.of(np.array([5, 5, 0])).iou() == whole.iou()[[5, 5, 0]]).all()


@pytest.mark.parametrize("said", [np.zeros((2, 4, 4)), np.zeros((4, 4), bool)])
def test_what_is_no_pair_of_masks_is_refused(said):
    with pytest.raises(ValueError, match="boolean"):
        overlap.of_masks(said, np.zeros((2, 4, 4), bool))
