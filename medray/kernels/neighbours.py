"""Exact k nearest neighbours: a blocked product, the best of it kept, re-ranked in float32.

|q - r|^2 = |q|^2 + |r|^2 - 2 q.r needs one matrix product, and its rounding can swap neighbours.
So a few more than k are kept by a lower bound of the distance, their distances are computed again
from the differences, and a query whose k-th distance is not below every bound left out is done
again with a finer product: float32, at last float64. Where the CPU multiplies bfloat16 fast, the
first product is bfloat16.

Shape letters: N queries, M rows, D dimensions, k neighbours, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medray.kernels._arrays import (
    Array,
    as_numpy,
    as_tensor,
    check_finite,
    check_rows,
    like,
    on_gpu,
)

if TYPE_CHECKING:
    import torch

SPARE = 16
_QUERIES_AT_ONCE, _ROWS_AT_ONCE = 1024, 4096
# Half a unit in the last place of each type, relative.
_UNITS = {"bfloat16": 2.0**-9, "float32": 2.0**-24, "float64": 2.0**-53}


def nearest(
    queries_ND: Array, rows_MD: Array, k: int, *, exclude_self: bool = False
) -> tuple[Array, Array]:
    """The k nearest rows of each query: Euclidean distances (N, k) float32, indices (N, k) int64.

    Nearest first, equal distances by index. With `exclude_self` the queries are the rows and query
    i leaves out row i (but not its duplicates). NumPy or torch in, the same kind out. Exact but for
    distances that float32 does not tell apart. ValueError for NaN and for fewer than k rows.
    """
    check_neighbours(queries_ND, rows_MD, k, exclude_self)
    if on_gpu(queries_ND, rows_MD):
        raise NotImplementedError("neighbours on a GPU")
    distances_Nk, indices_Nk = _nearest_cpu(
        as_tensor(queries_ND), as_tensor(rows_MD), k, exclude_self
    )
    return like(distances_Nk, queries_ND), like(indices_Nk, queries_ND)


def nearest_ref(
    queries_ND: Array, rows_MD: Array, k: int, *, exclude_self: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The definition of `nearest`: all differences, in float64."""
    check_neighbours(queries_ND, rows_MD, k, exclude_self)
    queries_ND, rows_MD = (as_numpy(a).astype(np.float64) for a in (queries_ND, rows_MD))
    distances_NM = np.sqrt(((queries_ND[:, None] - rows_MD) ** 2).sum(2))
    if exclude_self:
        np.fill_diagonal(distances_NM, np.inf)
    indices_Nk = np.argsort(distances_NM, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances_NM, indices_Nk, 1).astype(np.float32), indices_Nk


def check_neighbours(queries_ND: Array, rows_MD: Array, k: int, exclude_self: bool) -> None:
    """ValueError unless the k neighbours of each query exist."""
    check_rows("rows", rows_MD)
    check_rows("queries", queries_ND, rows_MD.shape[1])
    if exclude_self and len(queries_ND) != len(rows_MD):
        raise ValueError(
            f"with exclude_self the queries must be the rows, got {len(queries_ND)} queries "
            f"and {len(rows_MD)} rows"
        )
    others = len(rows_MD) - exclude_self
    if not 1 <= k <= max(others, 0) and len(queries_ND):
        raise ValueError(f"k must be 1 to {others}, the number of (other) rows, got {k}")
    check_finite("rows", rows_MD)
    if queries_ND is not rows_MD:
        check_finite("queries", queries_ND)


def _nearest_cpu(
    queries_ND: torch.Tensor, rows_MD: torch.Tensor, k: int, exclude_self: bool
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    import torch

    count = len(queries_ND)
    found = _Found(np.empty((count, k), np.float32), np.empty((count, k), np.int64))
    tables = _tables(queries_ND, rows_MD)
    itself_N = np.arange(count) if exclude_self else np.full(count, -1)
    todo_N = np.arange(count)
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    for name in ("bfloat16", "float32", "float64")[0 if fast else 1 :]:
        if len(todo_N):
            todo_N = _pass(tables, itself_N, todo_N, found, name)
    return np.sqrt(found.squares_Nk), found.indices_Nk


@dataclass(frozen=True)
class _Tables:
    """Queries and rows in float32: as given, for differences, and centred, for products."""

    queries_ND: torch.Tensor
    rows_MD: torch.Tensor
    centred_queries_ND: torch.Tensor
    centred_rows_MD: torch.Tensor


@dataclass(frozen=True)
class _Found:
    """Results so far: squared distances and indices."""

    squares_Nk: NDArray[np.float32]
    indices_Nk: NDArray[np.int64]


def _tables(queries_ND: torch.Tensor, rows_MD: torch.Tensor) -> _Tables:
    """Less the rows' mean, numbers are small and lose less in the product.

    float64 loses its common offset before it becomes float32, narrower numbers lose nothing.
    """
    import torch

    if rows_MD.dtype == torch.float64 or queries_ND.dtype == torch.float64:
        centre_D = rows_MD.double().mean(0)
        rows_MD, queries_ND = rows_MD - centre_D, queries_ND - centre_D
    rows, queries = (a.float().contiguous() for a in (rows_MD, queries_ND))
    centre_D = rows.mean(0, dtype=torch.float64).float()
    return _Tables(queries, rows, queries - centre_D, rows - centre_D)


def _pass(
    tables: _Tables,
    itself_N: NDArray[np.int64],
    todo_N: NDArray[np.int64],
    found: _Found,
    name: str,
) -> NDArray[np.int64]:
    """Fills `found` for the queries `todo_N`; returns those whose result is not certain yet.

    The product is of the type `name`, what is added to it float32 (float64 with float64).
    """
    import torch

    wide = torch.float64 if name == "float64" else torch.float32
    rows = tables.centred_rows_MD.to(wide)
    squares_M = rows.square().sum(1)
    terms = squares_M.numpy(), squares_M.sqrt().numpy()
    factors = rows.to(getattr(torch, name))
    unsure = []
    for first in range(0, len(todo_N), _QUERIES_AT_ONCE):
        part_N = todo_N[first : first + _QUERIES_AT_ONCE]
        block = tables.centred_queries_ND[part_N].to(wide)
        squares_N = block.square().sum(1)
        slack_N = (squares_N.sqrt() * _slack(name, rows.shape[1])).numpy()
        keep = min(found.squares_Nk.shape[1] + SPARE, len(rows))
        bounds_NC, ids_NC = _candidates(
            block.to(factors.dtype), factors, (*terms, slack_N, itself_N[part_N]), keep
        )
        limits_N = squares_N.numpy() * (1 - 1e-5 * (wide == torch.float32)) + bounds_NC[:, -1]
        if keep == len(rows):
            limits_N[:] = np.inf
        unsure.append(part_N[_rerank(tables, ids_NC, part_N, found) >= limits_N])
    return np.concatenate(unsure)


def _slack(name: str, dims: int) -> float:
    """How far 2 q.r can be off, over |q| |r|: factors, products and sums rounded, and the result.

    The rounding of the sum is that of its wide type, whatever the order of its terms.
    """
    narrow = 3.05 * _UNITS["bfloat16"] if name == "bfloat16" else 0.0
    return 2 * (narrow + (dims + 4) * _UNITS["float64" if name == "float64" else "float32"])


def _candidates(
    block: torch.Tensor, factors: torch.Tensor, terms: tuple[NDArray[Any], ...], keep: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The rows with the smallest bounds of |r|^2 - 2 q.r: bounds (N, C) ascending and indices.

    `terms` are |r|^2 and |r| (M,), the slack and the own index (N,).
    """
    import torch

    from medray.kernels import _neighbours_cpu as loops
    from medray.kernels._cpu import split

    squares_M, lengths_M, slack_N, itself_N = terms
    bounds_NC = np.full((len(block), keep), np.inf, squares_M.dtype)
    ids_NC = np.full((len(block), keep), -1)
    for first in range(0, len(factors), _ROWS_AT_ONCE):
        columns = slice(first, first + _ROWS_AT_ONCE)
        product = block @ factors[columns].T
        scan: Any = loops.keep_smallest
        if product.dtype == torch.bfloat16:
            scan, product = loops.keep_smallest_bfloat16, product.view(torch.uint16)
        given = product.numpy(), squares_M[columns], lengths_M[columns], slack_N, itself_N, first

        def work(low: int, high: int, scan: Any = scan, given: Any = given) -> None:
            scan(*given, bounds_NC, ids_NC, low, high)

        split(len(block), work)
    return bounds_NC, ids_NC


def _rerank(
    tables: _Tables, ids_NC: NDArray[np.int64], part_N: NDArray[np.int64], found: _Found
) -> NDArray[np.float32]:
    """Writes the k nearest of the candidates; the square of the k-th distance, a little more."""
    from medray.kernels import _neighbours_cpu as loops
    from medray.kernels._cpu import split

    queries, rows = tables.queries_ND.numpy(), tables.rows_MD.numpy()
    split(
        len(part_N),
        lambda low, high: loops.rerank(
            queries, rows, ids_NC, part_N, found.squares_Nk, found.indices_Nk, low, high
        ),
    )
    return np.asarray(found.squares_Nk[part_N, -1] * np.float32(1 + 1e-5))
