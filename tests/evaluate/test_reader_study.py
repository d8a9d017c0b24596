"""Statistics of a reader study against values computed by hand or published."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medray import rng
from medray.evaluate import reader_study as study
from medray.evaluate.reader_study import Readings
from medray.metrics import UndefinedMetricError

# Ten subjects, fourteen raters, five categories: the worked example of Fleiss' kappa, 0.210.
WORKED = np.array(
    [
        *([0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1]),
        *([7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]),
    ]
)


def readings(rows, readers=("a", "b"), **named):
    """Readings of (reader, case, truth, score[, seconds[, repeat[, flagged]]])."""
    full = [(*row, *(5.0, False, False)[len(row) - 4 :]) for row in rows]
    reader, case, truth, score, seconds, repeat, flagged = (
        np.array(c) for c in zip(*full, strict=True)
    )
    cases = tuple(f"c{n}" for n in range(int(case.max()) + 1))
    order = np.zeros(len(full), int)
    for n in range(len(readers)):
        order[reader == n] = np.arange((reader == n).sum())
    return Readings(
        readers,
        cases,
        reader_N=reader.astype(np.int64),
        case_N=case.astype(np.int64),
        truth_N=truth.astype(np.int64),
        score_N=score.astype(float),
        seconds_N=seconds.astype(float),
        position_N=order,
        repeat_N=repeat.astype(bool),
        flagged_N=flagged.astype(bool),
        **named,
    )


ONE = readings(
    [(0, 0, 1, 5), (0, 1, 1, 4), (0, 2, 1, 2), (0, 3, 0, 1), (0, 4, 0, 3), (0, 5, 0, 4)], ("a",)
)


def test_accuracy_and_its_exact_interval_are_those_of_the_tables() -> None:
    found = study.share(np.array([True] * 8 + [False] * 2))
    assert (found.hits, found.count, found.share) == (8, 10, 0.8)
    assert found.low == pytest.approx(0.4439, abs=1e-4) and found.high == pytest.approx(
        0.9748, abs=1e-4
    )
    assert study.share(np.zeros(10, bool)).high == pytest.approx(1 - 0.025 ** (1 / 10))


def test_a_score_above_the_middle_calls_an_image_synthetic_and_the_middle_does_not() -> None:
    assert ONE.called_N.tolist() == [1, 1, 0, 0, 0, 1]
    assert study.accuracy(ONE).hits == 4
    assert study.sensitivity(ONE).hits == 2 and study.specificity(ONE).hits == 2
    assert study.fakes_called_real(ONE).hits == 1 and study.undecided(ONE).hits == 1


def test_a_share_of_nothing_is_an_error_and_never_zero() -> None:
    with pytest.raises(UndefinedMetricError):
        study.sensitivity(ONE.where(ONE.truth_N == 0))
    assert study.or_none(lambda: study.share(np.array([], bool))) is None


def test_auc_counts_pairs_and_its_interval_solves_newcombes_equation() -> None:
    found = study.auc(ONE.score_N, ONE.truth_N)
    # Pairs (fake, real): 5 beats 1, 3, 4; 4 beats 1, 3 and ties 4; 2 beats 1 alone: 6.5 of 9.
    assert found.value == pytest.approx(6.5 / 9)
    z, m, n = 1.959964, 3, 3
    for end in (found.low, found.high):
        half = (m + n) / 2 - 1
        spread = 1 + half * ((1 - end) / (2 - end) + end / (1 + end))
        error = math.sqrt(end * (1 - end) * spread / (m * n))
        assert abs(found.value - end) == pytest.approx(z * error, rel=1e-5)
    assert found.low < found.value < found.high


def test_auc_of_a_perfect_and_of_a_hopeless_reader_still_has_a_width() -> None:
    truth = np.array([0] * 10 + [1] * 10)
    perfect = study.auc(truth.astype(float), truth)
    hopeless = study.auc(-truth.astype(float), truth)
    assert perfect.value == perfect.high == 1 and 0.7 < perfect.low < 0.95
    assert hopeless.value == hopeless.low == 0 and hopeless.high == pytest.approx(1 - perfect.low)


def test_the_interval_of_auc_covers_the_true_area_as_often_as_it_says() -> None:
    truth = np.array([0] * 30 + [1] * 30)
    true_area = 0.5 * (1 + math.erf(1.0 / 2))  # d' = 1: normal(d' / sqrt(2))
    held = 0
    for trial in range(300):
        scores = rng.normals(7, "test.readers", trial, 60).astype(float) + truth
        found = study.auc(scores, truth)
        held += found.low <= true_area <= found.high
    assert 0.92 <= held / 300 <= 0.99


def test_fleiss_kappa_is_that_of_the_worked_example() -> None:
    assert study.fleiss_kappa(WORKED) == pytest.approx(0.210, abs=5e-4)
    assert study.fleiss_kappa(np.array([[3, 0], [0, 3]])) == 1
    with pytest.raises(UndefinedMetricError):
        study.fleiss_kappa(np.array([[3, 0], [3, 0]]))
    with pytest.raises(UndefinedMetricError):
        study.fleiss_kappa(np.array([[3, 0], [1, 1]]))


def test_agreement_takes_only_the_cases_that_all_have_read() -> None:
    rows = [(0, 0, 1, 5), (1, 0, 1, 4), (0, 1, 0, 1), (1, 1, 0, 2), (0, 2, 0, 5)]
    assert study.agreement(readings(rows)) == (1.0, 2)


def test_self_agreement_compares_repeats_with_the_first_showing_of_the_same_reader() -> None:
    rows = [
        (0, 0, 1, 5),
        (0, 1, 0, 1),
        (0, 0, 1, 4, 5.0, True),
        (0, 1, 0, 4, 5.0, True),
        (1, 0, 1, 1),
    ]
    found = study.self_agreement(readings(rows))
    assert (found.hits, found.count) == (1, 2)
    assert len(readings(rows).first) == 3


def test_times_leave_out_flagged_readings_and_count_them() -> None:
    rows = [(0, n, n % 2, 3, float(n), False, n == 9) for n in range(10)]
    found = study.times(readings(rows, ("a",)))
    assert (found.count, found.median, found.flagged) == (9, 4.0, 1)


def test_the_images_most_often_mistaken_come_first_and_right_ones_not_at_all() -> None:
    rows = [(0, 0, 1, 1), (1, 0, 1, 2), (0, 1, 0, 5), (1, 1, 0, 1), (0, 2, 0, 1), (1, 2, 0, 1)]
    found = study.most_mistaken(readings(rows))
    assert [(m.case, m.wrong, m.readings) for m in found] == [("c0", 2, 2), ("c1", 1, 2)]


def test_pooled_intervals_over_cases_are_wider_than_over_readings_where_readers_agree() -> None:
    rows = [
        (reader, case, case % 2, 5 if case % 3 else 1) for reader in (0, 1) for case in range(40)
    ]
    found = readings(rows)
    exact, over = study.accuracy(found), study.accuracy_over_cases(found, draws=200)
    assert over.value == pytest.approx(exact.share)
    assert over.high - over.low > exact.high - exact.low
    area = study.mean_auc(found, draws=100)
    assert area.low <= area.value <= area.high


def test_class_accuracy_is_of_real_images_alone() -> None:
    rows = [(0, 0, 0, 1), (0, 1, 0, 1), (0, 2, 1, 5)]
    named = {"said_N": ("x", "y", "x"), "label_N": ("x", "x", "x")}
    found = study.class_accuracy(readings(rows, ("a",), **named))
    assert (found.hits, found.count) == (1, 2)
    assert study.or_none(lambda: study.class_accuracy(ONE)) is None


def test_the_learning_curve_has_a_share_for_each_part_of_the_sequence() -> None:
    rows = [(0, case, 1, 5 if case >= 4 else 1) for case in range(8)]
    assert [s.share for s in study.learning_curve(readings(rows, ("a",)))] == [0, 0, 1, 1]


def test_the_text_for_imrmc_has_front_matter_truths_and_readings() -> None:
    rows = [(0, 0, 1, 5), (1, 0, 1, 4), (0, 1, 0, 1), (1, 1, 0, 2)]
    lines = study.imrmc(readings(rows), title="a\nstudy").splitlines()
    assert lines[:7] == ["a study", "NR: 2", "N0: 1", "N1: 1", "NM: 1", "", "BEGIN DATA:"]
    assert lines[7:9] == ["truth,c0,truth,1", "truth,c1,truth,0"]
    assert lines[9:] == ["a,c0,images,5", "b,c0,images,4", "a,c1,images,1", "b,c1,images,2"]
    with pytest.raises(ValueError, match="comma"):
        study.imrmc(readings(rows, ("a,b", "c")), title="x")


def test_readings_of_other_lengths_or_truths_are_refused() -> None:
    with pytest.raises(ValueError, match="truth 0 or 1"):
        readings([(0, 0, 2, 1)], ("a",))
    with pytest.raises(ValueError, match="finite"):
        readings([(0, 0, 1, float("nan"))], ("a",))
