"""Permutations: different, far apart, the same for a seed."""

from __future__ import annotations

import numpy as np
import pytest

from medray import rng
from medray.errors import UsageError
from medray.train import permutations


def test_they_are_different_orders_of_nine_pieces_and_a_function_of_the_seed() -> None:
    found = permutations.choose(60, 3)
    assert len(set(found)) == 60 and {"".join(sorted(text)) for text in found} == {"012345678"}
    assert found == permutations.choose(60, 3) != permutations.choose(60, 4)
    assert permutations.choose(10, 3) == found[:10], "fewer are the first of more"


def test_they_are_farther_apart_than_ones_at_random() -> None:
    drawn = [rng.permutation(0, "test.orders", n, 9).tolist() for n in range(200)]
    at_random = tuple(dict.fromkeys("".join(map(str, order)) for order in drawn))
    found = permutations.choose(200, 0)
    assert permutations.least_distance(found) >= 6 > permutations.least_distance(at_random)


def test_nine_of_them_can_differ_everywhere() -> None:
    assert permutations.least_distance(permutations.choose(5, 0)) == 9


@pytest.mark.parametrize("count", [1, 5001])
def test_counts_that_cannot_be_are_refused(count: int) -> None:
    with pytest.raises(UsageError, match="permutations must be 2 to 5,000"):
        permutations.choose(count, 0)


def test_the_least_distance_is_that_of_the_closest_pair() -> None:
    texts = ("012345678", "102345678", "876543210")
    assert permutations.least_distance(texts) == 2
    orders = np.array([list(map(int, text)) for text in texts])
    assert (orders[0] != orders[1]).sum() == 2
