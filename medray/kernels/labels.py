"""Labels of samples: by weight through an alias table, or exactly balanced.

The label of sample i is a function of (seed, stream, i) alone.

Shape letters: N samples, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medray import rng
from medray.kernels._arrays import (
    Array,
    address,
    as_numpy,
    as_tensor,
    check_samples,
    indices_of,
    like,
    on_gpu,
)

if TYPE_CHECKING:
    import torch

STREAM = "sample.labels"


class Weights:
    """Weights (K,) made ready to be drawn by, once for any number of draws.

    On a GPU a draw then waits for nothing. ValueError for weights that are negative, not finite or
    all zero.
    """

    def __init__(self, weights_K: Array) -> None:
        self.model = weights_K
        self.thresholds_K, self.aliases_K = alias_table(_to_cpu(weights_K))
        self.there: list[torch.Tensor] = []
        if on_gpu(weights_K):
            import torch

            tables = self.thresholds_K.view(np.int64), self.aliases_K
            device = as_tensor(weights_K).device
            self.there = [torch.from_numpy(table).to(device) for table in tables]


def draw(
    seed: int, count: int, weights_K: Array | Weights, *, start: int = 0, stream: str = STREAM
) -> Array:
    """Labels of samples start .. start + count, int32 (N,): label k with share weights[k].

    Weights need not sum to 1. The labels are where the weights are. ValueError as `Weights`.
    """
    check_samples(start, count)
    ready = weights_K if isinstance(weights_K, Weights) else Weights(weights_K)
    thresholds_K, aliases_K = ready.thresholds_K, ready.aliases_K
    labels_N = _empty(count, ready.model)
    if ready.there:
        from medray.kernels._launch import launch_each

        where = address(seed, stream, start)
        arguments = [labels_N, np.int64(count), *where, *ready.there, np.uint32(len(aliases_K))]
        launch_each("labels", "alias_labels", count, arguments)
        return like(labels_N, ready.model)
    from medray.kernels import _sampling_cpu as loops
    from medray.kernels._cpu import split

    numbers, indices_N = labels_N.numpy(), indices_of(start, count)
    where = [np.uint64(word) for word in address(seed, stream, start)[1:]]
    split(
        count,
        lambda low, high: loops.draw_labels(
            numbers[low:high], indices_N[low:high], *where, thresholds_K, aliases_K
        ),
        at_least=4096,
    )
    return like(labels_N, ready.model)


def draw_ref(
    seed: int, count: int, weights_K: Array, *, start: int = 0, stream: str = STREAM
) -> NDArray[np.int32]:
    """The definition of `draw`: a slot by draw 0, kept where word 2 is below its threshold."""
    thresholds_K, aliases_K = alias_table(as_numpy(weights_K))
    indices_N = indices_of(start, count)
    slots_N = rng.integers(seed, stream, indices_N, 1, 0, len(aliases_K))[:, 0]
    coins_N = rng.bits(seed, stream, indices_N, 1, start=2)[:, 0].astype(np.uint64)
    return np.where(coins_N < thresholds_K[slots_N], slots_N, aliases_K[slots_N]).astype(np.int32)


def balanced(
    seed: int,
    count: int,
    classes: int,
    *,
    start: int = 0,
    stream: str = STREAM,
    model: Array | None = None,
) -> Array:
    """Labels of samples start .. start + count, int32 (N,): each run of K holds each label once.

    Runs begin at multiples of K = `classes`; their order is a random permutation. So any K n
    samples from a multiple of K are exactly balanced. The kind and home are those of `model`.
    """
    _check_classes(classes)
    check_samples(start, count)
    labels_N = _empty(count, model)
    if on_gpu(model):
        from medray.kernels._launch import launch_each

        places = count + 2 * classes
        arguments = [labels_N, np.int64(count), *address(seed, stream, start), np.uint32(classes)]
        launch_each("labels", "balanced_labels", places if count else 0, arguments)
        return like(labels_N, model)
    from medray.kernels import _sampling_cpu as loops
    from medray.kernels._cpu import split

    numbers = labels_N.numpy()
    _, key, stream_id = (np.uint64(word) for word in address(seed, stream, start))
    split(
        count,
        lambda low, high: loops.balanced_labels(
            numbers[low:high], np.uint64(start + low), key, stream_id, classes
        ),
        at_least=4096,
    )
    return like(labels_N, model)


def balanced_ref(
    seed: int, count: int, classes: int, *, start: int = 0, stream: str = STREAM
) -> NDArray[np.int32]:
    """The definition of `balanced`: permutation start // K, start // K + 1, ... of the stream."""
    _check_classes(classes)
    indices_of(start, count)
    first, last = start // classes, -(-(start + count) // classes)
    runs = [rng.permutation(seed, stream, run, classes) for run in range(first, last)]
    labels = np.concatenate([*runs, np.empty(0, np.int64)])[start - first * classes :]
    return labels[:count].astype(np.int32)


def alias_table(weights_K: Array) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """Thresholds out of 2**32 and aliases, (K,) each (Walker 1977, Vose 1991).

    A slot's share is met to 2**-32. ValueError as `draw`.
    """
    weights_K = np.asarray(weights_K, np.float64)
    if weights_K.ndim != 1 or not len(weights_K):
        raise ValueError(f"weights must have shape (K,), K at least 1, got {weights_K.shape}")
    if not np.isfinite(weights_K).all() or weights_K.min() < 0 or weights_K.max() <= 0:
        raise ValueError(
            f"weights must be finite, none negative and one positive, got {weights_K.tolist()[:9]}"
        )
    shares_K = weights_K / weights_K.max()
    shares_K *= len(shares_K) / shares_K.sum()
    thresholds_K = np.full(len(shares_K), rng.WORDS, np.uint64)
    aliases_K = np.arange(len(shares_K), dtype=np.int32)
    small = [k for k in range(len(shares_K)) if shares_K[k] < 1]
    large = [k for k in range(len(shares_K)) if shares_K[k] >= 1]
    while small and large:
        low, high = small.pop(), large[-1]
        thresholds_K[low], aliases_K[low] = int(shares_K[low] * rng.WORDS), high
        shares_K[high] -= 1 - shares_K[low]
        if shares_K[high] < 1:
            small.append(large.pop())
    return thresholds_K, aliases_K


def _to_cpu(weights_K: Array) -> Any:
    return as_tensor(weights_K).cpu().numpy() if on_gpu(weights_K) else as_numpy(weights_K)


def _empty(count: int, model: Array | None) -> torch.Tensor:
    import torch

    device = as_tensor(model).device if model is not None else "cpu"
    return torch.empty(count, dtype=torch.int32, device=device)


def _check_classes(classes: int) -> None:
    if classes < 1:
        raise ValueError(f"classes must be at least 1, got {classes}")
