"""One encoder against another: AUC of findings some of which are unknown, differences in pairs."""

from __future__ import annotations

import numpy as np
import pytest

from medray.metrics import classification, weighted
from medray.tune.contrasts import Asked, Judge, say
from medray.tune.verdict import Figure

FINDINGS = ("common", "rare", "constant")


def asked(clips: int = 120, seed: int = 0) -> Asked:
    generator = np.random.default_rng(seed)
    truth_NK = (generator.random((clips, 3)) < (0.5, 0.15, 0)).astype(np.int8)
    truth_NK[::9, 1] = -1
    return Asked(truth_NK, tuple(f"p{n // 2}" for n in range(clips)), FINDINGS)


def scores(of: Asked, strength: float, seeds: int = 3) -> np.ndarray:
    generator = np.random.default_rng(7)
    noise = generator.random((seeds, *of.truth_NK.shape))
    return noise + strength * (of.truth_NK == 1)


def test_the_auc_of_a_finding_is_that_of_the_clips_that_say_it_each_as_often_as_drawn() -> None:
    of = asked(200)
    counts_BN = np.random.default_rng(1).integers(0, 3, (5, 200)).astype(np.float64)
    said_NK = scores(of, 0.3)[0]
    found_BK = weighted.finding_aurocs(counts_BN, said_NK, of.truth_NK)
    for b in range(5):
        rows = np.repeat(np.arange(200), counts_BN[b].astype(int))
        for k in (0, 1):
            known = rows[of.truth_NK[rows, k] >= 0]
            wanted = classification.auroc(said_NK[known, k], of.truth_NK[known, k] == 1)
            assert found_BK[b, k] == pytest.approx(wanted)
    assert np.isnan(found_BK[:, 2]).all(), "a finding that none has has no AUC"


def test_the_mean_is_over_the_findings_that_have_an_auc_and_the_rarest_is_named() -> None:
    of = asked()
    assert of.defined_K.tolist() == [0, 1] and of.rarest == "rare"
    judge = Judge(of, 3, draws=200, seed=0)
    values = judge.values(scores(of, 0.4))
    figures = judge.figures(values)
    assert figures["constant"].estimate is None
    each = [figures[name].estimate for name in ("common", "rare")]
    assert figures["macro"].estimate == pytest.approx(np.mean(each))
    low, high = figures["macro"].low, figures["macro"].high
    assert low is not None and high is not None and low < np.mean(each) < high


def test_clips_are_compared_within_their_fold_alone() -> None:
    """Folds whose positives are many say low probabilities: over all folds that looks like an
    order, and it is none."""
    generator = np.random.default_rng(2)
    rates = np.repeat((0.2, 0.4, 0.6, 0.8), 200)
    truth_NK = (generator.random((800, 1)) < rates[:, None]).astype(np.int8)
    said_SNK = (1 - rates[:, None] + 1e-3 * generator.random((800, 1)))[None]
    patients, folds = tuple(map(str, range(800))), tuple(np.repeat(range(4), 200).tolist())
    found = []
    for of_folds in ((), folds):
        judge = Judge(Asked(truth_NK, patients, ("one",), of_folds), 1, draws=20, seed=0)
        found.append(judge.values(said_SNK)["macro"][0])
    assert found[0] < 0.35 and abs(found[1] - 0.5) < 0.06
    knows_SNK = said_SNK + 0.01 * truth_NK
    judge = Judge(Asked(truth_NK, patients, ("one",), folds), 1, draws=20, seed=0)
    assert judge.values(knows_SNK)["macro"][0] == 1


def test_a_stronger_arm_is_told_and_an_equal_one_is_not() -> None:
    of = asked()
    judge = Judge(of, 3, draws=400, seed=0)
    weak, strong = judge.values(scores(of, 0.05)), judge.values(scores(of, 0.6))
    better = judge.contrast(("jigsaw", "random"), strong, weak, 6)
    assert "jigsaw is better than random" in better.words and "holds when corrected" in better.words
    assert better.level == pytest.approx(1 - 0.05 / 6)
    worse = judge.contrast(("random", "jigsaw"), weak, strong, 6)
    assert "random is worse than jigsaw" in worse.words
    apart, other = better.differences["macro"], worse.differences["macro"]
    assert apart.estimate == pytest.approx(-(other.estimate or 0))
    same = judge.contrast(("a", "b"), weak, weak, 6)
    assert "are not told apart" in same.words and same.differences["macro"].half_width == 0
    wide, narrow = better.corrected.half_width, apart.half_width
    assert wide is not None and narrow is not None and wide > narrow


def test_without_an_interval_it_says_so() -> None:
    assert "no interval" in say(("a", "b"), Figure(0.1), Figure(0.1))
    of = Asked(np.zeros((8, 3), np.int8), tuple("abcdefgh"), FINDINGS)
    judge = Judge(of, 1, draws=20, seed=0)
    assert judge.figures(judge.values(scores(of, 1.0, 1)))["macro"].estimate is None
    assert of.rarest is None
