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
from types import ModuleType
from typing import TYPE_CHECKING

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
        from medray.kernels import _neighbours_gpu as home
    else:
        from medray.kernels import _neighbours_cpu as home  # type: ignore[no-redef]
    home.check_k(k)
    squares, indices = _search(home, as_tensor(queries_ND), as_tensor(rows_MD), k, exclude_self)
    return like(squares.sqrt_(), queries_ND), like(indices, queries_ND)


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


def _search(
    home: ModuleType, queries_ND: torch.Tensor, rows_MD: torch.Tensor, k: int, exclude_self: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared distances and indices; `home` has what is done on this array's home."""
    import torch

    count, device = len(queries_ND), rows_MD.device
    found = Found(
        torch.empty((count, k), device=device),
        torch.empty((count, k), dtype=torch.int64, device=device),
    )
    tables = _tables(queries_ND, rows_MD)
    todo_N = torch.arange(count, device=device)
    itself_N = todo_N if exclude_self else torch.full_like(todo_N, -1)
    for name in home.product_types():
        if len(todo_N):
            todo_N = _pass(home, tables, itself_N, todo_N, found, name)
    return found.squares_Nk, found.indices_Nk


@dataclass(frozen=True)
class Tables:
    """Queries and rows in float32: as given, for differences, and centred, for products."""

    queries_ND: torch.Tensor
    rows_MD: torch.Tensor
    centred_queries_ND: torch.Tensor
    centred_rows_MD: torch.Tensor


@dataclass(frozen=True)
class Found:
    """Results so far: squared distances and indices."""

    squares_Nk: torch.Tensor
    indices_Nk: torch.Tensor


@dataclass(frozen=True)
class Terms:
    """What makes a product a bound: |r|^2 and |r| of the rows, slack and own index of queries."""

    squares_M: torch.Tensor
    lengths_M: torch.Tensor
    slack_N: torch.Tensor
    itself_N: torch.Tensor


def _tables(queries_ND: torch.Tensor, rows_MD: torch.Tensor) -> Tables:
    """Less the rows' mean, numbers are small and lose less in the product.

    float64 loses its common offset before it becomes float32, narrower numbers lose nothing.
    """
    import torch

    if rows_MD.dtype == torch.float64 or queries_ND.dtype == torch.float64:
        centre_D = rows_MD.double().mean(0)
        rows_MD, queries_ND = rows_MD - centre_D, queries_ND - centre_D
    rows, queries = (a.float().contiguous() for a in (rows_MD, queries_ND))
    centre_D = rows.mean(0, dtype=torch.float64).float()
    return Tables(queries, rows, queries - centre_D, rows - centre_D)


def _pass(
    home: ModuleType,
    tables: Tables,
    itself_N: torch.Tensor,
    todo_N: torch.Tensor,
    found: Found,
    name: str,
) -> torch.Tensor:
    """Fills `found` for the queries `todo_N`; returns those whose result is not certain yet.

    The product is of the type `name`, what is added to it float32 (float64 with float64).
    """
    import torch

    wide = torch.float64 if name == "float64" else torch.float32
    rows = tables.centred_rows_MD.to(wide)
    squares_M = rows.square().sum(1)
    factors = rows.to(getattr(torch, name))
    keep = min(found.squares_Nk.shape[1] + SPARE, len(rows))
    unsure = []
    for first in range(0, len(todo_N), home.QUERIES_AT_ONCE):
        part_N = todo_N[first : first + home.QUERIES_AT_ONCE]
        block = tables.centred_queries_ND[part_N].to(wide)
        squares_N = block.square().sum(1)
        slack_N = squares_N.sqrt() * _slack(name, rows.shape[1])
        terms = Terms(squares_M, squares_M.sqrt(), slack_N, itself_N[part_N])
        bounds_NC, ids_NC = home.candidates(block.to(factors.dtype), factors, terms, keep)
        limits_N = squares_N * (1 - 1e-5 * (wide == torch.float32)) + bounds_NC[:, -1]
        home.rerank(tables, ids_NC, part_N, found)
        if keep < len(rows):
            farthest_N = found.squares_Nk[part_N, -1] * (1 + 1e-5)
            unsure.append(part_N[farthest_N >= limits_N])
    return torch.cat(unsure) if unsure else todo_N[:0]


def _slack(name: str, dims: int) -> float:
    """How far 2 q.r can be off, over |q| |r|: factors, products and sums rounded, and the result.

    The rounding of the sum is that of its wide type, whatever the order of its terms.
    """
    narrow = 3.05 * _UNITS["bfloat16"] if name == "bfloat16" else 0.0
    return 2 * (narrow + (dims + 4) * _UNITS["float64" if name == "float64" else "float32"])
