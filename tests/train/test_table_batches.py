"""Batches from a table: every row once an epoch, classes equally often, a position that resumes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from medray.errors import UsageError
from medray.train.table_batches import TableBatches

ROWS = np.arange(12, dtype=np.float32).reshape(12, 1, 1, 1)
NUMBERS = np.array([0] * 8 + [1] * 3 + [2])


def batches(**more) -> TableBatches:
    return TableBatches(ROWS, NUMBERS, **{"seed": 3, "balanced": True, **more})


def drain(made: TableBatches, images: int, batch: int = 4) -> list[float]:
    return [v for _ in range(images // batch) for v in made.next(batch).images_NCHW[:, 0, 0, 0]]


def test_an_epoch_has_every_row_once_in_an_order_of_its_own() -> None:
    found = drain(batches(balanced=False), 36)
    epochs = [found[:12], found[12:24], found[24:]]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_balanced_classes_come_equally_often_and_rows_of_a_class_too() -> None:
    made = batches()
    first = made.next(24)
    assert np.bincount(first.labels_N).tolist() == [8, 8, 8]
    assert Counter(first.images_NCHW[:, 0, 0, 0].tolist())[11.0] == 8
    counts = Counter(drain(made, 48))
    assert max(counts[v] for v in range(8)) == min(counts[v] for v in range(8)) == 2


def test_a_label_is_that_of_its_row() -> None:
    made = batches()
    for _ in range(10):
        batch = made.next(5)
        assert np.array_equal(batch.labels_N, NUMBERS[batch.images_NCHW[:, 0, 0, 0].astype(int)])


def test_a_position_goes_on_whatever_the_batch_was() -> None:
    whole, part = batches(), batches()
    expected = drain(whole, 40)
    assert drain(part, 20, batch=5) == expected[:20]
    other = batches()
    other.restore(part.state())
    assert drain(other, 20, batch=10) == expected[20:]


def test_another_seed_is_another_order() -> None:
    assert drain(batches(seed=4), 24) != drain(batches(), 24)


def test_other_rows_cannot_be_gone_on_with() -> None:
    state = batches().state()
    changed = TableBatches(ROWS + 1, NUMBERS, seed=3, balanced=True)
    with pytest.raises(UsageError, match="rows_sha256"):
        changed.restore(state)
    with pytest.raises(UsageError, match="balanced"):
        batches(balanced=False).restore(state)


def test_a_class_without_a_row_is_refused() -> None:
    with pytest.raises(UsageError, match="class without a row"):
        TableBatches(ROWS, np.array([0] * 11 + [2]), seed=0, balanced=True)
