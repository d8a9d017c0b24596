"""Truncated normals by the inverse distribution function: no rejection, one word a draw.

Draw d of sample i is the quantile of Phi(low) + u (Phi(high) - Phi(low)), where u is
(word d + 1/2) / 2^32 of the address (seed, stream, i). In float32 within 2e-6 of the definition
(relative beyond 1).

Shape letters: N samples, D dimensions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medray import rng
from medray.kernels._arrays import Array, address, check_samples, empty, indices_of, like, on_gpu

STREAM = "sample.truncated"
EPSILON = 1e-8
_FARTHEST = 9.0


def normal(
    seed: int,
    count: int,
    dims: int,
    *,
    low: float = -2.0,
    high: float = 2.0,
    pixelnorm: bool = False,
    start: int = 0,
    stream: str = STREAM,
    dtype: str = "float32",
    model: Array | None = None,
) -> Array:
    """Rows (N, D) of normals within [low, high], of samples start .. start + count.

    With `pixelnorm` each row is divided by the root of its mean square (1e-8 added). The kind and
    home are those of `model`. ValueError unless -9 <= low < high <= 9.
    """
    cut = cut_of(low, high)
    check_samples(start, count)
    if dims < 1:
        raise ValueError(f"dims must be at least 1, got {dims}")
    out = empty((count, dims), dtype, model)
    where = address(seed, stream, start)
    if on_gpu(model):
        from medray.kernels._launch import c_type, launch_blocks, launch_rows

        if not pixelnorm:
            launch_rows("truncated", "truncated_rows", out, [*where, *cut])
            return like(out, model)
        threads = 128 if dims <= 512 else 256
        launch_blocks(
            "truncated", "truncated_norm_rows", count, threads,
            lambda first: [out[first:], np.uint32(dims), where[0] + np.uint64(first), *where[1:],
                           *cut],
            TYPE=c_type(out),
        )  # fmt: skip
        return like(out, model)
    from medray.kernels import _sampling_cpu as loops
    from medray.kernels._cpu import fill

    indices_N, words = indices_of(start, count), [np.uint64(word) for word in where[1:]]
    fill(
        out,
        lambda rows, at: loops.truncated_rows(rows, indices_N[at], *words, tuple(cut), pixelnorm),
    )
    return like(out, model)


def normal_ref(
    seed: int,
    count: int,
    dims: int,
    *,
    low: float = -2.0,
    high: float = 2.0,
    pixelnorm: bool = False,
    start: int = 0,
    stream: str = STREAM,
) -> NDArray[np.float32]:
    """The definition of `normal`, in float64; beyond the median from the upper tail."""
    from scipy.special import ndtr, ndtri

    check_bounds(low, high)
    width = _width(low, high)
    words_ND = rng.bits(seed, stream, indices_of(start, count), dims).astype(np.float64)
    below_ND = ndtr(low) + width * (words_ND + 0.5) / rng.WORDS
    above_ND = ndtr(-high) + width * (rng.WORDS - words_ND - 0.5) / rng.WORDS
    rows_ND = np.where(below_ND <= 0.5, ndtri(below_ND), -ndtri(above_ND))
    rows_ND = np.clip(rows_ND, low, high)
    if pixelnorm:
        rows_ND /= np.sqrt((rows_ND**2).mean(1, keepdims=True) + EPSILON)
    return np.asarray(rows_ND, np.float32)


def cut_of(low: float, high: float) -> list[np.float32]:
    """What kernels take: the probability below and above the bounds, between them, the bounds.

    A draw beyond the median comes of the probability above it: near 1 float32 is too coarse.
    """
    from scipy.special import ndtr

    check_bounds(low, high)
    numbers = ndtr(low), ndtr(-high), _width(low, high), low, high
    return [np.float32(number) for number in numbers]


def check_bounds(low: float, high: float) -> None:
    """ValueError unless -9 <= low < high <= 9."""
    if not -_FARTHEST <= low < high <= _FARTHEST:
        raise ValueError(f"bounds must be -9 <= low < high <= 9, got low {low} and high {high}")


def _width(low: float, high: float) -> float:
    """The probability of [low, high], taken from the tail that holds it."""
    from scipy.special import ndtr

    return float(ndtr(-low) - ndtr(-high) if low > 0 else ndtr(high) - ndtr(low))
