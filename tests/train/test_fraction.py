"""Label fractions and validation patients: by class, by patient, nested, pure functions."""

from __future__ import annotations

from collections import Counter

import pytest

from medray.errors import UsageError
from medray.stream import Fact
from medray.train.fraction import held_for_validation, in_fraction, labels_by_patient

MANY = {
    **{f"a{n}": {"common"} for n in range(100)},
    **{f"b{n}": {"rare"} for n in range(20)},
    **{f"c{n}": {"common", "finding"} for n in range(30)},
    "only": {"single"},
}
FRACTIONS = (0.01, 0.1, 0.25, 0.5, 0.9, 1.0)


def classes(patients: set[str]) -> Counter[str]:
    return Counter(name for patient in patients for name in MANY[patient])


def test_a_smaller_fraction_lies_within_a_larger_one() -> None:
    for seed in range(5):
        chosen = [in_fraction(MANY, fraction, seed) for fraction in FRACTIONS]
        assert all(less <= more for less, more in zip(chosen, chosen[1:], strict=False))
        assert chosen[-1] == set(MANY) and len(chosen[0]) < len(chosen[1]) < len(chosen[2])


def test_each_class_keeps_its_share() -> None:
    found = classes(in_fraction(MANY, 0.1, seed=3))
    # 10 of a, 3 of c (common too), 2 of b, and the only patient of its class.
    assert found == {"common": 13, "rare": 2, "finding": 3, "single": 1}


def test_a_class_always_has_a_patient_even_where_it_is_nobodys_rarest() -> None:
    shared = {f"p{n}": {"wide", f"own{n}"} for n in range(3)} | {"q": {"wide"}, "r": {"wide"}}
    for seed in range(10):
        chosen = [in_fraction(shared, fraction, seed) for fraction in (0.01, 0.5, 1.0)]
        assert {name for p in chosen[0] for name in shared[p]} == {"wide", "own0", "own1", "own2"}
        assert chosen[0] <= chosen[1] <= chosen[2]
    # Every patient with x has something rarer too: x is nobody's stratum.
    nobodys = {"1": {"x", "y"}, "2": {"x", "z"}, "3": {"z"}, "4": {"y"}, "5": {"z"}, "6": {"y"}}
    nobodys |= {f"x{n}": {"x", "y"} for n in range(9)} | {f"z{n}": {"z"} for n in range(30)}
    for seed in range(10):
        chosen = [in_fraction(nobodys, fraction, seed) for fraction in (0.01, 0.2, 0.6)]
        assert {"x", "y", "z"} <= {name for p in chosen[0] for name in nobodys[p]}
        assert chosen[0] <= chosen[1] <= chosen[2]


def test_the_choice_is_one_of_patients_labels_fraction_and_seed_alone() -> None:
    shuffled = dict(sorted(MANY.items(), key=lambda item: item[0][::-1]))
    assert in_fraction(shuffled, 0.25, 7) == in_fraction(MANY, 0.25, 7)
    assert in_fraction(MANY, 0.25, 8) != in_fraction(MANY, 0.25, 7)
    # A patient's place does not depend on the others: those that stay keep their order.
    fewer = {name: labels for name, labels in MANY.items() if name != "a3"}
    assert len(in_fraction(fewer, 0.25, 7) ^ in_fraction(MANY, 0.25, 7)) <= 2


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_a_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        in_fraction(MANY, fraction, 0)


def test_validation_patients_are_a_share_of_each_class_and_training_keeps_every_class() -> None:
    for seed in range(5):
        held = held_for_validation(MANY, 0.2, seed)
        assert "only" not in held
        assert classes(held)["rare"] == 4 and 19 <= len(held & {f"a{n}" for n in range(100)}) <= 20
        assert set(classes(set(MANY) - held)) == {"common", "rare", "finding", "single"}
    assert held_for_validation(MANY, 0.2, 0) != held_for_validation(MANY, 0.2, 1)
    # Two patients of a class: one trains, one validates, whatever the share.
    pair = {"1": {"x"}, "2": {"x"}, "3": {"y"}, "4": {"y"}}
    for share in (0.01, 0.99):
        assert len(held_for_validation(pair, share, 0)) == 2
    with pytest.raises(UsageError, match="between 0 and 1"):
        held_for_validation(MANY, 1.0, 0)


def test_labels_of_a_patient_are_those_of_all_its_images() -> None:
    def fact(key: str, patient: str | None, label: str | None, **labels: int | None) -> Fact:
        return Fact((0, 0, 0), key, label, dict(labels), patient)

    facts = [
        fact("1", "p", None, a=0, b=0),
        fact("2", "p", None, a=1, b=None),
        fact("3", "q", None, a=0, b=0),
        fact("4", None, "c"),
        fact("5", "r", None),
    ]
    assert labels_by_patient(facts) == {"p": {"a"}, "q": {""}, "sample 4": {"c"}}
