"""`neighbours.nearest` on the CPU: torch's products, compiled loops for what is around them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medray.kernels._cpu import compiled, inlined, split

if TYPE_CHECKING:
    import torch

    from medray.kernels.neighbours import Found, Tables, Terms

QUERIES_AT_ONCE, _ROWS_AT_ONCE = 1024, 4096
_WIDE = 64
_HALF = np.uint32(16)


def check_k(k: int) -> None:
    """Any k will do."""


def product_types() -> tuple[str, ...]:
    """Coarse to fine; bfloat16 first where the CPU has instructions for it."""
    import torch

    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return ("bfloat16", "float32", "float64")[0 if fast else 1 :]


def candidates(
    block_ND: torch.Tensor, factors_MD: torch.Tensor, terms: Terms, keep: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows with the smallest bounds of |r|^2 - 2 q.r: bounds (N, C) ascending, indices."""
    import torch

    bounds_NC = np.full((len(block_ND), keep), np.inf, terms.squares_M.numpy().dtype)
    ids_NC = np.full((len(block_ND), keep), -1)
    narrow = block_ND.dtype == torch.bfloat16
    scan: Any = keep_smallest_bfloat16 if narrow else keep_smallest
    columns = min(_ROWS_AT_ONCE, len(factors_MD))
    products = torch.empty(len(block_ND) * columns, dtype=block_ND.dtype)
    for first in range(0, len(factors_MD), columns):
        part_MD = factors_MD[first : first + columns]
        tile = products[: len(block_ND) * len(part_MD)].view(len(block_ND), len(part_MD))
        torch.mm(block_ND, part_MD.T, out=tile)
        given = (
            (tile.view(torch.uint16) if narrow else tile).numpy(),
            terms.squares_M[first : first + columns].numpy(),
            terms.lengths_M[first : first + columns].numpy(),
            terms.slack_N.numpy(),
            terms.itself_N.numpy(),
            first,
            bounds_NC,
            ids_NC,
        )

        def work(low: int, high: int, given: Any = given) -> None:
            scan(*given, low, high)

        split(len(block_ND), work)
    return torch.from_numpy(bounds_NC), torch.from_numpy(ids_NC)


def rerank(tables: Tables, ids_NC: torch.Tensor, part_N: torch.Tensor, found: Found) -> None:
    """Writes the k nearest of the candidates of the queries `part_N`."""
    arrays = (tables.queries_ND, tables.rows_MD, ids_NC, part_N, found.squares_Nk, found.indices_Nk)
    numbers = [tensor.numpy() for tensor in arrays]
    split(len(part_N), lambda low, high: _rerank(*numbers, low, high))


@inlined
def _insert(bounds_C: Any, ids_C: Any, bound: Any, row: Any) -> None:
    """Puts one candidate in its place; what was there before comes first among equals."""
    place = len(bounds_C) - 1
    while place > 0 and bounds_C[place - 1] > bound:
        bounds_C[place] = bounds_C[place - 1]
        ids_C[place] = ids_C[place - 1]
        place -= 1
    bounds_C[place] = bound
    ids_C[place] = row


@compiled
def keep_smallest(
    tile_NM: NDArray[Any],
    squares_M: NDArray[Any],
    lengths_M: NDArray[Any],
    slack_N: NDArray[Any],
    itself_N: NDArray[np.int64],
    first: int,
    bounds_NC: NDArray[Any],
    ids_NC: NDArray[np.int64],
    low: int,
    high: int,
) -> None:
    """Merges a tile of products q.r into the smallest bounds of |r|^2 - 2 q.r - slack |r|.

    Most stretches of a row hold nothing to keep, which whole vectors of comparisons tell.
    """
    columns, last = tile_NM.shape[1], bounds_NC.shape[1] - 1
    two = np.float32(2)
    for n in range(low, high):
        slack, worst = slack_N[n], bounds_NC[n, last]
        for start in range(0, columns, _WIDE):
            products = tile_NM[n, start : start + _WIDE]
            squares = squares_M[start : start + _WIDE]
            lengths = lengths_M[start : start + _WIDE]
            hits = np.int32(0)
            for m in range(len(products)):
                bound = squares[m] - two * products[m] - slack * lengths[m]
                hits = np.int32(hits + (np.int32(1) if bound < worst else np.int32(0)))
            for m in range(len(products) if hits > 0 else 0):
                bound = squares[m] - two * products[m] - slack * lengths[m]
                if bound < worst and first + start + m != itself_N[n]:
                    _insert(bounds_NC[n], ids_NC[n], bound, first + start + m)
                    worst = bounds_NC[n, last]


@compiled
def keep_smallest_bfloat16(
    tile_NM: NDArray[np.uint16],
    squares_M: NDArray[np.float32],
    lengths_M: NDArray[np.float32],
    slack_N: NDArray[np.float32],
    itself_N: NDArray[np.int64],
    first: int,
    bounds_NC: NDArray[np.float32],
    ids_NC: NDArray[np.int64],
    low: int,
    high: int,
) -> None:
    """`keep_smallest` of bfloat16: the upper halves of float32, which NumPy has no name for."""
    columns, last = tile_NM.shape[1], bounds_NC.shape[1] - 1
    two = np.float32(2)
    for n in range(low, high):
        slack, worst = slack_N[n], bounds_NC[n, last]
        for start in range(0, columns, _WIDE):
            products = tile_NM[n, start : start + _WIDE]
            squares = squares_M[start : start + _WIDE]
            lengths = lengths_M[start : start + _WIDE]
            hits = np.int32(0)
            for m in range(len(products)):
                product = np.uint32(np.uint32(products[m]) << _HALF).view(np.float32)
                bound = squares[m] - two * product - slack * lengths[m]
                hits = np.int32(hits + (np.int32(1) if bound < worst else np.int32(0)))
            for m in range(len(products) if hits > 0 else 0):
                product = np.uint32(np.uint32(products[m]) << _HALF).view(np.float32)
                bound = squares[m] - two * product - slack * lengths[m]
                if bound < worst and first + start + m != itself_N[n]:
                    _insert(bounds_NC[n], ids_NC[n], bound, first + start + m)
                    worst = bounds_NC[n, last]


@compiled
def _rerank(
    queries_ND: NDArray[np.float32],
    rows_MD: NDArray[np.float32],
    ids_NC: NDArray[np.int64],
    part_N: NDArray[np.int64],
    squares_Nk: NDArray[np.float32],
    indices_Nk: NDArray[np.int64],
    low: int,
    high: int,
) -> None:
    """Squared distances of the candidates of queries `part_N` from the differences, k in order."""
    dims, candidates, k = queries_ND.shape[1], ids_NC.shape[1], squares_Nk.shape[1]
    squares_C = np.empty(candidates, np.float32)
    for n in range(low, high):
        query_D = queries_ND[part_N[n]]
        for c in range(candidates):
            total = np.float32(0)
            row_D = rows_MD[max(ids_NC[n, c], 0)]
            for d in range(dims):
                difference = query_D[d] - row_D[d]
                total += difference * difference
            squares_C[c] = total
        for place in range(k):
            best = -1
            for c in range(candidates):
                if ids_NC[n, c] >= 0 and (
                    best < 0
                    or squares_C[c] < squares_C[best]
                    or (squares_C[c] == squares_C[best] and ids_NC[n, c] < ids_NC[n, best])
                ):
                    best = c
            squares_Nk[part_N[n], place] = squares_C[best]
            indices_Nk[part_N[n], place] = ids_NC[n, best]
            ids_NC[n, best] = -1
