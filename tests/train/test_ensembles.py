"""Members weighed by validation: the better one counts more, one that is not there not at all."""

from __future__ import annotations

import numpy as np
import pytest

from medray.train import ensembles

THRESHOLDS_MK = np.full((2, 1), 0.5)


def members(exams: int, good: float, poor: float) -> tuple[np.ndarray, np.ndarray]:
    """What two members say of one finding, right so often."""
    generator = np.random.default_rng(3)
    truth_NK = (generator.random((exams, 1)) < 0.5).astype(np.int8)
    said = []
    for share in (good, poor):
        right = generator.random((exams, 1)) < share
        said.append(np.where(right == (truth_NK == 1), 0.8, 0.2))
    return np.stack(said), truth_NK


def test_weights_by_accuracy_are_the_published_ones() -> None:
    said_MNK, truth_NK = members(2000, 0.9, 0.7)
    weights_MK = ensembles.by_accuracy(said_MNK, truth_NK, THRESHOLDS_MK)
    right_M = ((said_MNK >= 0.5) == (truth_NK == 1)).mean((1, 2))
    wanted_M = np.log(right_M / (1 - right_M))
    np.testing.assert_allclose(weights_MK[:, 0], wanted_M / wanted_M.sum(), rtol=2e-3)


def test_a_member_that_is_worse_than_chance_counts_for_nothing() -> None:
    said_MNK, truth_NK = members(400, 0.9, 0.2)
    assert ensembles.by_accuracy(said_MNK, truth_NK, THRESHOLDS_MK)[:, 0].tolist() == [1, 0]
    said_MNK, truth_NK = members(400, 0.2, 0.2)
    assert ensembles.by_accuracy(said_MNK, truth_NK, THRESHOLDS_MK)[:, 0].tolist() == [0.5, 0.5]


def test_weights_by_log_loss_are_at_its_minimum() -> None:
    said_MNK, truth_NK = members(500, 0.85, 0.75)
    best = ensembles.by_log_loss(said_MNK, truth_NK, THRESHOLDS_MK)[0, 0]

    def loss(first: float) -> float:
        weights_MK = np.array([[first], [1 - first]])
        return ensembles.log_loss(ensembles.combined(said_MNK, weights_MK), truth_NK)

    grid = np.linspace(0, 1, 201)
    assert best == pytest.approx(grid[int(np.argmin([loss(w) for w in grid]))], abs=0.02)


def test_who_did_not_see_an_exam_is_left_out_of_it() -> None:
    said_MNK = np.array([[[0.9], [np.nan], [np.nan]], [[0.1], [0.3], [np.nan]]])
    weights_MK = np.array([[0.75], [0.25]])
    found = ensembles.combined(said_MNK, weights_MK)[:, 0]
    np.testing.assert_allclose(found, [0.7, 0.3, np.nan])
    alone = ensembles.combined(said_MNK, np.array([[1.0], [0.0]]))[:, 0]
    np.testing.assert_allclose(alone, [0.9, 0.3, np.nan])


def test_the_way_is_chosen_on_exams_that_its_weights_were_not_made_of() -> None:
    said_MNK, truth_NK = members(60, 0.95, 0.3)
    way, weights_MK, losses = ensembles.chosen(said_MNK, truth_NK, THRESHOLDS_MK, 0)
    assert way in ("accuracy", "log-loss") and losses["equal"] > losses[way]
    assert weights_MK[0, 0] > 0.8 and set(losses) == set(ensembles.WAYS)
    unknown_NK = np.full_like(truth_NK, -1)
    none = ensembles.by_log_loss(said_MNK, unknown_NK, THRESHOLDS_MK)
    assert none[:, 0].tolist() == [0.5, 0.5]
