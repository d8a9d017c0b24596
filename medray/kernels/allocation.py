"""Which rows SMOTE starts from: all alike, those in danger (borderline), or by ADASYN's share.

Shape letters: N rows of a class, M rows of all classes, k neighbours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medray.kernels._arrays import Array, as_numpy, as_table, check_labels, like, on_gpu


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
