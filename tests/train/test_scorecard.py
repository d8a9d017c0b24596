"""Figures of a classifier: by hand, intervals over patients, undefined where undefined."""

from __future__ import annotations

import numpy as np
import pytest

from medray.train import scorecard
from medray.train.scorecard import Judged


def one(truth: list[int], said: list[int], classes: int = 3, patients: int = 0) -> Judged:
    p = np.full((len(truth), classes), 0.1 / (classes - 1))
    p[np.arange(len(said)), said] = 0.9
    rows = np.eye(classes, dtype=np.int8)[truth]
    groups = np.asarray([f"p{n % (patients or len(truth))}" for n in range(len(truth))])
    names = tuple("abc"[:classes])
    return Judged(names, False, p, np.asarray(said), rows, groups)


def many(truth: list[list[int]], p: list[list[float]], cut: float = 0.5) -> Judged:
    p_NK = np.asarray(p)
    said = (p_NK >= cut).astype(np.int64)
    groups = np.asarray([f"p{n}" for n in range(len(truth))])
    return Judged(("x", "y"), True, p_NK, said, np.asarray(truth, np.int8), groups)


def test_figures_of_classes_are_those_by_hand() -> None:
    judged = one([0, 0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1, 2, 0])
    found = scorecard.figures(judged, seed=0, draws=100)
    assert found["balanced_accuracy"]["estimate"] == pytest.approx((3 / 4 + 1 + 1 / 2) / 3)
    assert found["accuracy"]["estimate"] == pytest.approx(6 / 8)
    assert found["confusion"] == [[3, 1, 0], [0, 2, 0], [1, 0, 1]]
    a = found["classes"]["a"]
    assert a["samples"] == 4 and a["recall"]["estimate"] == pytest.approx(3 / 4)
    assert a["precision"]["estimate"] == pytest.approx(3 / 4)
    assert found["classes"]["b"]["f1"]["estimate"] == pytest.approx(4 / 5)
    assert scorecard.balanced_accuracy(judged) == found["balanced_accuracy"]["estimate"]
    for figure in (found["accuracy"], a["recall"]):
        assert figure["low"] <= figure["estimate"] <= figure["high"]


def test_a_class_without_samples_is_undefined_and_left_out_of_the_mean() -> None:
    found = scorecard.figures(one([0, 0, 1, 1] * 5, [0, 0, 1, 2] * 5), seed=0, draws=100)
    assert found["classes"]["c"]["recall"] is None and found["classes"]["c"]["auroc"] is None
    assert found["balanced_accuracy"]["estimate"] == pytest.approx((1 + 1 / 2) / 2)


def test_intervals_are_wider_where_patients_bring_many_images_of_a_kind() -> None:
    right = [0, 1] * 40
    said = [t if n % 10 < 7 else 1 - t for n, t in enumerate(right)]
    alone = scorecard.figures(one(right, said, 2), seed=0, draws=200)["accuracy"]
    grouped = scorecard.figures(one(right, said, 2, patients=10), seed=0, draws=200)["accuracy"]
    assert alone["estimate"] == grouped["estimate"]
    assert grouped["high"] - grouped["low"] > 1.3 * (alone["high"] - alone["low"])


def test_figures_of_findings_leave_out_what_is_not_known() -> None:
    judged = many(
        [[1, -1], [1, 0], [0, 0], [0, -1], [0, 0]],
        [[0.9, 0.9], [0.4, 0.1], [0.6, 0.2], [0.1, 0.9], [0.2, 0.3]],
    )
    found = scorecard.figures(judged, seed=0, draws=200)
    x, y = found["classes"]["x"], found["classes"]["y"]
    assert (x["samples"], x["positives"], y["samples"], y["positives"]) == (5, 2, 3, 0)
    assert x["recall"]["estimate"] == 0.5 and x["specificity"]["estimate"] == pytest.approx(2 / 3)
    assert x["auroc"]["estimate"] == pytest.approx(5 / 6)
    assert y["auroc"] is None and y["recall"] is None and y["specificity"]["estimate"] == 1.0
    assert found["auroc"]["estimate"] == x["auroc"]["estimate"]
    assert scorecard.mean_auroc(judged) == x["auroc"]["estimate"]
    assert scorecard.balanced_accuracy(judged) == x["balanced_accuracy"]["estimate"]


def test_an_interval_is_left_out_where_too_many_draws_leave_it_undefined() -> None:
    judged = many([[1, 0], [0, 0], [0, 0], [0, 0]], [[0.9, 0.1]] * 4)
    recall = scorecard.figures(judged, seed=0, draws=100)["classes"]["x"]["recall"]
    assert recall == {"estimate": 1.0, "low": None, "high": None}
