"""Rows of class-conditional Gaussians: diagonal, low rank plus diagonal, full covariance.

Row i of class k is mean_k + scale_k * e (+ factors_k @ z), where e and z are standard normals of
the address (seed, stream, i): e its draws 0 .. D, z those from the next multiple of four on. A full
covariance L L^T has factors L and draws z = 0 .. D alone. Normals are float32's (1e-6 relative from
`rng.normals`); products are made in blocks of a fixed shape, so that a row's bits do not depend on
which rows are drawn with it, nor on the number of threads.

Shape letters: N samples, D dimensions, K classes, R rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medray import rng
from medray.kernels._arrays import (
    Array,
    address,
    as_numpy,
    as_table,
    as_tensor,
    check_labels,
    check_samples,
    empty,
    indices_of,
    like,
    on_gpu,
)

if TYPE_CHECKING:
    import torch

STREAM = "sample.gaussian"
_BLOCK_CPU, _BLOCK_GPU = 256, 16384
# At the ragged edge of a product its rows are summed in another order; padded, there is none.
_EDGE = 16


def diagonal(
    seed: int,
    labels_N: Array,
    means_KD: Array,
    scales_KD: Array,
    *,
    start: int = 0,
    stream: str = STREAM,
    dtype: str = "float32",
) -> Array:
    """Rows (N, D) of samples start .. start + N: mean + scale * e of the row's class."""
    return _rows(seed, labels_N, means_KD, scales_KD, None, start, stream, dtype)


def diagonal_ref(
    seed: int,
    labels_N: Array,
    means_KD: Array,
    scales_KD: Array,
    *,
    start: int = 0,
    stream: str = STREAM,
) -> NDArray[np.float32]:
    """The definition of `diagonal`."""
    labels_N, means_KD, scales_KD = as_numpy(labels_N), as_numpy(means_KD), as_numpy(scales_KD)
    indices_N = indices_of(start, len(labels_N))
    noise_ND = rng.normals(seed, stream, indices_N, means_KD.shape[1])
    return np.asarray(means_KD[labels_N] + scales_KD[labels_N] * noise_ND, np.float32)


def low_rank(
    seed: int,
    labels_N: Array,
    means_KD: Array,
    scales_KD: Array,
    factors_KDR: Array,
    *,
    start: int = 0,
    stream: str = STREAM,
    dtype: str = "float32",
) -> Array:
    """Rows (N, D) of covariance scale^2 + factors factors^T: mean + scale * e + factors @ z."""
    return _rows(seed, labels_N, means_KD, scales_KD, factors_KDR, start, stream, dtype)


def low_rank_ref(
    seed: int,
    labels_N: Array,
    means_KD: Array,
    scales_KD: Array,
    factors_KDR: Array,
    *,
    start: int = 0,
    stream: str = STREAM,
) -> NDArray[np.float32]:
    """The definition of `low_rank`."""
    labels_N, factors_KDR = as_numpy(labels_N), as_numpy(factors_KDR)
    _, dims, rank = factors_KDR.shape
    noise_NR = rng.normals(seed, stream, indices_of(start, len(labels_N)), rank, -(-dims // 4) * 4)
    rows_ND = diagonal_ref(seed, labels_N, means_KD, scales_KD, start=start, stream=stream)
    product_ND = np.einsum("ndr,nr->nd", factors_KDR[labels_N], noise_NR)
    return np.asarray(rows_ND + product_ND, np.float32)


def full(
    seed: int,
    labels_N: Array,
    means_KD: Array,
    factors_KDD: Array,
    *,
    start: int = 0,
    stream: str = STREAM,
    dtype: str = "float32",
) -> Array:
    """Rows (N, D) of covariance factors factors^T (Cholesky's, say): mean + factors @ z."""
    return _rows(seed, labels_N, means_KD, None, factors_KDD, start, stream, dtype)


def full_ref(
    seed: int,
    labels_N: Array,
    means_KD: Array,
    factors_KDD: Array,
    *,
    start: int = 0,
    stream: str = STREAM,
) -> NDArray[np.float32]:
    """The definition of `full`."""
    labels_N, means_KD, factors_KDD = as_numpy(labels_N), as_numpy(means_KD), as_numpy(factors_KDD)
    noise_ND = rng.normals(seed, stream, indices_of(start, len(labels_N)), factors_KDD.shape[2])
    product_ND = np.einsum("ndr,nr->nd", factors_KDD[labels_N], noise_ND)
    return np.asarray(means_KD[labels_N] + product_ND, np.float32)


def _rows(
    seed: int,
    labels_N: Array,
    means_KD: Array,
    scales_KD: Array | None,
    factors_KDR: Array | None,
    start: int,
    stream: str,
    dtype: str,
) -> Array:
    import torch

    _check(labels_N, means_KD, scales_KD, factors_KDR)
    gpu = on_gpu(labels_N, means_KD, scales_KD, factors_KDR)
    check_samples(start, len(labels_N))
    out = empty((len(labels_N), means_KD.shape[1]), dtype, means_KD)
    labels = as_tensor(labels_N).to(torch.int32).contiguous()
    means, scales, factors = (
        None if a is None else as_table(a, "float32") for a in (means_KD, scales_KD, factors_KDR)
    )
    assert means is not None, "checked above"
    draw = _Gpu if gpu else _Cpu
    drawn = draw(out, labels, means, scales, seed, stream, start)
    if factors is None:
        drawn.whole()
    else:
        _by_class(drawn, labels, factors, _BLOCK_GPU if gpu else _BLOCK_CPU)
    return like(out, means_KD)


def _by_class(drawn: _Cpu | _Gpu, labels: torch.Tensor, factors: torch.Tensor, block: int) -> None:
    """Noise, product and the rest for the rows of one class after another, in blocks of `block`."""
    import torch

    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels.long(), minlength=len(factors)).tolist()
    dims, rank = factors.shape[1:]
    first_block = 0 if drawn.scales is None else (dims + 3) // 4
    factors = torch.nn.functional.pad(factors, (0, -rank % _EDGE, 0, -dims % _EDGE))
    noise = torch.zeros((block, factors.shape[2]), device=factors.device)
    last = 0
    for factors_DR, count in zip(factors, counts, strict=True):
        end = last + count
        for first in range(last, end, block):
            members = order[first : min(first + block, end)].contiguous()
            drawn.noise(noise[: len(members)], members, first_block)
            product = noise @ factors_DR.T
            drawn.finish(members, product[: len(members), :dims].contiguous())
        last = end


class _Cpu:
    """The steps of a draw as compiled loops."""

    def __init__(
        self,
        out: torch.Tensor,
        labels: torch.Tensor,
        means: torch.Tensor,
        scales: torch.Tensor | None,
        seed: int,
        stream: str,
        start: int,
    ) -> None:
        self.out, self.labels, self.means, self.scales = out, labels, means, scales
        self.where = [np.uint64(word) for word in address(seed, stream, start)[1:]]
        self.indices_N = indices_of(start, len(out))

    def whole(self) -> None:
        """All rows without a product."""
        from medray.kernels import _sampling_cpu as loops
        from medray.kernels._cpu import fill

        assert self.scales is not None, "a diagonal Gaussian has scales"
        labels_N, means, scales = self.labels.numpy(), self.means.numpy(), self.scales.numpy()
        fill(
            self.out,
            lambda rows, where: loops.class_rows(
                rows, self.indices_N[where], *self.where, labels_N[where], means, scales
            ),
        )

    def noise(self, noise: torch.Tensor, members: torch.Tensor, first_block: int) -> None:
        """Noise of the samples `members`, from a block of four draws on."""
        from medray.kernels import _sampling_cpu as loops
        from medray.kernels._cpu import fill

        indices_N = self.indices_N[members.numpy()]
        first = np.uint64(first_block)
        fill(
            noise,
            lambda rows, where: loops.noise_rows(rows, indices_N[where], *self.where, first),
        )

    def finish(self, members: torch.Tensor, product: torch.Tensor) -> None:
        """Writes the rows `members`: their product, mean and noise of their own."""
        if not len(members):
            return
        label = self.labels[members[0]]
        rows = product + self.means[label]
        if self.scales is not None:
            import torch

            own = torch.empty_like(rows)
            self.noise(own, members, 0)
            rows.addcmul_(own, self.scales[label])
        self.out[members] = rows.to(self.out.dtype)


class _Gpu(_Cpu):
    """The same steps as kernels; noise and mean are added where the product is read."""

    def __init__(
        self,
        out: torch.Tensor,
        labels: torch.Tensor,
        means: torch.Tensor,
        scales: torch.Tensor | None,
        seed: int,
        stream: str,
        start: int,
    ) -> None:
        self.out, self.labels, self.means, self.scales = out, labels, means, scales
        self.start, *self.where = address(seed, stream, start)

    def whole(self) -> None:
        from medray.kernels._launch import launch_rows

        launch_rows("gaussian", "class_rows", self.out, self._arguments(None, None))

    def noise(self, noise: torch.Tensor, members: torch.Tensor, first_block: int) -> None:
        from medray.kernels._launch import launch_rows

        arguments = [self.start, members, *self.where, np.uint32(first_block)]
        launch_rows("gaussian", "noise_rows", noise, arguments)

    def finish(self, members: torch.Tensor, product: torch.Tensor) -> None:
        from medray.kernels._launch import launch_rows

        arguments = self._arguments(members, product)
        launch_rows("gaussian", "class_rows", self.out, arguments, rows=len(members))

    def _arguments(
        self, members: torch.Tensor | None, product: torch.Tensor | None
    ) -> list[object]:
        return [
            self.start, members, *self.where, self.labels, self.means, self.scales, product
        ]  # fmt: skip


def _check(
    labels_N: Array, means_KD: Array, scales_KD: Array | None, factors_KDR: Array | None
) -> None:
    """ValueError unless the shapes belong together and the labels are of the classes."""
    if means_KD.ndim != 2 or not all(means_KD.shape):
        raise ValueError(f"means must have shape (K, D), got {tuple(means_KD.shape)}")
    if scales_KD is not None and tuple(scales_KD.shape) != tuple(means_KD.shape):
        raise ValueError(
            f"scales must have the shape of the means, {tuple(means_KD.shape)}, "
            f"got {tuple(scales_KD.shape)}"
        )
    if factors_KDR is not None and (
        factors_KDR.ndim != 3 or tuple(factors_KDR.shape[:2]) != tuple(means_KD.shape)
    ):
        raise ValueError(
            f"factors must have shape (K, D, R) with K and D of the means, "
            f"{tuple(means_KD.shape)}, got {tuple(factors_KDR.shape)}"
        )
    check_labels(labels_N, len(labels_N), len(means_KD))
