"""On a GPU: every kernel gives its definition, for any grid, on torch's stream."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medray import kernels
from medray.kernels import _launch, allocation, gaussian, interpolate, labels, truncated

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
SEED, FAR = 2**40 + 7, 2**33 + 1
ROUNDING = {"float32": 2e-6, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def close(out, expected, dtype="float32", atol=1e-5):
    assert out.is_cuda
    rounding = ROUNDING[dtype]
    out = out.float().cpu().numpy()
    np.testing.assert_allclose(out, expected, rtol=rounding * 2, atol=max(atol, rounding * 1e-2))


def made(dims=37, classes=4, rank=5):
    torch.manual_seed(dims)
    shapes = [(classes, dims), (classes, dims), (classes, dims, rank), (classes, dims, dims)]
    tables = [torch.randn(shape) for shape in shapes]
    tables[1] = tables[1].abs()
    return torch.randint(0, classes, (1000,), dtype=torch.int32), *tables


def there(*tensors):
    return [tensor.cuda() for tensor in tensors]


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("dims", [1, 37, 512])
def test_gaussian_rows_are_the_definitions(dtype, dims):
    of, means, scales, factors, full = made(dims)
    on = there(of, means, scales, factors, full)
    options = {"start": FAR}
    out = gaussian.diagonal(SEED, *on[:3], dtype=dtype, **options)
    close(out, gaussian.diagonal_ref(SEED, of, means, scales, **options), dtype)
    out = gaussian.low_rank(SEED, *on[:4], dtype=dtype, **options)
    close(out, gaussian.low_rank_ref(SEED, of, means, scales, factors, **options), dtype, 1e-4)
    out = gaussian.full(SEED, *on[:2], on[4], dtype=dtype, **options)
    close(out, gaussian.full_ref(SEED, of, means, full, **options), dtype, 1e-3)


@pytest.mark.parametrize("blocks", [1, 7])
def test_the_grid_changes_no_bit(blocks, monkeypatch):
    of, means, scales, *_ = there(*made(512))
    whole = gaussian.diagonal(SEED, of, means, scales)
    monkeypatch.setattr(_launch, "BLOCKS_PER_PROCESSOR", blocks)
    assert torch.equal(gaussian.diagonal(SEED, of, means, scales), whole)
    assert torch.equal(gaussian.diagonal(SEED, of[100:], means, scales, start=100), whole[100:])


@pytest.mark.parametrize("pixelnorm", [False, True])
@pytest.mark.parametrize("dims", [1, 64, 700])
def test_truncated_normals_are_the_definitions(pixelnorm, dims):
    out = truncated.normal(SEED, 300, dims, pixelnorm=pixelnorm, model=torch.empty(0).cuda())
    close(out, truncated.normal_ref(SEED, 300, dims, pixelnorm=pixelnorm))


def test_labels_smote_mixup_and_allocation_are_the_definitions():
    weights, rows = torch.tensor([1.0, 0, 3, 2]), torch.randn(50, 12)
    near, of = torch.randint(0, 50, (50, 5)), torch.randint(0, 4, (50,), dtype=torch.int32)
    drawn = labels.draw(SEED, 5000, weights.cuda(), start=FAR)
    np.testing.assert_array_equal(drawn.cpu(), labels.draw_ref(SEED, 5000, weights, start=FAR))
    drawn = labels.balanced(SEED, 5000, 7, start=FAR, model=rows.cuda())
    np.testing.assert_array_equal(drawn.cpu(), labels.balanced_ref(SEED, 5000, 7, start=FAR))
    close(interpolate.smote(SEED, 500, *there(rows, near)),
          interpolate.smote_ref(SEED, 500, rows, near))  # fmt: skip
    mixed, pairs, share = interpolate.mixup(SEED, 500, rows.cuda(), 0.4)
    expected = interpolate.mixup_ref(SEED, 500, rows, 0.4)
    np.testing.assert_array_equal(pairs.cpu(), expected[1])
    close(share, expected[2], atol=1e-4)
    close(mixed, expected[0], atol=1e-3)
    counts = allocation.foreign_neighbours(*there(near, of, of))
    np.testing.assert_array_equal(counts.cpu(), allocation.foreign_neighbours_ref(near, of, of))
    pools = allocation.Pools.of(np.ones(50), of.numpy(), 4)
    chosen = allocation.choose(SEED, of.cuda(), pools)
    np.testing.assert_array_equal(chosen.cpu(), allocation.choose_ref(SEED, of, pools))


@pytest.mark.parametrize("count, dims, k", [(7, 3, 2), (3000, 64, 5), (9000, 20, 40)])
def test_neighbours_and_moments_are_those_of_the_cpu(count, dims, k):
    rows, of = torch.randn(count, dims), torch.randint(0, 3, (count,))
    distances, indices = kernels.nearest(rows.cuda(), rows.cuda(), k, exclude_self=True)
    expected, at = kernels.nearest(rows, rows, k, exclude_self=True)
    close(distances, expected.numpy())
    assert float((indices.cpu() == at).float().mean()) > 0.9999
    for ours, theirs in zip(kernels.ledoit_wolf(rows.cuda(), of.cuda(), 3),
                            kernels.ledoit_wolf(rows, of, 3), strict=True):  # fmt: skip
        np.testing.assert_allclose(ours.cpu(), theirs, rtol=1e-9, atol=1e-9)


def test_a_draw_waits_for_torchs_current_stream():
    of, means, scales, *_ = there(*made(512))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        means.add_(1)
        out = gaussian.diagonal(SEED, of, means, scales)
    stream.synchronize()
    close(out, gaussian.diagonal_ref(SEED, of.cpu(), means.cpu(), scales.cpu()))


def test_more_than_two_to_the_31_elements_are_written_where_they_belong():
    if torch.cuda.mem_get_info()[0] < 6 * 2**30:
        pytest.skip("needs 6 GiB of GPU memory")
    count, dims = 2**22 + 3, 512
    out = truncated.normal(SEED, count, dims, dtype="float16", model=torch.empty(0).cuda())
    expected = truncated.normal_ref(SEED, 3, dims, start=2**22)
    close(out[-3:], expected, "float16")
