"""The verdict: what truly helps or hurts is said so, what does nothing is not said to."""

import numpy as np
import pytest

from medray.errors import DataError
from medray.metrics import classification as plain
from medray.tune.verdict import PRIMARY, Figure, Resamples, Test, judge, metrics_of, say

CLASSES = ("a", "b")


def task(patients, seed=0):
    draw = np.random.default_rng(seed)
    labels = (np.arange(patients) % 4 == 0).astype(np.int64)
    truth_N = np.repeat(labels, 2)
    names = tuple(f"p{n // 2}" for n in range(2 * patients))
    return Test(truth_N, names, CLASSES), draw


def answers(test, draw, right, seeds=3):
    """Probabilities that are right for each row with this chance, other rows in each seed."""
    hit_SN = draw.random((seeds, len(test.truth_N))) < right
    said_SN = np.where(hit_SN, test.truth_N, 1 - test.truth_N)
    sure_SN = draw.uniform(0.55, 0.95, said_SN.shape)
    return np.where(np.eye(2)[said_SN].astype(bool), sure_SN[..., None], 1 - sure_SN[..., None])


def verdicts(test, predictions, **more):
    found = judge(
        predictions,
        test,
        **{"fraction": 1.0, "comparisons": len(predictions) - 1, "margin": 0.03, "seed": 0}
        | {"draws": 1000}
        | more,
    )
    return {v.arm: v for v in found}


def test_an_arm_that_truly_helps_and_one_that_truly_hurts_are_said_to():
    test, draw = task(150)
    predictions = {
        "none": answers(test, draw, 0.7),
        "good": answers(test, draw, 0.9),
        "bad": answers(test, draw, 0.5),
    }
    found = verdicts(test, predictions)
    assert found["good"].said == "helped" and found["bad"].said == "hurt"
    assert "helped: +" in found["good"].words and "97.50%" in found["good"].words
    apart = found["good"].differences[PRIMARY]
    assert apart.low < 0.2 < apart.high and apart.half_width < 0.1
    assert found["good"].differences["auroc"].low > 0
    assert found["good"].differences["brier"].high < 0


def test_the_same_answers_did_not_help():
    test, draw = task(60)
    same = answers(test, draw, 0.7)
    found = verdicts(test, {"none": same, "smote": same.copy()})["smote"]
    assert found.said == "did not help" and "excluded" in found.words
    assert found.differences[PRIMARY] == Figure(0.0, 0.0, 0.0)


def test_few_patients_resolve_nothing_and_it_is_said_what_they_would():
    test, draw = task(16)
    predictions = {"none": answers(test, draw, 0.7), "smote": answers(test, draw, 0.72)}
    found = verdicts(test, predictions)["smote"]
    assert found.said == "not resolvable"
    assert f"{100 * found.differences[PRIMARY].half_width:.1f} points" in found.words


def test_more_comparisons_make_wider_intervals():
    test, draw = task(80)
    predictions = {"none": answers(test, draw, 0.7), "smote": answers(test, draw, 0.75)}
    widths = [
        verdicts(test, predictions, comparisons=n, draws=4000)["smote"].differences[PRIMARY]
        for n in (1, 6, 30)
    ]
    assert widths[0].half_width < widths[1].half_width < widths[2].half_width


def test_the_difference_is_paired():
    test, draw = task(60)
    base = answers(test, draw, 0.7)
    better = base.copy()
    wrong = np.argwhere(base.argmax(2) != test.truth_N)[::3]
    better[tuple(wrong.T)] = better[tuple(wrong.T)][:, ::-1]
    paired = verdicts(test, {"none": base, "x": better})["x"].differences[PRIMARY]
    apart = verdicts(test, {"none": answers(test, draw, 0.7), "x": better})["x"]
    assert paired.half_width < 0.6 * apart.differences[PRIMARY].half_width
    assert paired.low > 0


def test_null_arms_are_said_to_help_or_hurt_no_more_often_than_the_level_allows():
    """40 repetitions of 2 null arms: a family is wrong with 5% at most; 7 of 40 has p < 0.01."""
    wrong = 0
    for repetition in range(40):
        test, draw = task(40, seed=100 + repetition)
        predictions = {name: answers(test, draw, 0.75) for name in ("none", "x", "y")}
        found = verdicts(test, predictions, seed=repetition, draws=500)
        wrong += any(found[arm].said in ("helped", "hurt") for arm in ("x", "y"))
    assert wrong <= 6


def test_estimates_are_means_over_seeds_of_the_plain_scores():
    test, draw = task(40)
    said_SNK = answers(test, draw, 0.8)
    found = verdicts(test, {"none": said_SNK})["none"].figures
    each = [plain.balanced_accuracy(s.argmax(1), test.truth_N, 2) for s in said_SNK]
    assert found[PRIMARY].estimate == pytest.approx(np.mean(each))
    areas = [np.mean(plain.auroc_by_class(s, test.truth_N)) for s in said_SNK]
    assert found["auroc"].estimate == pytest.approx(np.mean(areas))
    assert found["ece"].estimate == pytest.approx(
        np.mean([plain.ece(s, test.truth_N) for s in said_SNK])
    )
    assert found[PRIMARY].low < found[PRIMARY].estimate < found[PRIMARY].high


def test_whole_patients_are_drawn_and_draws_are_functions_of_seed_and_number():
    test, _ = task(10)
    few, many = (Resamples.of(test.patients, 3, n, 4) for n in (5, 9))
    assert np.array_equal(few.rows_BN, many.rows_BN[:6])
    assert np.array_equal(few.seeds_BS, many.seeds_BS[:6])
    assert (few.rows_BN[0] == 1).all() and (few.rows_BN.sum(1) == 20).all()
    assert np.array_equal(few.rows_BN[:, 0::2], few.rows_BN[:, 1::2])
    assert (few.seeds_BS.sum(1) == 3).all()


def test_a_class_without_test_rows_has_no_figures_and_the_others_do():
    draw = np.random.default_rng(0)
    truth_N = np.array([0, 2] * 20)
    test = Test(truth_N, tuple(f"p{n}" for n in range(40)), ("a", "b", "c"))
    said = draw.dirichlet((1, 1, 1), (2, 40))
    found = verdicts(test, {"none": said, "x": said})["x"]
    assert "recall b" not in found.figures and found.figures["recall c"].estimate is not None
    assert set(metrics_of(test)) == set(found.figures)


def test_a_class_of_one_patient_gives_no_interval_and_no_claim():
    truth_N = np.array([0] * 20 + [1])
    test = Test(truth_N, tuple(f"p{n}" for n in range(21)), CLASSES)
    said = np.stack([np.eye(2)[truth_N] * 0.8 + 0.1] * 2)
    found = verdicts(test, {"none": said[:, :, ::-1], "x": said})["x"]
    assert found.said == "not resolvable" and "too few patients" in found.words


def test_without_the_baseline_nothing_is_compared():
    test, draw = task(10)
    with pytest.raises(DataError, match="baseline 'none' has no predictions"):
        verdicts(test, {"smote": answers(test, draw, 0.7)})


def test_words_follow_from_the_interval_and_the_margin():
    cases = [(0.01, 0.05, "helped"), (-0.05, -0.01, "hurt"), (-0.02, 0.02, "did not help")]
    for low, high, said in [*cases, (-0.02, 0.06, "not resolvable")]:
        assert say("x", Figure((low + high) / 2, low, high), 0.03, 0.99)[0] == said
