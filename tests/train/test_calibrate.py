"""Calibration: what was drawn is found again; classes without samples stay put; thresholds."""

from __future__ import annotations

import numpy as np
import pytest

from medray.metrics import classification
from medray.train import calibrate

Z3, Z1 = np.zeros(3), np.zeros(1)


def drawn(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits and classes drawn with the probabilities that the logits say."""
    generator = np.random.default_rng(seed)
    logits_NK = generator.normal(size=(count, 3)) * 1.5
    p = np.exp(logits_NK) / np.exp(logits_NK).sum(1, keepdims=True)
    chosen = (p.cumsum(1) > generator.random((count, 1))).argmax(1)
    return logits_NK, np.eye(3, dtype=np.int8)[chosen]


def probabilities(logits_NK: np.ndarray, found: calibrate.Calibration) -> np.ndarray:
    scaled = logits_NK / found.temperature + found.bias_K
    return np.exp(scaled) / np.exp(scaled).sum(1, keepdims=True)


def test_logits_that_were_exaggerated_and_shifted_are_brought_back() -> None:
    logits_NK, truth_NK = drawn(4000)
    spoilt = 3 * (logits_NK - np.array([0.0, 0.7, -0.4]))
    found = calibrate.fit(spoilt, truth_NK, Z3, multi_label=False)
    assert found.temperature == pytest.approx(3, rel=0.08)
    assert np.allclose(found.bias_K - found.bias_K[0], [0, 0.7, -0.4], atol=0.15)
    before = calibrate.Calibration(1.0, Z3)
    truth = truth_NK.argmax(1)
    errors = [classification.ece(probabilities(spoilt, c), truth) for c in (before, found)]
    assert errors[1] < 0.03 < 0.1 < errors[0]


def test_findings_are_brought_back_and_unknown_ones_do_not_count() -> None:
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(4000, 1)) * 2
    truth = (1 / (1 + np.exp(-logits)) > generator.random((4000, 1))).astype(np.int8)
    found = calibrate.fit(2 * logits, truth, Z1, multi_label=True)
    assert found.temperature == pytest.approx(2, rel=0.1)
    hidden = np.concatenate([truth, np.full((500, 1), -1, np.int8)])
    nonsense = np.concatenate([2 * logits, np.full((500, 1), 50.0)])
    assert found.temperature.shape == (1,)
    again = calibrate.fit(nonsense, hidden, Z1, multi_label=True)
    assert again.temperature == pytest.approx(found.temperature, rel=1e-6)


def test_a_class_that_validation_lacks_keeps_the_bias_of_training() -> None:
    logits = np.zeros((200, 2))
    truth = np.concatenate([np.full((200, 1), -1), np.ones((200, 1))], 1).astype(np.int8)
    found = calibrate.fit(logits, truth, np.array([-1.3, 0.0]), multi_label=True)
    assert found.bias_K[0] == pytest.approx(-1.3, abs=1e-6)
    assert found.bias_K[1] > 0.5


def test_a_threshold_lies_between_the_neighbours_that_part_best() -> None:
    p = np.array([[0.1], [0.2], [0.3], [0.4], [0.9]])
    truth = np.array([[0], [0], [1], [1], [1]], np.int8)
    assert calibrate.thresholds(p, truth, np.array([0.5]))[0] == pytest.approx(0.25)
    equal = np.array([[0.4], [0.4], [0.4]])
    cut = calibrate.thresholds(equal, np.array([[0], [1], [1]], np.int8), np.array([0.5]))[0]
    assert cut < 0.4


@pytest.mark.parametrize("truth", [[[0], [0]], [[1], [1]], [[-1], [-1]]])
def test_a_threshold_without_both_kinds_is_the_one_given(truth: list[list[int]]) -> None:
    p = np.array([[0.2], [0.8]])
    assert calibrate.thresholds(p, np.array(truth, np.int8), np.array([0.37]))[0] == 0.37
