"""Trials on features: the head learns, arms differ in what is said, the same bytes again."""

import numpy as np
import pytest
import threadpoolctl

from medray.errors import UsageError
from medray.tune import arms, head
from medray.tune.cells import Cell
from medray.tune.data import Rows
from medray.tune.features import Heads, score_of
from medray.tune.pools import Pools
from medray.tune.spaces import space_of, start_of
from tests.tune.toys import WHOLE, feature_trials, search_data, table

SETTINGS = {"lr": 0.02, "weight_decay": 0.01, "jitter": 0.2}


def real(rows=None):
    rows = table() if rows is None else rows
    mean_D, scale_D = head.standard_of(rows.features_ND)
    return arms.Real((rows.features_ND - mean_D) / scale_D, rows.labels_N, 3, 5)


def test_a_head_learns_what_can_be_learnt_and_nothing_of_shuffled_labels():
    rows, other = table(), table(seed=1)
    trials = feature_trials()
    said = trials.predict(WHOLE, trials.fit(WHOLE, SETTINGS, 0), other)
    assert score_of(said, other.labels_N, "balanced_accuracy") > 0.85
    labels_N = np.random.default_rng(3).permutation(rows.labels_N)
    shuffled = Rows(rows.features_ND, labels_N, rows.keys, rows.keys)
    control = feature_trials(shuffled)
    said = control.predict(WHOLE, control.fit(WHOLE, SETTINGS, 0), other)
    assert score_of(said, other.labels_N, "balanced_accuracy") < 0.6


@pytest.mark.parametrize("hidden", [0, 4])
def test_the_same_fit_gives_the_same_bytes_whatever_the_threads(hidden):
    import torch

    config = head.HeadConfig(steps=30, hidden=hidden)
    rows = real()
    lesson = head.Lesson(rows.features_ND, rows.labels_N, np.ones(3))
    val, standard = (rows.features_ND, rows.labels_N), head.standard_of(rows.features_ND)
    made = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            made.append(head.train([lesson], val, standard, 3, config, 9).to_bytes())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert made[0] == made[1]
    assert head.train([lesson], val, standard, 3, config, 10).to_bytes() != made[0]
    assert len(head.Head.from_bytes(made[0]).layers) == 1 + bool(hidden)


def test_a_trial_is_the_same_whatever_the_threads_of_numpy():
    # Gaussians come of products which NumPy splits over its threads: bits of 512 dimensions tell.
    trials = feature_trials(table(count=600, dims=512, apart=0.1))
    settings = {**SETTINGS, "ratio": 1.0}
    made = []
    for threads in (1, 2):
        with threadpoolctl.threadpool_limits(threads, user_api="blas"):
            made.append(trials.fit(Cell("gaussian", 1.0), settings, 0))
    assert made[0] == made[1]


def test_weights_are_data_and_come_back_as_they_were():
    trials = feature_trials(seeds=2)
    weights = trials.fit(WHOLE, SETTINGS, 1)
    found = Heads.from_bytes(weights)
    assert len(found.heads) == 2 and found.to_bytes() == weights
    assert weights != trials.fit(WHOLE, SETTINGS, 0)


@pytest.mark.parametrize("arm", ["smote", "adasyn", "mixup", "gaussian"])
def test_synthetic_rows_are_as_many_as_the_ratio_asks_for_minorities_alone(arm):
    rows = real()
    draw = arms.fitted(arm, rows)
    added = arms.add(rows, {"ratio": 2.0}, draw, None)
    counts_K = rows.counts_K
    assert np.bincount(added.labels_M, minlength=3).tolist() == [0, *(2 * counts_K[1:]).tolist()]
    assert added.wanted == len(added.labels_M) and np.isfinite(added.features_MD).all()
    for k in (1, 2):
        near = [
            np.linalg.norm(added.features_MD[added.labels_M == k].mean(0) - own.mean(0))
            for own in (rows.features_ND[rows.labels_N == j] for j in range(3))
        ]
        assert np.argmin(near) == k


def test_ratio_zero_adds_nothing_and_the_trial_is_the_baseline():
    trials = feature_trials()
    smote = trials.fit(Cell("smote", 1.0), {**SETTINGS, "ratio": 0.0}, 0)
    assert smote == trials.fit(WHOLE, SETTINGS, 0)
    assert smote != trials.fit(Cell("smote", 1.0), {**SETTINGS, "ratio": 1.0}, 0)


def test_where_all_classes_are_equal_every_class_gets_synthetic_rows():
    assert arms.wanted_of(np.array([4, 4]), 2).tolist() == [8, 8]
    assert arms.wanted_of(np.array([8, 4]), 2).tolist() == [0, 8]
    assert arms.wanted_of(np.array([8, 4]), 2, "all").tolist() == [16, 8]
    assert arms.wanted_of(np.array([8, 4, 0]), 1, "all").tolist() == [8, 4, 0]


def test_a_threshold_keeps_those_that_the_judge_takes_for_their_class():
    rows = real()
    draw = arms.fitted("gaussian", rows)

    def judge(features_MD):
        left = features_MD[:, 0] < 0
        return np.stack([0 * left, 1.0 * left, 1.0 * left], axis=1)

    added = arms.add(rows, {"ratio": 1.0, "threshold": 0.5}, draw, judge)
    assert len(added.labels_M) and (added.features_MD[:, 0] < 0).all()
    assert added.looked_at == arms.SURPLUS * added.wanted


def test_the_archive_gives_each_row_once_and_other_rows_to_another_seed():
    archive = table(60, seed=4)
    pair = (archive.features_ND, archive.labels_N)
    asked_M = np.array([1] * 5 + [2] * 200)
    rows_MD, labels_M = arms.of_archive(pair, 0)(asked_M)
    own = int((archive.labels_N == 2).sum())
    assert np.bincount(labels_M).tolist() == [0, 5, own]
    assert len(np.unique(rows_MD, axis=0)) == 5 + own
    other_MD, _ = arms.of_archive(pair, 1)(asked_M)
    assert not np.array_equal(rows_MD[labels_M == 1], other_MD[:5])


def test_an_archive_that_is_like_the_data_helps_and_shuffled_labels_hurt():
    rows = table(40, apart=0.8)
    archive = table(900, seed=6, apart=0.8, share=(0.34, 0.33, 0.33))
    trials = feature_trials(rows, synthetic=archive, seeds=2, steps=80)
    other = table(600, seed=8, apart=0.8)
    found = {}
    for arm in ("none", "archive", "shuffled", "pretrain"):
        cell = Cell(arm, 1.0)
        settings = {**start_of(space_of(arm, (4,))), "jitter": 0.1}
        said = trials.predict(cell, trials.fit(cell, settings, 0), other)
        found[arm] = score_of(said, other.labels_N, "balanced_accuracy")
    assert found["archive"] > found["none"] + 0.03
    assert found["shuffled"] < found["none"] - 0.05
    assert found["pretrain"] > found["shuffled"] + 0.05


def test_an_arm_that_needs_an_archive_says_so():
    with pytest.raises(UsageError, match="needs --synthetic"):
        feature_trials().score(Cell("archive", 1.0), {**SETTINGS, "ratio": 1.0}, 0)


@pytest.mark.parametrize("arm", ["smote", "gaussian", "mixup"])
def test_a_class_with_one_row_is_drawn_from_only_where_one_is_enough(arm):
    rows = table(40)
    lonely = rows.take([*np.flatnonzero(rows.labels_N == 0), *np.flatnonzero(rows.labels_N == 1)])
    labels_N = lonely.labels_N.copy()
    labels_N[0] = 2
    one = real(Rows(lonely.features_ND, labels_N, lonely.patients, lonely.keys))
    draw = arms.fitted(arm, one)
    added = arms.add(one, {"ratio": 2.0}, draw, None, least=arms.least_of(arm))
    assert int((added.labels_M == 2).sum()) == (2 if arm == "mixup" else 0)
    assert (added.labels_M == 1).any()


def test_samplers_see_the_training_rows_of_the_part_alone(monkeypatch):
    data, seen = search_data(), []
    trials = feature_trials()
    original = arms.fitted
    monkeypatch.setattr(arms, "fitted", lambda arm, r, *more: seen.append(r) or original(arm, r))
    trials.score(Cell("smote", 1.0), {**SETTINGS, "ratio": 1.0}, 1)
    (one,) = seen
    assert len(one.labels_N) == len(data.parts[1].train)
    rows = data.rows.take(data.parts[1].train)
    mean_D, scale_D = head.standard_of(rows.features_ND)
    assert np.allclose(one.features_ND * scale_D + mean_D, rows.features_ND, atol=1e-4)


def test_a_pool_is_made_once_and_read_the_second_time(tmp_path, monkeypatch):
    rows, most_K = real(), np.array([0, 6, 4])
    first = Pools(str(tmp_path)).get("gaussian", rows, most_K)
    monkeypatch.setattr(arms, "fitted", None)
    again = Pools(str(tmp_path)).get("gaussian", rows, most_K)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert np.bincount(again[1]).tolist() == [0, 6, 4]
    with pytest.raises(TypeError):
        Pools(str(tmp_path)).get("gaussian", rows, np.array([0, 6, 5]))


@pytest.mark.parametrize("by", ["balanced_accuracy", "auroc", "log_loss"])
def test_scores_rise_with_better_answers_and_leave_absent_classes_out(by):
    truth_N = np.array([0, 0, 0, 2])
    right_NK = np.array([[0.8, 0.1, 0.1]] * 3 + [[0.1, 0.1, 0.8]], np.float32)
    assert score_of(right_NK, truth_N, by) > score_of(right_NK[::-1].copy(), truth_N, by)
