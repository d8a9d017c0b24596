"""Nearest neighbours: the fast way gives the definition's, whatever the sizes, ties and scales."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medray import kernels


def rows_of(rows, dims, seed=0, scale=1.0, offset=0.0):
    drawn = np.random.default_rng(seed).standard_normal((rows, dims))
    return (drawn * scale + offset).astype(np.float32)


def assert_as_defined(queries, rows, k, **options):
    distances, indices = kernels.nearest(queries, rows, k, **options)
    expected, at = kernels.nearest_ref(queries, rows, k, **options)
    assert distances.dtype == np.float32 and indices.dtype == np.int64
    np.testing.assert_array_equal(indices, at)
    np.testing.assert_allclose(distances, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("queries, rows", [(0, 3), (1, 1), (1, 64), (3, 65), (1025, 4097), (70, 9)])
@pytest.mark.parametrize("dims", [1, 3, 64])
def test_neighbours_are_those_of_all_differences_across_every_border(queries, rows, dims):
    if queries * rows * dims < 2e7:
        assert_as_defined(rows_of(queries, dims, 1), rows_of(rows, dims, 2), min(5, rows))


@pytest.mark.parametrize("count, k", [(2, 1), (6, 5), (22, 5), (23, 5), (300, 40)])
def test_a_row_is_not_its_own_neighbour_when_told_so(count, k):
    rows = rows_of(count, 8)
    assert_as_defined(rows, rows, k, exclude_self=True)
    assert (kernels.nearest(rows, rows, 1)[1][:, 0] == np.arange(count)).all()


@pytest.mark.parametrize("repeats", [2, 6, 40])
def test_duplicates_are_neighbours_at_distance_zero_lowest_number_first(repeats):
    rows = np.repeat(np.random.default_rng(0).integers(-9, 9, (50, 4)), repeats, 0)
    rows = np.random.default_rng(1).permutation(rows).astype(np.float32)
    assert_as_defined(rows, rows, 5, exclude_self=True)


@pytest.mark.parametrize("scale, offset", [(1e-3, 0), (1e4, 0), (1, 1e3), (0.01, 100)])
def test_scale_and_a_common_offset_change_no_neighbour(scale, offset):
    assert_as_defined(rows_of(200, 32, 1, scale, offset), rows_of(700, 32, 2, scale, offset), 5)


def test_the_coarse_product_alone_would_be_wrong_and_is_found_out():
    """Rows that bfloat16 does not tell apart: the bound sends them to the finer product."""
    base = rows_of(1, 64)
    rows = base + rows_of(600, 64, 3, scale=1e-3)
    far = -base + rows_of(600, 64, 4, scale=1e-3)
    both = np.concatenate([rows, far])
    assert_as_defined(both, both, 5, exclude_self=True)


def test_rows_of_very_different_lengths_keep_the_bound():
    lengths = np.geomspace(1e-3, 1e3, 500)[:, None].astype(np.float32)
    rows = rows_of(500, 16) * lengths
    assert_as_defined(rows, rows, 5, exclude_self=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_tensors_of_any_float_come_back_as_tensors(dtype):
    rows = torch.randn(100, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    distances, indices = kernels.nearest(rows, rows, 3, exclude_self=True)
    expected, at = kernels.nearest_ref(rows, rows, 3, exclude_self=True)
    assert isinstance(distances, torch.Tensor) and isinstance(indices, torch.Tensor)
    np.testing.assert_array_equal(indices.numpy(), at)
    np.testing.assert_allclose(distances.numpy(), expected, rtol=1e-5)


def test_threads_change_nothing():
    rows = rows_of(500, 33)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = kernels.nearest(rows, rows, 4)
        torch.set_num_threads(3)
        three = kernels.nearest(rows, rows, 4)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(one[1], three[1])


@pytest.mark.parametrize(
    "queries, rows, k, options, text",
    [
        (rows_of(2, 3), rows_of(4, 3), 5, {}, "k must be 1 to 4"),
        (rows_of(2, 3), rows_of(4, 3), 0, {}, "k must be 1 to 4"),
        (rows_of(4, 3), rows_of(4, 3), 4, {"exclude_self": True}, "k must be 1 to 3"),
        (rows_of(2, 3), rows_of(4, 3), 1, {"exclude_self": True}, "queries must be the rows"),
        (rows_of(2, 2), rows_of(4, 3), 1, {}, "must have 3 columns"),
        (rows_of(2, 3)[0], rows_of(4, 3), 1, {}, r"shape \(N, D\)"),
        (np.zeros((2, 3), int), rows_of(4, 3), 1, {}, "floating"),
        (np.full((2, 3), np.nan, np.float32), rows_of(4, 3), 1, {}, "queries must be finite"),
        (rows_of(2, 3), np.full((4, 3), np.inf, np.float32), 1, {}, "rows must be finite"),
    ],
)
def test_what_has_no_answer_is_refused_with_what_is_allowed(queries, rows, k, options, text):
    for find in (kernels.nearest, kernels.nearest_ref):
        with pytest.raises(ValueError, match=text):
            find(queries, rows, k, **options)
