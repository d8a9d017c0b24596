"""Scores of masks made of heat: by hand, at random, with intervals over patients."""

import numpy as np
import pytest

from medray.errors import UsageError
from medray.evaluate import heat_scores as scores


def masks(count=12, px=16):
    true = np.zeros((count, px, px), bool)
    true[:, 2:6, 2:6] = True
    return true


def test_dice_iou_and_the_pointing_game_are_those_by_hand():
    true, said = masks(2), masks(2)
    said[0] = False
    said[0, 2:6, 4:8] = True
    heat = said.astype(np.float32)
    heat[0, 3, 5] = 2
    heat[1, 0, 0] = 2
    found = scores.scored(said, true, heat)
    assert found.dice.tolist() == [0.5, 1.0] and found.iou.tolist() == [pytest.approx(1 / 3), 1.0]
    assert found.pointing.tolist() == [1.0, 0.0]
    nothing = scores.scored(~masks(2) & False, np.ones_like(true), np.zeros_like(heat))
    assert nothing.dice.tolist() == [0.0, 0.0]
    assert nothing.pointing.tolist() == [0.0, 0.0], "no heat points at nothing"


def test_masks_at_random_places_have_the_dice_of_chance():
    true = masks(200)
    found = scores.at_random(true, true, seed=0)
    share = 16 / 256
    assert found.dice.mean() == pytest.approx(share, abs=0.02)
    assert np.allclose(found.pointing, share)
    assert scores.scored(true, true, true.astype(np.float32)).dice.mean() == 1


def test_a_difference_is_paired_by_patient():
    rng = np.random.default_rng(0)
    base = rng.random(60)
    better = np.clip(base + 0.05, 0, 2)
    ways = {
        "gradcam": scores.Scored(better, better, better),
        "centre": scores.Scored(base, base, base),
    }
    patients = np.repeat([f"p{n}" for n in range(12)], 5)
    table = scores.table(ways, patients, seed=0, draws=200)
    assert table["gradcam"]["dice"]["low"] < table["gradcam"]["dice"]["estimate"]
    minus = scores.differences(ways, "gradcam", patients, seed=0, draws=200)
    assert list(minus) == ["centre"]
    assert minus["centre"]["dice"]["low"] == pytest.approx(0.05, abs=1e-9)
    spread = table["gradcam"]["dice"]["high"] - table["gradcam"]["dice"]["low"]
    assert spread > 0.05, "each by itself varies with the patients"


def test_one_patient_has_no_interval_and_no_image_no_score():
    one = {"gradcam": scores.Scored(np.ones(3), np.ones(3), np.ones(3))}
    found = scores.table(one, np.asarray(["p"] * 3), seed=0, draws=50)["gradcam"]["dice"]
    assert found == {"estimate": 1.0, "low": None, "high": None}
    with pytest.raises(UsageError, match="no image"):
        scores.joined([])
