"""The order of samples: a pure function of (seed, epoch), complete in every epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medray import rng
from medray.stream import order as module
from medray.stream.order import Order

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=9)


@pytest.fixture(autouse=True, scope="module")
def small_windows() -> Iterator[None]:
    """Windows of three shards, so that small sets cross their boundaries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW_SHARDS", 3)
        yield


def places(order: Order, first: int, count: int) -> list[tuple[int, int]]:
    shard_N, sample_N = order.locate(np.arange(first, first + count))
    return list(zip(shard_N.tolist(), sample_N.tolist(), strict=True))


def order_ref(seed: int, source: int, sizes: list[int], epoch: int) -> list[tuple[int, int]]:
    """One epoch by loops: permute shards, take three at a time, permute their samples together."""
    shards = rng.permutation(seed, f"stream.shards.{source}", epoch, len(sizes)).tolist()
    found = []
    for window in range((len(sizes) + 2) // 3):
        pool = [(k, i) for k in shards[3 * window : 3 * window + 3] for i in range(sizes[k])]
        address = epoch * 2**24 + window
        drawn = rng.permutation(seed, f"stream.samples.{source}", address, len(pool))
        found += [pool[i] for i in drawn.tolist()]
    return found


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 2**64 - 1), source=st.integers(0, 2))
def test_the_order_is_that_of_the_loop(sizes: list[int], seed: int, source: int) -> None:
    order, total = Order(seed, source, sizes), sum(sizes)
    for epoch in (0, 1, 5):
        wanted = order_ref(seed, source, sizes, epoch)
        assert places(order, epoch * total, total) == wanted


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 1000), epoch=st.integers(0, 10**6))
def test_no_sample_is_lost_or_comes_twice_in_an_epoch(
    sizes: list[int], seed: int, epoch: int
) -> None:
    total = sum(sizes)
    found = places(Order(seed, 0, sizes), epoch * total, total)
    assert sorted(found) == [(k, i) for k, size in enumerate(sizes) for i in range(size)]


@settings(max_examples=40, deadline=None)
@given(sizes=SIZES, cuts=st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_it_does_not_matter_how_the_order_is_asked_for(sizes: list[int], cuts: list[int]) -> None:
    whole = places(Order(7, 0, sizes), 0, sum(cuts))
    pieces, order, at = [], Order(7, 0, sizes), 0
    for cut in cuts:
        pieces += places(order, at, cut)
        at += cut
    assert pieces == whole
    assert places(Order(7, 0, sizes), sum(cuts) - 1, 1) == whole[-1:]


def test_epochs_seeds_and_sources_have_orders_of_their_own() -> None:
    sizes = [40, 40]
    first = places(Order(1, 0, sizes), 0, 80)
    assert places(Order(1, 0, sizes), 80, 80) != first
    assert places(Order(2, 0, sizes), 0, 80) != first
    assert places(Order(1, 1, sizes), 0, 80) != first


def test_a_set_of_few_shards_is_shuffled_whole() -> None:
    shards = [shard for shard, _ in places(Order(3, 0, [300, 300, 300]), 0, 900)]
    for part in (shards[:300], shards[300:600], shards[600:]):
        assert all(70 < part.count(shard) < 130 for shard in range(3))


def test_few_shards_are_in_use_at_a_time_however_many_there_are() -> None:
    found = places(Order(4, 0, [10] * 60), 0, 1200)
    for first in range(0, 1200, 30):
        assert len({shard for shard, _ in found[first : first + 30]}) <= 3


def test_an_epoch_of_a_hundred_thousand_samples_is_ordered_in_a_moment() -> None:
    order = Order(5, 0, [1000] * 100)
    shard_N, sample_N = order.locate(np.arange(100_000))
    assert len(np.unique(shard_N * 1000 + sample_N)) == 100_000
