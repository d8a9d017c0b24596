"""Weighted scores are the plain ones on rows repeated by their counts."""

import numpy as np
import pytest

from medray.metrics import classification as plain
from medray.metrics import weighted


@pytest.fixture(scope="module")
def made():
    draw = np.random.default_rng(0)
    truth_N = draw.integers(0, 3, 40)
    scores_NK = draw.dirichlet((1, 1, 1), 40).round(1) + 1e-3
    scores_NK /= scores_NK.sum(1, keepdims=True)
    counts_BN = draw.integers(0, 4, (5, 40)).astype(float)
    return truth_N, scores_NK, counts_BN


def repeated(row, *arrays):
    rows = np.repeat(np.arange(len(row)), row.astype(int))
    return [array[rows] for array in arrays]


def test_every_score_is_that_of_the_rows_repeated(made):
    truth_N, scores_NK, counts_BN = made
    said_N = scores_NK.argmax(1)
    found = {
        "recall": weighted.recalls(counts_BN, said_N, truth_N, 3),
        "f1": weighted.f1s(counts_BN, said_N, truth_N, 3),
        "auroc": weighted.macro_aurocs(counts_BN, scores_NK, truth_N, np.arange(3)),
        "brier": weighted.briers(counts_BN, scores_NK, truth_N),
        "ece": weighted.eces(counts_BN, scores_NK, truth_N),
    }
    for b, row in enumerate(counts_BN):
        truth, scores, said = repeated(row, truth_N, scores_NK, said_N)
        table = plain.by_class(plain.confusion(said, truth, 3))
        assert found["recall"][b] == pytest.approx([c.recall for c in table])
        assert found["f1"][b] == pytest.approx([c.f1 for c in table])
        assert found["auroc"][b] == pytest.approx(np.mean(plain.auroc_by_class(scores, truth)))
        assert found["brier"][b] == pytest.approx(plain.brier(scores, truth))
        assert found["ece"][b] == pytest.approx(plain.ece(scores, truth))


def test_what_is_not_defined_is_nan_and_never_0(made):
    truth_N, scores_NK, _ = made
    counts_BN = np.stack([(truth_N != 2).astype(float), np.ones(40), np.zeros(40)])
    recalls = weighted.recalls(counts_BN, scores_NK.argmax(1), truth_N, 3)
    assert np.isnan(recalls[0, 2]) and np.isfinite(recalls[0, :2]).all()
    aurocs = weighted.aurocs(counts_BN, scores_NK[:, 2], truth_N == 2)
    assert np.isnan(aurocs[0]) and np.isfinite(aurocs[1]) and np.isnan(aurocs[2])
    assert np.isnan(weighted.briers(counts_BN, scores_NK, truth_N)[2])
