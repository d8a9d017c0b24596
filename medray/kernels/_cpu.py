"""What the CPU implementations share: compiled loops, threads, torch's products."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])

# Sums may be reordered and NaN does not occur: minima and dot products then use whole vectors.
# Infinity does occur, as the distance of what was not seen yet.
_MATHS = {"nnan", "nsz", "arcp", "contract", "reassoc"}


def compiled(function: F) -> F:
    """The loop compiled for this CPU at its first call, kept on disk; it runs without the GIL."""
    options: Any = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": _MATHS}
    return cast(F, numba.njit(**options)(function))


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
