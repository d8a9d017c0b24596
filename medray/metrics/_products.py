"""The product behind distances and kernels between sets: float32, through the faster library.

Shape letters: N and M rows, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

ROWS_AT_ONCE = 1024


def quick(rows_ND: torch.Tensor) -> torch.Tensor:
    """Rows as bfloat16 where the processor multiplies that fast, else as they are."""
    import torch

    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return rows_ND.bfloat16() if fast else rows_ND


def product(rows_ND: torch.Tensor, columns_MD: torch.Tensor) -> torch.Tensor:
    """Rows times columns', (N, M), float32 (of bfloat16, rounded to that before).

    float32 by oneDNN, which has the vectors of every maker's processor in use; what torch calls
    for a plain product is half as fast on some (measured: 229 to 104 GFLOP/s a core).
    """
    import torch

    linear: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if rows_ND.dtype != torch.float32 or linear is None or not torch._C._has_mkldnn:
        return (rows_ND @ columns_MD.T).float()
    found: torch.Tensor = linear(rows_ND, columns_MD, None, "none", [], "")
    return found


def as_float32(
    rows_ND: NDArray[np.floating[Any]], less_D: NDArray[Any] | None = None
) -> torch.Tensor:
    """Rows as a float32 tensor (N, D), less a row that is taken off in their own precision."""
    import torch

    found_ND = np.empty(rows_ND.shape, np.float32)
    for first, last in blocks(len(rows_ND)):
        part_ND = rows_ND[first:last]
        found_ND[first:last] = part_ND if less_D is None else part_ND - less_D
    return torch.from_numpy(found_ND)


def blocks(count: int, times: int = 1) -> Iterator[tuple[int, int]]:
    """First and last row of one block after the other."""
    step = times * ROWS_AT_ONCE
    for first in range(0, count, step):
        yield first, min(count, first + step)
