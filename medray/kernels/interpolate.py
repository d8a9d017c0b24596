"""Rows between two rows of a table: SMOTE and mixup, everything drawn in the kernel.

Shape letters: N samples, M rows of the table, D dimensions, k neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medray import rng
from medray.kernels._arrays import (
    DTYPES,
    Array,
    address,
    as_numpy,
    as_table,
    as_tensor,
    check_rows,
    check_samples,
    empty,
    indices_of,
    like,
    on_gpu,
)

SMOTE_STREAM, MIXUP_STREAM = "sample.smote", "sample.mixup"


def smote(
    seed: int,
    count: int,
    rows_MD: Array,
    neighbours_Mk: Array,
    *,
    bases_N: Array | None = None,
    start: int = 0,
    stream: str = SMOTE_STREAM,
    dtype: str | None = None,
) -> Array:
    """Rows (N, D) of samples start .. start + count: x_i + u (x_j - x_i), u uniform in [0, 1).

    i is drawn among the rows, or given by `bases_N`; j is one of the k neighbours of i (Chawla et
    al. 2002). All three come of block 0 of the address (seed, stream, sample). The type is that of
    the rows unless told. ValueError for bases or neighbours that are no rows.
    """
    _check_smote(count, rows_MD, neighbours_Mk, bases_N, start)
    dtype = dtype or _type_of(rows_MD)
    out = empty((count, rows_MD.shape[1]), dtype, rows_MD)
    where = address(seed, stream, start)
    neighbours = as_table(neighbours_Mk, "int64")
    if on_gpu(rows_MD, neighbours_Mk, bases_N):
        from medray.kernels._launch import launch_rows

        table = as_table(rows_MD, dtype)
        bases = None if bases_N is None else as_table(bases_N, "int64")
        k = np.uint32(neighbours.shape[1])
        arguments: list[Any] = [*where, table, np.uint64(len(table)), neighbours, k, bases]
        launch_rows("interpolate", "smote_rows", out, arguments)
        return like(out, rows_MD)
    from medray.kernels import _sampling_cpu as loops
    from medray.kernels._cpu import fill

    table_MD = as_table(as_table(rows_MD, dtype), "float32").numpy()
    given = np.full(count, -1) if bases_N is None else as_numpy(bases_N).astype(np.int64)
    indices_N, words = indices_of(start, count), [np.uint64(word) for word in where[1:]]
    near = neighbours.numpy()
    fill(
        out,
        lambda rows, at: loops.smote_rows(rows, indices_N[at], *words, table_MD, near, given[at]),
    )
    return like(out, rows_MD)


def smote_ref(
    seed: int,
    count: int,
    rows_MD: Array,
    neighbours_Mk: Array,
    *,
    bases_N: Array | None = None,
    start: int = 0,
    stream: str = SMOTE_STREAM,
) -> NDArray[np.float32]:
    """The definition of `smote`."""
    rows_MD, neighbours_Mk = as_numpy(rows_MD).astype(np.float32), as_numpy(neighbours_Mk)
    indices_N = indices_of(start, count)
    if bases_N is None:
        bases_N = rng.integers(seed, stream, indices_N, 1, 0, len(rows_MD))[:, 0]
    words_N2 = rng.bits(seed, stream, indices_N, 2, start=2).astype(np.uint64)
    slots_N = (words_N2[:, 0] * np.uint64(neighbours_Mk.shape[1]) >> np.uint64(32)).astype(np.int64)
    shares_N1 = rng.uniforms(seed, stream, indices_N, 1, start=3)
    from_ND = rows_MD[as_numpy(bases_N)]
    to_ND = rows_MD[neighbours_Mk[as_numpy(bases_N), slots_N]]
    return np.asarray(from_ND + shares_N1 * (to_ND - from_ND))


def mixup(
    seed: int,
    count: int,
    rows_MD: Array,
    alpha: float,
    *,
    pairs_N2: Array | None = None,
    start: int = 0,
    stream: str = MIXUP_STREAM,
    dtype: str | None = None,
) -> tuple[Array, Array, Array]:
    """Mixed rows (N, D), the pairs of rows (N, 2) int64, the first's weights (N,) float32.

    Weights are of Beta(alpha, alpha) (Zhang et al. 2018), drawn without rejection (Devroye 1996);
    labels mix by the same weights. Pairs are drawn among all rows, unless `pairs_N2` gives them.
    ValueError unless alpha is 0.01 to 100.
    """
    _check_mixup(count, rows_MD, alpha, pairs_N2, start)
    dtype = dtype or _type_of(rows_MD)
    out = empty((count, rows_MD.shape[1]), dtype, rows_MD)
    import torch

    pairs = torch.empty((count, 2), dtype=torch.int64, device=out.device)
    if pairs_N2 is not None:
        pairs.copy_(as_tensor(pairs_N2))
    weights = torch.empty(count, dtype=torch.float32, device=out.device)
    where = address(seed, stream, start)
    given = pairs_N2 is not None
    if on_gpu(rows_MD, pairs_N2):
        from medray.kernels._launch import launch_rows

        table, power = as_table(rows_MD, dtype), np.float32(1 / alpha)
        arguments = [*where, table, np.uint64(len(table)), power, np.uint32(given), pairs, weights]
        launch_rows("interpolate", "mixup_rows", out, arguments)
    else:
        from medray.kernels import _sampling_cpu as loops
        from medray.kernels._cpu import fill

        table_MD = as_table(as_table(rows_MD, dtype), "float32").numpy()
        indices_N, words = indices_of(start, count), [np.uint64(word) for word in where[1:]]
        numbers_N2, weights_N = pairs.numpy(), weights.numpy()
        fill(
            out,
            lambda rows, at: loops.mixup_rows(
                rows,
                indices_N[at],
                *words,
                table_MD,
                float(alpha),
                given,
                numbers_N2[at],
                weights_N[at],
            ),
        )
    return like(out, rows_MD), like(pairs, rows_MD), like(weights, rows_MD)


def mixup_ref(
    seed: int,
    count: int,
    rows_MD: Array,
    alpha: float,
    *,
    pairs_N2: Array | None = None,
    start: int = 0,
    stream: str = MIXUP_STREAM,
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """The definition of `mixup`: 1/2 + cos(2 pi v) / (2 sqrt(cos^2 + 1 / (u^(-1/a) - 1)))."""
    rows_MD, indices_N = as_numpy(rows_MD).astype(np.float32), indices_of(start, count)
    drawn_N2 = rng.integers(seed, stream, indices_N, 2, 0, len(rows_MD))
    pairs = drawn_N2 if pairs_N2 is None else as_numpy(pairs_N2)
    words_N2 = rng.bits(seed, stream, indices_N, 2, start=4).astype(np.float64)
    with np.errstate(over="ignore", divide="ignore"):
        spread_N = np.expm1(-np.log((words_N2[:, 0] + 1) / rng.WORDS) / alpha)
        cosine_N = np.cos(2 * np.pi * words_N2[:, 1] / rng.WORDS)
        half_N = 0.5 / np.sqrt(1 + 1 / (spread_N * cosine_N**2))
    weights_N = np.where(cosine_N < 0, 0.5 - half_N, 0.5 + half_N).astype(np.float32)
    first_ND, second_ND = rows_MD[pairs[:, 0]], rows_MD[pairs[:, 1]]
    return first_ND + (1 - weights_N)[:, None] * (second_ND - first_ND), pairs, weights_N


def _type_of(rows_MD: Array) -> str:
    """The type of the rows, float32 for wider ones."""
    name = str(as_tensor(rows_MD).dtype).removeprefix("torch.")
    return name if name in DTYPES else "float32"


def _check_smote(
    count: int, rows_MD: Array, neighbours_Mk: Array, bases_N: Array | None, start: int
) -> None:
    check_samples(start, count)
    check_rows("rows", rows_MD)
    shape = tuple(neighbours_Mk.shape)
    if len(shape) != 2 or shape[0] != len(rows_MD) or not shape[1]:
        raise ValueError(
            f"neighbours must have shape (M, k) for the {len(rows_MD)} rows, k at least 1, "
            f"got {shape}"
        )
    if bases_N is not None and tuple(bases_N.shape) != (count,):
        raise ValueError(f"bases must have shape ({count},), got {tuple(bases_N.shape)}")
    for name, numbers in (("neighbours", neighbours_Mk), ("bases", bases_N)):
        _check_numbers(name, numbers, len(rows_MD))
    _check_any(count, rows_MD)


def _check_mixup(
    count: int, rows_MD: Array, alpha: float, pairs_N2: Array | None, start: int
) -> None:
    check_samples(start, count)
    check_rows("rows", rows_MD)
    if not 0.01 <= alpha <= 100:
        raise ValueError(f"alpha must be 0.01 to 100, got {alpha}")
    if pairs_N2 is not None and tuple(pairs_N2.shape) != (count, 2):
        raise ValueError(f"pairs must have shape ({count}, 2), got {tuple(pairs_N2.shape)}")
    _check_numbers("pairs", pairs_N2, len(rows_MD))
    _check_any(count, rows_MD)


def _check_numbers(name: str, numbers: Array | None, rows: int) -> None:
    """ValueError unless all are numbers of rows."""
    if numbers is None or not min(numbers.shape):
        return
    low, high = int(numbers.min()), int(numbers.max())
    if "int" not in str(numbers.dtype) or not 0 <= low <= high < rows:
        raise ValueError(
            f"{name} must be integers from 0 to {rows - 1}, "
            f"got {numbers.dtype} from {low} to {high}"
        )


def _check_any(count: int, rows_MD: Array) -> None:
    if count and not len(rows_MD):
        raise ValueError("there must be rows to draw from, got none")
