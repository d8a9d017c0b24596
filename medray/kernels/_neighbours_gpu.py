"""`neighbours.nearest` on a GPU: torch's products, kernels for what is around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medray.kernels._launch import launch, launch_blocks, require_gpu

if TYPE_CHECKING:
    import torch

    from medray.kernels.neighbours import Found, Tables, Terms

QUERIES_AT_ONCE, _ROWS_AT_ONCE = 8192, 32768
# A block's lists must fit its 48 KiB of shared memory, also as float64.
LARGEST_K = 96
_THREADS_KEEP, _THREADS_RERANK = 32, 128


def check_k(k: int) -> None:
    """ValueError for more neighbours than a block's shared memory holds."""
    if k > LARGEST_K:
        raise ValueError(f"k must be at most {LARGEST_K} on a GPU, got {k}")


def product_types() -> tuple[str, ...]:
    """Coarse to fine. float32 is left out: whether it is TF32 is a setting, and float64 is fast."""
    require_gpu()
    return ("bfloat16", "float64")


def candidates(
    block_ND: torch.Tensor, factors_MD: torch.Tensor, terms: Terms, keep: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows with the smallest bounds of |r|^2 - 2 q.r: bounds (N, C) ascending, indices."""
    import torch

    wide = terms.squares_M.dtype
    bounds = torch.full((len(block_ND), keep), torch.inf, dtype=wide, device=block_ND.device)
    ids = torch.full((len(block_ND), keep), -1, dtype=torch.int32, device=block_ND.device)
    number = "double" if wide == torch.float64 else "float"
    for first in range(0, len(factors_MD), _ROWS_AT_ONCE):
        part_MD = factors_MD[first : first + _ROWS_AT_ONCE]
        if block_ND.dtype == wide:
            tile = block_ND @ part_MD.T
        else:
            tile = torch.mm(block_ND, part_MD.T, out_dtype=wide)
        own = slice(first, first + _ROWS_AT_ONCE)
        arguments = [
            tile, np.uint32(len(part_MD)), terms.squares_M[own], terms.lengths_M[own],
            terms.slack_N, terms.itself_N, np.uint32(first), bounds, ids,
        ]  # fmt: skip
        launch(
            "neighbours", "keep_smallest", len(block_ND), (_THREADS_KEEP, 1), arguments,
            KEEP=keep, NUMBER=number,
        )  # fmt: skip
    return bounds, ids


def rerank(tables: Tables, ids_NC: torch.Tensor, part_N: torch.Tensor, found: Found) -> None:
    """Writes the k nearest of the candidates of the queries `part_N`."""
    import torch

    k = found.squares_Nk.shape[1]
    queries_ND = tables.queries_ND[part_N]
    squares = torch.empty((len(part_N), k), device=part_N.device)
    indices = torch.empty((len(part_N), k), dtype=torch.int64, device=part_N.device)
    dims = np.uint32(queries_ND.shape[1])
    arguments = [queries_ND, tables.rows_MD, dims, ids_NC, np.uint32(k), squares, indices]
    launch_blocks(
        "neighbours", "rerank", len(part_N), _THREADS_RERANK, lambda _: arguments,
        KEEP=ids_NC.shape[1],
    )  # fmt: skip
    found.squares_Nk[part_N], found.indices_Nk[part_N] = squares, indices
