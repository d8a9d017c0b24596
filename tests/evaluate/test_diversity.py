"""Proportions and label hits as a judge sees them."""

import numpy as np
import pytest
from scipy import stats

from medray.errors import DataError
from medray.evaluate.diversity import hit_rates, label_matrix, never_produced, proportions

CLASSES = ("nodule", "effusion", "mass")


def test_labels_of_one_class_or_of_findings():
    one = label_matrix(CLASSES, ["mass", None, "other"], [{}, {}, {}], multi_label=False)
    assert one.tolist() == [[0, 0, 1], [-1, -1, -1], [0, 0, 0]]
    many = label_matrix(CLASSES, [None], [{"nodule": 1, "mass": 0}], multi_label=True)
    assert many.tolist() == [[1, -1, 0]]


def test_a_hit_agrees_on_every_known_class():
    labels = np.array([[1, 0, 0], [0, 1, -1], [0, 0, 1], [-1, -1, -1]])
    said = np.array([[1, 0, 0], [0, 1, 1], [0, 1, 1], [1, 1, 1]], np.uint8)
    rates = hit_rates(CLASSES, labels, said)
    assert (rates["all"].hits, rates["all"].count) == (2, 3)
    assert {name: (s.hits, s.count) for name, s in rates.items() if name != "all"} == {
        "nodule": (1, 1),
        "effusion": (1, 1),
        "mass": (1, 1),
    }


def test_without_a_label_that_the_judge_knows_there_is_no_hit_rate():
    with pytest.raises(DataError, match="nodule, effusion, mass"):
        hit_rates(CLASSES, np.full((4, 3), -1), np.zeros((4, 3), np.uint8))


def test_proportions_have_exact_intervals_and_name_what_is_never_produced():
    real = np.array([[1, 0, 0]] * 5 + [[1, 1, 0]] * 3 + [[0, 0, 1]] * 2, np.uint8)
    synthetic = np.array([[1, 0, 0]] * 9 + [[0, 1, 0]] * 1, np.uint8)
    labels = np.full((10, 3), -1)
    labels[:, 0] = 1
    found = {one.name: one for one in proportions(CLASSES, labels, real, synthetic)}
    assert list(found) == ["nodule", "effusion", "mass", "nodule + effusion"]
    exact = stats.binomtest(9, 10).proportion_ci(method="exact")
    assert found["nodule"].synthetic.ci_low == pytest.approx(exact.low)
    assert found["nodule"].synthetic.ci_high == pytest.approx(exact.high)
    assert found["nodule"].labelled.value == 1 and found["effusion"].labelled is None
    assert never_produced(list(found.values())) == ["mass", "nodule + effusion"]
