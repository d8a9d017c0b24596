"""The host side of the GPU's way, with the launches run on the CPU: arguments, sizes, parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medray import kernels
from medray.kernels import (
    _launch,
    _neighbours_gpu,
    allocation,
    gaussian,
    interpolate,
    labels,
    moments,
    neighbours,
    truncated,
)
from tests.kernels import emulate

pytestmark = pytest.mark.skipif(not emulate.HAS_COMPILER, reason="g++ is not here")
SEED, FAR = 2**40 + 7, 2**33 + 1


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def as_if_on_a_gpu(monkeypatch):
    """Arrays of the CPU take the GPU's way; products in float32 of bfloat16 are made here."""
    launched = []

    def launch(source, kernel, *rest, **defines):
        launched.append(kernel)
        emulate.launch(source, kernel, *rest, **defines)

    mm = torch.mm
    for module in (allocation, gaussian, interpolate, labels, neighbours, truncated):
        monkeypatch.setattr(module, "on_gpu", lambda *arrays: True)
    for module in (_launch, _neighbours_gpu):
        monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(_launch, "_blocks", lambda device: 2)
    monkeypatch.setattr(_neighbours_gpu, "require_gpu", lambda: None)
    monkeypatch.setattr(torch, "mm", lambda a, b, out_dtype: mm(a.to(out_dtype), b.to(out_dtype)))
    monkeypatch.setattr(moments, "_is_narrow_on_gpu", lambda features: True)
    yield launched
    assert launched


def close(out, expected, atol=2e-5):
    np.testing.assert_allclose(np.asarray(out), expected, rtol=2e-5, atol=atol)


def made(dims=7, rank=5):
    generator = torch.Generator().manual_seed(dims)
    shapes = [(4, dims), (4, dims), (4, dims, rank), (4, dims, dims)]
    tables = [torch.randn(shape, generator=generator) for shape in shapes]
    return torch.randint(0, 4, (40,), generator=generator), *tables


@pytest.mark.parametrize("dims", [1, 7, 64])
def test_gaussians(dims, monkeypatch):
    monkeypatch.setattr(gaussian, "_BLOCK_GPU", 8)
    of, means, scales, factors, full = made(dims)
    out = gaussian.diagonal(SEED, of, means, scales, start=FAR)
    close(out, gaussian.diagonal_ref(SEED, of, means, scales, start=FAR))
    out = gaussian.low_rank(SEED, of, means, scales, factors, start=FAR)
    close(out, gaussian.low_rank_ref(SEED, of, means, scales, factors, start=FAR))
    out = gaussian.full(SEED, of, means, full, start=FAR)
    close(out, gaussian.full_ref(SEED, of, means, full, start=FAR), 1e-4)


@pytest.mark.parametrize("pixelnorm", [False, True])
@pytest.mark.parametrize("grid", [2**30, 3])
def test_truncated_normals(pixelnorm, grid, monkeypatch):
    monkeypatch.setattr(_launch, "_LARGEST_GRID", grid)
    out = truncated.normal(SEED, 8, 20, pixelnorm=pixelnorm, start=FAR, model=torch.empty(0))
    close(out, truncated.normal_ref(SEED, 8, 20, pixelnorm=pixelnorm, start=FAR))


def test_labels_and_allocation():
    weights, of = torch.tensor([1.0, 0, 3]), torch.randint(0, 3, (50,), dtype=torch.int32)
    drawn = labels.draw(SEED, 600, labels.Weights(weights), start=FAR)
    np.testing.assert_array_equal(drawn, labels.draw_ref(SEED, 600, weights, start=FAR))
    drawn = labels.balanced(SEED, 600, 7, start=FAR, model=weights)
    np.testing.assert_array_equal(drawn, labels.balanced_ref(SEED, 600, 7, start=FAR))
    near = torch.randint(0, 50, (50, 4))
    counts = allocation.foreign_neighbours(near, of, of)
    np.testing.assert_array_equal(counts, allocation.foreign_neighbours_ref(near, of, of))
    pools = allocation.Pools.of(np.arange(50.0), of.numpy(), 3)
    chosen = allocation.choose(SEED, of, pools, start=FAR)
    np.testing.assert_array_equal(chosen, allocation.choose_ref(SEED, of, pools, start=FAR))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_smote_and_mixup(dtype):
    rows, near = torch.randn(30, 9).to(getattr(torch, dtype)), torch.randint(0, 30, (30, 4))
    rounding = 2e-5 if dtype == "float32" else 0.02
    bases = torch.randint(0, 30, (60,))
    for given in (None, bases):
        out = interpolate.smote(SEED, 60, rows, near, bases_N=given, start=FAR)
        expected = interpolate.smote_ref(SEED, 60, rows, near, bases_N=given, start=FAR)
        close(out.float(), expected, rounding)
    for pairs in (None, torch.stack([bases, bases.flip(0)], 1)):
        out, found, share = interpolate.mixup(SEED, 60, rows, 0.4, pairs_N2=pairs, start=FAR)
        expected = interpolate.mixup_ref(SEED, 60, rows, 0.4, pairs_N2=pairs, start=FAR)
        np.testing.assert_array_equal(found, expected[1])
        close(share, expected[2])
        close(out.float(), expected[0], rounding + 2e-4)


@pytest.mark.parametrize("exclude_self", [False, True])
def test_neighbours_also_where_the_first_product_is_too_coarse(exclude_self, monkeypatch):
    monkeypatch.setattr(_neighbours_gpu, "QUERIES_AT_ONCE", 16)
    monkeypatch.setattr(_neighbours_gpu, "_ROWS_AT_ONCE", 32)
    rows = torch.cat([torch.randn(50, 6), 9 + torch.randn(30, 6) / 1000])
    distances, indices = kernels.nearest(rows, rows, 3, exclude_self=exclude_self)
    expected, at = kernels.nearest_ref(rows, rows, 3, exclude_self=exclude_self)
    np.testing.assert_array_equal(indices, at)
    close(distances, expected, 1e-6)
    with pytest.raises(ValueError, match="at most 96 on a GPU"):
        kernels.nearest(torch.randn(200, 2), torch.randn(200, 2), 97)


def test_moments():
    features, of = torch.randn(60, 5), torch.randint(0, 3, (60,))
    for ours, theirs in zip(
        kernels.ledoit_wolf(features, of, 3), kernels.ledoit_wolf_ref(features, of, 3), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)
