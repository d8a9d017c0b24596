"""What the CPU implementations share: compiled loops, threads, torch's products."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import numba
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Loop = Callable[..., Any]

# Sums may be reordered and NaN does not occur: minima and dot products then use whole vectors.
# Infinity does occur, as the distance of what was not seen yet.
_MATHS = {"nnan", "nsz", "arcp", "contract", "reassoc"}


_NUMBERS_AT_ONCE = 2**17
_OPTIONS: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": _MATHS,
}


def compiled(function: Loop) -> Loop:
    """The loop compiled for this CPU at its first call, kept on disk; it runs without the GIL."""
    return cast(Loop, numba.njit(**_OPTIONS)(function))


def inlined(function: Loop) -> Loop:
    """A step of compiled loops, built into each: only then are they made of whole vectors."""
    return cast(Loop, numba.njit(forceinline=True, **_OPTIONS)(function))


def split(rows: int, work: Callable[[int, int], object], at_least: int = 64) -> None:
    """Calls work(first, last) over parts of range(rows), on as many threads as torch uses."""
    import torch

    parts = max(1, min(torch.get_num_threads(), rows // at_least))
    if parts == 1:
        work(0, rows)
        return
    borders = [rows * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(work, borders[:-1], borders[1:]))


def fill(out_ND: torch.Tensor, draw: Callable[[NDArray[np.float32], slice], object]) -> None:
    """Calls draw(rows, slice) for all rows of `out_ND`, float32 whatever the type of `out_ND`."""
    import torch

    whole = out_ND.numpy() if out_ND.dtype == torch.float32 else None
    step = max(1, _NUMBERS_AT_ONCE // max(out_ND.shape[1], 1))

    def part(low: int, high: int) -> None:
        if whole is not None:
            draw(whole[low:high], slice(low, high))
            return
        for first in range(low, high, step):
            rows = slice(first, min(first + step, high))
            buffer = np.empty((rows.stop - rows.start, out_ND.shape[1]), np.float32)
            draw(buffer, rows)
            out_ND[rows] = torch.from_numpy(buffer)

    split(len(out_ND), part)
