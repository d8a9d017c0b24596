"""Truth of samples: one class or many findings, missing labels, weights, halves of the patients."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from medray.errors import DataError, UsageError
from medray.train import targets


@dataclass(frozen=True)
class Made:
    label: str | None = None
    labels: dict[str, int | None] = field(default_factory=dict)
    patient: str | None = None
    key: str = "train-00000000"


ONE = [Made("a"), Made("b"), Made("b"), Made(None)]
MANY = [
    Made("x", {"x": 1, "y": 1}),
    Made(None, {"x": 0, "y": None}),
    Made(None, {"x": None, "y": None}),
    Made("y", {"x": 0, "y": 1}),
]


def test_auto_means_many_where_two_findings_meet_and_one_elsewhere() -> None:
    assert targets.choose(ONE, ("a", "b", "c")) == targets.Targets(("a", "b"), False)
    assert targets.choose(MANY, ("x", "y")) == targets.Targets(("x", "y"), True)
    apart = [Made("x", {"x": 1, "y": 0}), Made("y", {"x": 0, "y": 1})]
    assert not targets.choose(apart, ("x", "y")).multi_label
    assert targets.choose(apart, ("x", "y"), labels="many").multi_label


def test_what_is_not_known_is_minus_one() -> None:
    one, many = targets.choose(ONE, ("a", "b")), targets.choose(MANY, ())
    assert one.of(ONE).tolist() == [[1, 0], [0, 1], [0, 1], [-1, -1]]
    assert many.of(MANY).tolist() == [[1, 1], [0, -1], [-1, -1], [0, 1]]
    assert [many.known(sample) for sample in MANY] == [True, True, False, True]
    records = [{"label": "b"}, {"label": None, "labels": None}]
    assert one.of_records(records).tolist() == [[0, 1], [-1, -1]]


def test_only_some_classes_can_be_asked_for_in_ones_own_order() -> None:
    assert targets.choose(ONE, ("a", "b"), only=("b", "a")).classes == ("b", "a")
    with pytest.raises(UsageError, match=r"--classes: no training sample has c"):
        targets.choose(ONE, ("a", "b", "c"), only=("a", "c"))


def test_a_set_that_makes_no_task_is_refused_with_a_way_out() -> None:
    with pytest.raises(DataError, match="no sample has classes") as none:
        targets.choose([Made()], ())
    assert none.value.code == "MR-D070" and "label column" in none.value.hint
    with pytest.raises(DataError, match=r"one class only \(a\)") as one:
        targets.choose([Made("a"), Made("a")], ("a",))
    assert one.value.code == "MR-D071"
    with pytest.raises(DataError) as findings:
        targets.choose([Made(None, {"x": 1})], (), labels="one")
    assert "--labels many" in findings.value.hint


def test_weights_make_classes_count_alike() -> None:
    truth = np.array([[1, 0]] * 6 + [[0, 1]] * 2, np.int8)
    one = targets.weights(truth, False, 20)
    assert np.allclose(one[1], [8 / 12, 8 / 4])
    many = targets.weights(truth[:, :1], True, 20)
    assert np.allclose(many[:, 0], [8 / (2 * 2), 8 / (2 * 6)])
    assert targets.weights(truth[:, :1], True, 1.5)[0, 0] == 1.5


def test_missing_labels_do_not_count_in_the_weights() -> None:
    truth = np.array([[1], [0], [0], [-1], [-1]], np.int8)
    assert np.allclose(targets.weights(truth, True, 20)[:, 0], [3 / 4, 3 / 2])


def test_the_bias_takes_weights_out_of_the_best_logits() -> None:
    p = np.array([0.7, 0.2, 0.1])
    weights_2K = np.stack([np.zeros(3), 1 / (3 * p)])
    weighted = np.log(weights_2K[1] * p) + targets.bias_of(weights_2K, False)
    assert np.allclose(np.exp(weighted) / np.exp(weighted).sum(), p)
    both = np.stack([1 / (2 * (1 - p)), 1 / (2 * p)])
    logit = np.log(both[1] * p) - np.log(both[0] * (1 - p)) + targets.bias_of(both, True)
    assert np.allclose(1 / (1 + np.exp(-logit)), p)


def test_the_halves_share_no_patient_and_hold_all_of_them() -> None:
    samples = [Made(patient=f"p{n // 3}", key=f"k{n}") for n in range(900)]
    a, b = ([s for s in samples if targets.in_half(s, half)] for half in ("half-a", "half-b"))
    assert len(a) + len(b) == 900 and all(targets.in_half(s, "all") for s in samples)
    assert not {s.patient for s in a} & {s.patient for s in b}
    assert 350 < len(a) < 550


def test_samples_without_a_patient_are_patients_of_their_own() -> None:
    assert targets.patient_of(Made(key="k1")) != targets.patient_of(Made(key="k2"))
