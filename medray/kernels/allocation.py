"""Which rows SMOTE starts from: all alike, those in danger (borderline), or by ADASYN's share.

Shape letters: N rows of a class or samples, M rows of all classes, k neighbours, K classes,
P rows that can be chosen, K1 = K + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medray import rng
from medray.kernels._arrays import (
    Array,
    address,
    as_numpy,
    as_table,
    check_labels,
    check_samples,
    indices_of,
    like,
    on_gpu,
)
from medray.kernels.labels import alias_table

STREAM = "sample.bases"


def foreign_neighbours(neighbours_Nk: Array, own_N: Array, labels_M: Array) -> Array:
    """How many of each row's k neighbours have another label than the row's own: int32 (N,)."""
    import torch

    _check(neighbours_Nk, own_N, labels_M)
    near, own, labels = (
        as_table(a, kind)
        for a, kind in ((neighbours_Nk, "int64"), (own_N, "int32"), (labels_M, "int32"))
    )
    counts = torch.empty(len(near), dtype=torch.int32, device=near.device)
    if on_gpu(neighbours_Nk, own_N, labels_M):
        from medray.kernels._launch import launch_each

        arguments = [counts, np.int64(len(near)), near, np.uint32(near.shape[1]), own, labels]
        launch_each("allocation", "foreign_neighbours", len(near), arguments)
        return like(counts, neighbours_Nk)
    from medray.kernels import _sampling_cpu as loops

    loops.foreign_neighbours(counts.numpy(), near.numpy(), own.numpy(), labels.numpy())
    return like(counts, neighbours_Nk)


def foreign_neighbours_ref(
    neighbours_Nk: Array, own_N: Array, labels_M: Array
) -> NDArray[np.int32]:
    """The definition of `foreign_neighbours`."""
    _check(neighbours_Nk, own_N, labels_M)
    others_Nk = as_numpy(labels_M)[as_numpy(neighbours_Nk)] != as_numpy(own_N)[:, None]
    return np.asarray(others_Nk.sum(1), np.int32)


def in_danger(foreign_N: Array, k: int) -> Array:
    """Borderline rows, bool (N,): at least half of the k neighbours foreign, but not all.

    Han, Wang and Mao 2005; a row all of whose neighbours are foreign is noise.
    """
    return (2 * foreign_N >= k) & (foreign_N < k)


def adasyn_counts(foreign_N: Array, count: int) -> NDArray[np.int64]:
    """How many of `count` samples start from each row, (N,): its share of the foreign neighbours.

    He et al. 2008; rounded for each row, as imbalanced-learn does, so the sum can differ by some.
    ValueError where no row has a foreign neighbour.
    """
    foreign = as_numpy(foreign_N).astype(np.float64)
    if not foreign.sum():
        raise ValueError(
            "ADASYN has nothing to go by: no row has a neighbour of another class (SMOTE has)"
        )
    return np.asarray(np.rint(foreign / foreign.sum() * count), np.int64)


@dataclass(frozen=True)
class Pools:
    """For each class the rows that can be chosen, with an alias table of their weights."""

    offsets_K1: NDArray[np.int64]
    rows_P: NDArray[np.int64]
    thresholds_P: NDArray[np.uint64]
    aliases_P: NDArray[np.int64]

    @classmethod
    def of(cls, weights_M: NDArray[np.float64], labels_M: NDArray[np.int64], classes: int) -> Pools:
        """Pools of the rows with a positive weight; a class without one is empty."""
        tables = []
        for c in range(classes):
            rows_P = np.flatnonzero((labels_M == c) & (weights_M > 0))
            thresholds_P, aliases_P = np.empty(0, np.uint64), np.empty(0, np.int64)
            if len(rows_P):
                thresholds_P, slots_P = alias_table(weights_M[rows_P])
                aliases_P = rows_P[slots_P]
            tables.append((rows_P, thresholds_P, aliases_P))
        rows_P, thresholds_P, aliases_P = (
            np.concatenate(parts) for parts in zip(*tables, strict=True)
        )
        sizes_K = [len(table[0]) for table in tables]
        return cls(np.cumsum([0, *sizes_K]), rows_P, thresholds_P, aliases_P)

    @property
    def sizes_K(self) -> NDArray[np.int64]:
        """How many rows each class can be drawn from."""
        return np.diff(self.offsets_K1)


def choose(
    seed: int, labels_N: Array, pools: Pools, *, start: int = 0, stream: str = STREAM
) -> Array:
    """A row of each sample's class by weight: int64 (N,), for samples start .. start + N.

    ValueError for a class whose pool is empty.
    """
    import torch

    _check_pools(labels_N, pools)
    check_samples(start, len(labels_N))
    labels = as_table(labels_N, "int32")
    chosen = torch.empty(len(labels), dtype=torch.int64, device=labels.device)
    where = address(seed, stream, start)
    tables = [pools.offsets_K1, pools.rows_P, pools.thresholds_P, pools.aliases_P]
    if on_gpu(labels_N):
        from medray.kernels._launch import launch_each

        there = [torch.from_numpy(table.view(np.int64)).to(labels.device) for table in tables]
        arguments = [chosen, np.int64(len(labels)), *where, labels, *there]
        launch_each("allocation", "choose_rows", len(labels), arguments)
        return like(chosen, labels_N)
    from medray.kernels import _sampling_cpu as loops
    from medray.kernels._cpu import split

    numbers, indices_N, own_N = chosen.numpy(), indices_of(start, len(labels)), labels.numpy()
    words = [np.uint64(word) for word in where[1:]]
    split(
        len(labels),
        lambda low, high: loops.choose_rows(
            numbers[low:high], indices_N[low:high], *words, own_N[low:high], *tables
        ),
        at_least=4096,
    )
    return like(chosen, labels_N)


def choose_ref(
    seed: int, labels_N: Array, pools: Pools, *, start: int = 0, stream: str = STREAM
) -> NDArray[np.int64]:
    """The definition of `choose`, sample by sample."""
    _check_pools(labels_N, pools)
    chosen_N = np.empty(len(labels_N), np.int64)
    for n, label in enumerate(as_numpy(labels_N)):
        first, last = pools.offsets_K1[label : label + 2]
        slot = first + rng.integers(seed, stream, start + n, 1, 0, int(last - first))[0]
        coin = rng.bits(seed, stream, start + n, 1, start=2)[0]
        own = coin < pools.thresholds_P[slot]
        chosen_N[n] = pools.rows_P[slot] if own else pools.aliases_P[slot]
    return chosen_N


def _check_pools(labels_N: Array, pools: Pools) -> None:
    check_labels(labels_N, len(labels_N), len(pools.sizes_K))
    for label in np.flatnonzero(pools.sizes_K == 0):
        if bool((labels_N == int(label)).any()):
            raise ValueError(f"there is no row to start from for class {label}")


def _check(neighbours_Nk: Array, own_N: Array, labels_M: Array) -> None:
    if neighbours_Nk.ndim != 2 or not neighbours_Nk.shape[1]:
        raise ValueError(
            f"neighbours must have shape (N, k), k at least 1, got {tuple(neighbours_Nk.shape)}"
        )
    for name, labels, rows in (
        ("own labels", own_N, len(neighbours_Nk)),
        ("labels", labels_M, len(labels_M)),
    ):
        if tuple(labels.shape) != (rows,) or "int" not in str(labels.dtype):
            raise ValueError(
                f"{name} must be integers of shape ({rows},), got {labels.dtype} "
                f"of shape {tuple(labels.shape)}"
            )
    check_labels(neighbours_Nk.reshape(-1), neighbours_Nk.shape[0] * neighbours_Nk.shape[1],
                 len(labels_M))  # fmt: skip
