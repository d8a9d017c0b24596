"""Scores of a classifier against pairs counted one by one, scikit-learn, and known answers."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from medray.metrics import UndefinedMetricError, classification


@pytest.fixture(scope="module")
def said():
    generator = np.random.default_rng(0)
    truth_N = generator.integers(0, 3, 200)
    logits_NK = generator.normal(size=(200, 3)) + np.eye(3)[truth_N]
    return np.exp(logits_NK) / np.exp(logits_NK).sum(1, keepdims=True), truth_N


def auroc_loop(scores, truth):
    wins = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high, positive in zip(scores, truth, strict=True)
        if positive
        for low, other in zip(scores, truth, strict=True)
        if not other
    ]
    return sum(wins) / len(wins)


@pytest.mark.parametrize("levels", [1, 2, 5, 10**6])
@pytest.mark.parametrize("count", [2, 3, 57])
def test_auroc_counts_pairs_and_ties_half(levels, count):
    generator = np.random.default_rng(levels + count)
    scores_N = generator.integers(0, levels, count) / levels
    truth_N = np.arange(count) % 2
    expected = auroc_loop(scores_N, truth_N)
    assert classification.auroc(scores_N, truth_N) == pytest.approx(expected, abs=1e-12)
    expected = sklearn_metrics.roc_auc_score(truth_N, scores_N)
    assert classification.auroc(scores_N, truth_N == 1) == pytest.approx(expected, abs=1e-12)


def test_auroc_of_one_class_is_an_error_and_not_zero():
    for truth_N in (np.zeros(4, int), np.ones(4, int)):
        with pytest.raises(UndefinedMetricError, match="MR-D050.*needs both classes"):
            classification.auroc(np.arange(4.0), truth_N)


def test_auroc_by_class_leaves_open_what_is_undefined(said):
    probabilities_NK, truth_N = said
    here = truth_N < 2
    found = classification.auroc_by_class(probabilities_NK[here], truth_N[here])
    assert found[2] is None
    expected = sklearn_metrics.roc_auc_score(truth_N[here] == 1, probabilities_NK[here, 1])
    assert found[1] == pytest.approx(expected)


def test_confusion_and_class_scores_equal_scikit_learn(said):
    probabilities_NK, truth_N = said
    predicted_N = probabilities_NK.argmax(1)
    found_KK = classification.confusion(predicted_N, truth_N, 3)
    np.testing.assert_array_equal(found_KK, sklearn_metrics.confusion_matrix(truth_N, predicted_N))
    wanted = sklearn_metrics.precision_recall_fscore_support(truth_N, predicted_N)
    for score, *expected in zip(classification.by_class(found_KK), *wanted, strict=True):
        assert (score.precision, score.recall, score.f1, score.samples) == pytest.approx(expected)
    expected = sklearn_metrics.balanced_accuracy_score(truth_N, predicted_N)
    assert classification.balanced_accuracy(predicted_N, truth_N, 3) == pytest.approx(expected)
    assert classification.accuracy(predicted_N, truth_N) == np.mean(predicted_N == truth_N)


def test_a_class_without_samples_or_predictions_has_no_score_but_is_not_zero():
    found = classification.by_class(classification.confusion(np.array([0, 0]), np.array([0, 1]), 3))
    assert (found[0].precision, found[0].recall) == (0.5, 1.0)
    assert (found[1].precision, found[1].recall, found[1].f1) == (None, 0.0, 0.0)
    assert (found[2].precision, found[2].recall, found[2].f1) == (None, None, None)
    with pytest.raises(UndefinedMetricError, match=r"no samples of classes \[2\]"):
        classification.balanced_accuracy(np.array([0, 0]), np.array([0, 1]), 3)


def test_brier_and_log_loss_equal_scikit_learn(said):
    probabilities_NK, truth_N = said
    expected = sklearn_metrics.log_loss(truth_N, probabilities_NK)
    assert classification.log_loss(probabilities_NK, truth_N) == pytest.approx(expected)
    expected = np.mean(
        [
            sum((p - (k == t)) ** 2 for k, p in enumerate(row))
            for row, t in zip(probabilities_NK, truth_N, strict=True)
        ]
    )
    assert classification.brier(probabilities_NK, truth_N) == pytest.approx(expected)
    one_N, hit_N = probabilities_NK[:, 1], truth_N == 1
    expected = sklearn_metrics.brier_score_loss(hit_N, one_N)
    assert classification.brier(one_N, hit_N) == pytest.approx(expected)
    expected = sklearn_metrics.log_loss(hit_N, one_N)
    assert classification.log_loss(one_N, hit_N) == pytest.approx(expected)


def test_certainty_that_was_wrong_costs_a_lot_but_not_infinity():
    assert classification.log_loss(np.array([0.0]), np.array([1])) == pytest.approx(27.63, abs=0.01)


def test_calibration_error_is_the_gap_of_said_and_seen():
    # 0.75 said of four, two were so; 0.25 said of four, one was so: gaps 0.25 and 0.
    said_N, so_N = np.repeat([0.75, 0.25], 4), np.array([1, 1, 0, 0, 1, 0, 0, 0])
    assert classification.ece(said_N, so_N) == pytest.approx(0.125)
    found = classification.reliability(said_N, so_N)
    np.testing.assert_allclose(found.said_B, [0.25, 0.75])
    np.testing.assert_allclose(found.seen_B, [0.25, 0.5])
    np.testing.assert_array_equal(found.counts_B, [4, 4])


def test_calibration_of_several_classes_is_that_of_the_likeliest(said):
    probabilities_NK, truth_N = said
    hit_N = probabilities_NK.argmax(1) == truth_N
    assert classification.ece(probabilities_NK, truth_N) == pytest.approx(
        classification.ece(probabilities_NK.max(1), hit_N)
    )


def test_probabilities_that_are_true_are_calibrated_and_bolder_ones_are_not():
    generator = np.random.default_rng(1)
    said_N = generator.uniform(size=40_000)
    so_N = generator.uniform(size=40_000) < said_N
    assert classification.ece(said_N, so_N) < 0.01
    bolder_N = said_N**2 / (said_N**2 + (1 - said_N) ** 2)
    assert classification.ece(bolder_N, so_N) > 0.05


BAD = [
    (lambda: classification.auroc(np.array([0.0, np.nan]), np.array([0, 1])), "finite"),
    (lambda: classification.auroc(np.zeros(2), np.array([0, 2])), "0 and 1"),
    (lambda: classification.auroc(np.zeros(2), np.zeros(3)), r"shape \(2,\)"),
    (lambda: classification.brier(np.array([0.5, 1.5]), np.array([0, 1])), "0 to 1"),
    (lambda: classification.brier(np.full((2, 2), 0.4), np.array([0, 1])), "add up to 1"),
    (lambda: classification.log_loss(np.full((2, 2), 0.5), np.array([0, 2])), "0 to 1"),
    (lambda: classification.confusion(np.array([0]), np.array([0.0]), 2), "integers"),
    (lambda: classification.confusion(np.array([0]), np.array([0, 1]), 2), "1 predictions for 2"),
    (lambda: classification.accuracy(np.array([]), np.array([])), "at least one"),
]


@pytest.mark.parametrize("call, message", BAD)
def test_numbers_that_cannot_be_scored_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
