"""The samplers on the CPU give the definitions: any size, start, type, number of threads."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from medray.errors import ResourceError
from medray.kernels import _launch as gpu
from medray.kernels import allocation, gaussian, interpolate, labels, truncated

SEED = 2**63 + 5
FAR = 2**33 + 1
DTYPES = {"float32": 1e-6, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def close(out, expected, dtype="float32", atol=2e-6):
    rounding = DTYPES[dtype]
    out = out.float().numpy() if isinstance(out, torch.Tensor) else out
    np.testing.assert_allclose(out, expected, rtol=rounding + 1e-6, atol=max(atol, rounding * 1e-3))


def classes_of(dims, classes=3, rank=2, kind=torch):
    generator = torch.Generator().manual_seed(dims)
    shapes = [(classes, dims), (classes, dims), (classes, dims, rank), (classes, dims, dims)]
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    made[1] = made[1].abs()
    return made if kind is torch else [tensor.numpy() for tensor in made]


def labels_of(count, classes=3):
    return np.random.default_rng(count).integers(0, classes, count)


GAUSSIANS = {
    "diagonal": lambda f, s, of, m, d, r, g, **o: f(s, of, m, d, **o),
    "low_rank": lambda f, s, of, m, d, r, g, **o: f(s, of, m, d, r, **o),
    "full": lambda f, s, of, m, d, r, g, **o: f(s, of, m, g, **o),
}


@pytest.mark.parametrize("name", GAUSSIANS)
@pytest.mark.parametrize("count, dims", [(0, 3), (1, 1), (2, 4), (7, 5), (600, 33)])
@pytest.mark.parametrize("start", [0, 5, FAR])
def test_gaussian_rows_are_the_definitions(name, count, dims, start):
    call, of, made = GAUSSIANS[name], labels_of(count), classes_of(dims, kind=np)
    out = call(getattr(gaussian, name), SEED, of, *made, start=start)
    assert isinstance(out, np.ndarray) and out.dtype == np.float32 and out.shape == (count, dims)
    expected = call(getattr(gaussian, f"{name}_ref"), SEED, of, *made, start=start)
    close(out, expected, atol=1e-5)


@pytest.mark.parametrize("name", GAUSSIANS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gaussian_tensors_come_in_every_type(name, dtype):
    call, of, made = GAUSSIANS[name], torch.from_numpy(labels_of(50)), classes_of(12)
    out = call(getattr(gaussian, name), SEED, of, *made, dtype=dtype)
    assert out.dtype == getattr(torch, dtype)
    close(out, call(getattr(gaussian, f"{name}_ref"), SEED, of, *made), dtype, atol=1e-5)


@pytest.mark.parametrize("name", GAUSSIANS)
@pytest.mark.parametrize("dims, rank", [(3, 1), (6, 2), (48, 5), (65, 33)])
def test_a_row_is_the_same_bits_in_any_company(name, dims, rank):
    """In one call, in parts, alone, on one thread or three."""
    call, of, made = GAUSSIANS[name], labels_of(700), classes_of(dims, rank=rank, kind=np)
    draw = getattr(gaussian, name)
    whole = call(draw, SEED, of, *made, start=FAR)
    for first, last in [(0, 300), (300, 301), (301, 700), (699, 700)]:
        part = call(draw, SEED, of[first:last], *made, start=FAR + first)
        np.testing.assert_array_equal(part, whole[first:last])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        np.testing.assert_array_equal(call(draw, SEED, of, *made, start=FAR), whole)
    finally:
        torch.set_num_threads(threads)


def test_low_rank_rows_have_the_covariance_that_was_asked_for():
    _, scales, factors, _ = classes_of(6, classes=1, rank=2, kind=np)
    rows = gaussian.low_rank(1, np.zeros(200_000, int), np.zeros((1, 6)), scales, factors)
    expected = np.diag(scales[0] ** 2) + factors[0] @ factors[0].T
    np.testing.assert_allclose(np.cov(rows.T), expected, atol=0.05)


@pytest.mark.parametrize("count", [0, 1, 5000, 10_001])
@pytest.mark.parametrize("start", [0, FAR])
def test_labels_by_alias_table_are_the_definitions(count, start):
    weights = np.array([1.0, 0.0, 5.0, 2.5])
    drawn = labels.draw(SEED, count, weights, start=start)
    assert drawn.dtype == np.int32
    np.testing.assert_array_equal(drawn, labels.draw_ref(SEED, count, weights, start=start))
    ready = labels.Weights(weights)
    np.testing.assert_array_equal(labels.draw(SEED, count, ready, start=start), drawn)


def test_labels_have_the_shares_of_their_weights():
    weights = np.array([1.0, 0.0, 5.0, 2.5, 1e-3])
    counts = np.bincount(labels.draw(3, 200_000, weights), minlength=5)
    assert counts[1] == 0
    expected = weights / weights.sum() * 200_000
    chi = ((counts - expected) ** 2 / np.maximum(expected, 1e-9))[expected > 0].sum()
    assert chi < 20


@pytest.mark.parametrize("weights", [[1], [1, 1], [0, 0, 2], [1e-300, 1], list(range(1, 400))])
def test_an_alias_table_meets_every_share(weights):
    thresholds, aliases = labels.alias_table(np.array(weights))
    shares = np.bincount(aliases, 2.0**32 - thresholds.astype(float), len(weights))
    shares = (shares + thresholds.astype(float)) / 2**32 / len(weights)
    np.testing.assert_allclose(shares, np.array(weights) / sum(weights), atol=1e-9)


@pytest.mark.parametrize("classes", [1, 2, 7, 100])
@pytest.mark.parametrize("start, count", [(0, 0), (3, 1), (5, 9000), (2**64 - 300, 300)])
def test_balanced_labels_are_the_definitions(classes, start, count):
    drawn = labels.balanced(SEED, count, classes, start=start)
    expected = labels.balanced_ref(SEED, count, classes, start=start)
    np.testing.assert_array_equal(drawn, expected)


def test_balanced_labels_are_balanced_and_not_in_order():
    drawn = labels.balanced(0, 700, 7).reshape(100, 7)
    assert (np.sort(drawn, 1) == np.arange(7)).all()
    assert len({tuple(run) for run in drawn}) > 90


@pytest.mark.parametrize("low, high", [(-2, 2), (-0.5, 3), (1, 9), (6, 7), (-9, -8.5)])
@pytest.mark.parametrize("pixelnorm", [False, True])
@pytest.mark.parametrize("count, dims", [(0, 4), (1, 1), (300, 67)])
def test_truncated_normals_are_the_definitions(low, high, pixelnorm, count, dims):
    options = {"low": low, "high": high, "pixelnorm": pixelnorm, "start": FAR}
    out = truncated.normal(SEED, count, dims, **options)
    close(out, truncated.normal_ref(SEED, count, dims, **options))
    if not pixelnorm and count:
        assert low <= out.min() and out.max() <= high


def test_truncated_normals_have_their_distribution():
    out = truncated.normal(4, 1000, 100, low=-1, high=2).ravel()
    assert stats.kstest(out, stats.truncnorm(-1, 2).cdf).pvalue > 1e-3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_rows_are_the_wide_ones_rounded(dtype):
    model = torch.empty(0)
    out = truncated.normal(SEED, 20_000, 9, dtype=dtype, model=model)
    wide = truncated.normal(SEED, 20_000, 9, model=model)
    assert torch.equal(out, wide.to(getattr(torch, dtype)))


def smote_inputs(kind=np):
    rows = np.random.default_rng(0).standard_normal((30, 11)).astype(np.float32)
    near = np.random.default_rng(1).integers(0, 30, (30, 4))
    return (rows, near) if kind is np else (torch.from_numpy(rows), torch.from_numpy(near))


@pytest.mark.parametrize("count", [0, 1, 500])
@pytest.mark.parametrize("start", [0, FAR])
@pytest.mark.parametrize("given", [False, True])
def test_smote_rows_are_the_definitions(count, start, given):
    rows, near = smote_inputs()
    bases = labels_of(count, 30) if given else None
    out = interpolate.smote(SEED, count, rows, near, bases_N=bases, start=start)
    expected = interpolate.smote_ref(SEED, count, rows, near, bases_N=bases, start=start)
    close(out, expected)


def test_smote_draws_every_row_neighbour_and_share_alike():
    rows = np.repeat(np.arange(8.0, dtype=np.float32)[:, None] * 100, 2, 1)
    near = (np.arange(8)[:, None] + np.arange(1, 4)) % 8
    out = interpolate.smote(1, 60_000, rows, near, start=7)
    again = interpolate.smote_ref(1, 60_000, rows, near, start=7)
    np.testing.assert_allclose(out, again, atol=1e-3)
    flat = near.copy()
    rows[:, 1] = 0
    places = interpolate.smote(1, 60_000, rows[:, :1] * 0 + np.arange(8)[:, None], flat)[:, 0]
    assert 0 <= places.min() and places.max() <= 7
    assert abs(places.mean() - (near.mean() + 3.5) / 2) < 0.05


@pytest.mark.parametrize("dtype", DTYPES)
def test_smote_keeps_the_type_of_the_rows(dtype):
    rows, near = smote_inputs(torch)
    rows = rows.to(getattr(torch, dtype))
    out = interpolate.smote(SEED, 40, rows, near)
    assert out.dtype == rows.dtype
    close(out, interpolate.smote_ref(SEED, 40, rows, near), dtype)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.4, 1.0, 3.0, 100.0])
def test_mixup_is_its_definition_and_its_weights_are_beta(alpha):
    rows, _ = smote_inputs()
    out, pairs, weights = interpolate.mixup(SEED, 4000, rows, alpha, start=FAR)
    expected = interpolate.mixup_ref(SEED, 4000, rows, alpha, start=FAR)
    np.testing.assert_array_equal(pairs, expected[1])
    np.testing.assert_allclose(weights, expected[2], atol=2e-5)
    np.testing.assert_allclose(out, expected[0], atol=2e-4)
    places = np.array([1e-4, 0.01, 0.3, 0.5, 0.8, 0.99])
    below = (weights[:, None] < places).mean(0)
    np.testing.assert_allclose(below, stats.beta(alpha, alpha).cdf(places), atol=0.03)
    assert 0 <= weights.min() and weights.max() <= 1


def test_foreign_neighbours_danger_and_adasyn_are_counted_as_defined():
    near = np.array([[1, 2, 3, 4], [0, 2, 5, 6], [3, 4, 5, 6]])
    of = np.array([0, 0, 0, 1, 1, 1, 1])
    counts = allocation.foreign_neighbours(near, of[:3], of)
    assert counts.tolist() == [2, 2, 4]
    np.testing.assert_array_equal(counts, allocation.foreign_neighbours_ref(near, of[:3], of))
    assert allocation.in_danger(counts, 4).tolist() == [True, True, False]
    assert allocation.adasyn_counts(counts, 100).tolist() == [25, 25, 50]
    with pytest.raises(ValueError, match="no row has a neighbour of another class"):
        allocation.adasyn_counts(counts * 0, 10)


@pytest.mark.parametrize("count, start", [(0, 0), (1, 5), (9000, FAR)])
def test_rows_are_chosen_by_weight_within_the_class_as_defined(count, start):
    weights, of = np.array([1.0, 2, 0, 5, 1, 1]), np.array([0, 0, 0, 1, 1, 0])
    pools, wanted = allocation.Pools.of(weights, of, 3), labels_of(count, 2)
    chosen = allocation.choose(SEED, wanted, pools, start=start)
    expected = allocation.choose_ref(SEED, wanted[:300], pools, start=start)
    np.testing.assert_array_equal(chosen[:300], expected)
    assert (of[chosen] == wanted).all()
    if count > 1000:
        counts = np.bincount(chosen, minlength=6)
        assert (
            counts[2] == 0 and 4 < counts[3] / counts[4] < 6 and 1.7 < counts[1] / counts[0] < 2.3
        )
    with pytest.raises(ValueError, match="no row to start from for class 2"):
        allocation.choose(SEED, np.array([2]), pools)


def test_mixup_takes_the_pairs_that_it_is_given():
    rows, pairs = smote_inputs()[0], np.array([[0, 1], [5, 5], [29, 3]])
    out, same, weights = interpolate.mixup(SEED, 3, rows, 0.5, pairs_N2=pairs)
    np.testing.assert_array_equal(same, pairs)
    close(out, interpolate.mixup_ref(SEED, 3, rows, 0.5, pairs_N2=pairs)[0], atol=1e-4)
    with pytest.raises(ValueError, match="pairs must be integers from 0 to 29"):
        interpolate.mixup(SEED, 3, rows, 0.5, pairs_N2=pairs + 1)


MEANS = np.zeros((2, 3), np.float32)
ROWS, NEAR = smote_inputs()
REFUSED = {
    "label beyond": (lambda: gaussian.diagonal(0, np.array([2]), MEANS, MEANS), "0 to 1"),
    "float labels": (lambda: gaussian.diagonal(0, np.zeros(2), MEANS, MEANS), "integers"),
    "scales": (lambda: gaussian.diagonal(0, np.zeros(1, int), MEANS, MEANS[:1]), "shape of the"),
    "factors": (lambda: gaussian.full(0, np.zeros(1, int), MEANS, MEANS), r"\(K, D, R\)"),
    "bfloat16": (
        lambda: gaussian.diagonal(0, np.zeros(1, int), MEANS, MEANS, dtype="bfloat16"),
        "torch tensors",
    ),
    "float64": (lambda: truncated.normal(0, 1, 1, dtype="float64"), "must be one of float32"),
    "negative": (lambda: truncated.normal(0, -1, 1), "none negative"),
    "beyond 2**64": (lambda: truncated.normal(0, 2, 1, start=2**64 - 1), r"2\*\*64"),
    "seed": (lambda: truncated.normal(-1, 1, 1), "seed"),
    "bounds": (lambda: truncated.normal(0, 1, 1, low=2, high=1), "low < high"),
    "far bounds": (lambda: truncated.normal(0, 1, 1, low=9, high=10), "low < high"),
    "weights": (lambda: labels.draw(0, 1, np.array([-1.0, 2])), "none negative"),
    "no weights": (lambda: labels.draw(0, 1, np.zeros(3)), "one positive"),
    "no classes": (lambda: labels.balanced(0, 1, 0), "at least 1"),
    "neighbours": (lambda: interpolate.smote(0, 1, ROWS, NEAR + 30), "from 0 to 29"),
    "neighbour rows": (lambda: interpolate.smote(0, 1, ROWS, NEAR[:3]), r"\(M, k\)"),
    "bases": (lambda: interpolate.smote(0, 1, ROWS, NEAR, bases_N=np.array([-1])), "bases"),
    "no rows": (lambda: interpolate.smote(0, 1, ROWS[:0], NEAR[:0]), "rows to draw from"),
    "alpha": (lambda: interpolate.mixup(0, 1, ROWS, 0.0), "alpha"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_drawn_is_refused_with_what_is_allowed(case):
    call, text = REFUSED[case]
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_asked_for_without_one_is_an_error_that_says_so():
    with pytest.raises(ResourceError, match="GPU was asked for"):
        gpu.require_gpu()


def test_rows_beyond_two_to_the_31_elements_are_addressed_alone():
    """Rows 2**40 on, of a table that nobody allocates: the same as a part of the whole."""
    of, made = labels_of(3), classes_of(5, kind=np)
    out = gaussian.diagonal(SEED, of, *made[:2], start=2**40)
    close(out, gaussian.diagonal_ref(SEED, of, *made[:2], start=2**40))
    assert not np.allclose(out, gaussian.diagonal(SEED, of, *made[:2], start=2**40 % 2**32))


def test_importing_the_kernels_imports_no_torch_numba_or_cupy():
    code = (
        "import sys, medray.kernels as k; from medray.kernels import labels, gaussian, truncated,"
        " interpolate, allocation; sys.exit(bool({'torch', 'numba', 'cupy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
