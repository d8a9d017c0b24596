"""Outer and inner folds: by patient, stratified, a function of patients, labels and seed."""

from collections import Counter

import pytest

from medray.errors import DataError, UsageError
from medray.tune.folds import folds_of, label_by_patient, parts_of

LABELS = {f"p{n}": "high" if n % 3 else "low" for n in range(31)}


def test_each_patient_is_in_one_fold_and_folds_are_as_even_as_can_be():
    found = folds_of(LABELS, 5, 0)
    assert set(found) == set(LABELS)
    sizes = Counter(found.values())
    assert set(sizes) == set(range(5)) and max(sizes.values()) - min(sizes.values()) <= 1
    for label in ("high", "low"):
        each = Counter(found[p] for p in LABELS if LABELS[p] == label)
        assert max(each.values()) - min(each.values()) <= 1


def test_the_order_of_patients_does_not_matter_and_the_seed_does():
    assert folds_of(dict(reversed(LABELS.items())), 5, 0) == folds_of(LABELS, 5, 0)
    assert folds_of(LABELS, 5, 1) != folds_of(LABELS, 5, 0)


def test_a_class_with_one_patient_is_refused_by_name():
    with pytest.raises(DataError, match="class rare has one patient"):
        folds_of({**LABELS, "x": "rare"}, 5, 0)
    folds_of({**LABELS, "x": "rare", "y": "rare"}, 5, 0)


def test_too_few_folds_or_patients_are_refused():
    with pytest.raises(UsageError, match="2 or more"):
        folds_of(LABELS, 1, 0)
    with pytest.raises(DataError, match="4 patients"):
        folds_of({"a": "x", "b": "x", "c": "y", "d": "y"}, 5, 0)


def test_a_patient_with_several_labels_has_the_rarest():
    labels = label_by_patient(["a", "a", "b", "b"], ["x", "y", "x", "x"])
    assert labels == {"a": "y", "b": "x"}


def test_inner_parts_cover_all_rows_and_share_no_patient():
    patients = [f"p{n // 3}" for n in range(36)]
    labels = ["x" if n // 3 % 2 else "y" for n in range(36)]
    parts = parts_of(patients, labels, 3, 0)
    assert sorted(n for part in parts for n in part.val.tolist()) == list(range(36))
    for part in parts:
        assert not {patients[n] for n in part.train} & {patients[n] for n in part.val}
