"""The `.cu` bodies, run on the CPU, give the definitions; every file compiles for GPUs."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from medray import rng
from medray.kernels import allocation, gaussian, interpolate, labels, neighbours, truncated
from medray.kernels._arrays import address
from tests.kernels import emulate

needs_compiler = pytest.mark.skipif(not emulate.HAS_COMPILER, reason="g++ is not here")
SEED, STREAM = 2**40 + 7, "sample.test"
GRIDS = [(1, (1, 1)), (3, (4, 2)), (2, (32, 8))]
STARTS = [0, 2**32 - 3, 2**63 + 11]
ROUNDING = {torch.float32: 1e-6, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
SOURCES = sorted(path.stem for path in emulate.FOLDER.glob("*.cu"))


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def assert_close(out, expected, atol=2e-6):
    """Equal but for float32's arithmetic and the rounding of the type."""
    rounding = ROUNDING[out.dtype]
    np.testing.assert_allclose(
        out.float().numpy(), expected, rtol=rounding + 1e-6, atol=max(atol, rounding * 1e-3)
    )


@needs_compiler
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("grid, block", GRIDS)
def test_noise_is_that_of_the_addresses_for_any_grid(start, grid, block):
    out = torch.full((7, 10), torch.nan)
    where = address(SEED, STREAM, start)
    arguments = [where[0], None, *where[1:], np.uint32(3)]
    emulate.launch_rows("gaussian", "noise_rows", out, arguments, grid=grid, block=block)
    indices = np.uint64(start) + np.arange(7, dtype=np.uint64)
    assert_close(out, rng.normals(SEED, STREAM, indices, 10, start=12))


@needs_compiler
@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("dims", [1, 4, 7, 64])
def test_class_rows_are_the_diagonal_gaussian_in_every_type(dtype, dims):
    of = np.array([2, 0, 1, 1, 2], np.int32)
    means, scales = torch.randn(3, dims), torch.rand(3, dims)
    out = torch.empty((5, dims), dtype=dtype)
    where = address(SEED, STREAM, 5)
    arguments = [where[0], None, *where[1:], torch.from_numpy(of), means, scales, None]
    emulate.launch_rows("gaussian", "class_rows", out, arguments)
    expected = gaussian.diagonal_ref(SEED, of, means, scales, start=5, stream=STREAM)
    assert_close(out, expected)


@needs_compiler
def test_class_rows_add_a_product_where_the_members_stand():
    of, members = np.array([1, 0, 1, 1], np.int32), torch.tensor([0, 2, 3])
    means, scales, base = torch.randn(2, 5), torch.rand(2, 5), torch.randn(3, 5)
    out = torch.zeros((4, 5))
    where = address(SEED, STREAM, 9)
    for given in (scales, None):
        arguments = [where[0], members, *where[1:], torch.from_numpy(of), means, given, base]
        emulate.launch_rows("gaussian", "class_rows", out, arguments, rows=3)
        noise = gaussian.diagonal_ref(
            SEED, of, means, scales if given is not None else scales * 0, start=9, stream=STREAM
        )
        assert_close(out[members], noise[members] + base.numpy())
    assert (out[1] == 0).all()


@needs_compiler
def test_both_normal_tails_keep_their_precision_in_float32():
    """A million draws: the radius near 0 and the angle near its quarters lose nothing."""
    out = torch.empty((2000, 500))
    where = address(1, STREAM, 0)
    emulate.launch_rows("gaussian", "noise_rows", out, [where[0], None, *where[1:], np.uint32(0)])
    expected = rng.normals(1, STREAM, np.arange(2000), 500)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-6, atol=0)


@needs_compiler
@pytest.mark.parametrize("start", STARTS)
def test_labels_by_alias_table_are_the_definitions(start):
    weights = np.array([0.0, 3.0, 1.5, 0.2])
    thresholds, aliases = labels.alias_table(weights)
    out = torch.empty(300, dtype=torch.int32)
    tables = [torch.from_numpy(thresholds.view(np.int64)), torch.from_numpy(aliases)]
    arguments = [out, np.int64(300), *address(SEED, STREAM, start), *tables, np.uint32(4)]
    emulate.launch("labels", "alias_labels", 3, (32, 1), arguments)
    expected = labels.draw_ref(SEED, 300, weights, start=start, stream=STREAM)
    np.testing.assert_array_equal(out.numpy(), expected)


@needs_compiler
@pytest.mark.parametrize("start", [*STARTS, 2**64 - 100])
@pytest.mark.parametrize("classes", [1, 2, 5, 64])
def test_balanced_labels_are_the_definitions(start, classes):
    out = torch.full((100,), -1, dtype=torch.int32)
    arguments = [out, np.int64(100), *address(SEED, STREAM, start), np.uint32(classes)]
    emulate.launch("labels", "balanced_labels", 2, (32, 1), arguments)
    expected = labels.balanced_ref(SEED, 100, classes, start=start, stream=STREAM)
    np.testing.assert_array_equal(out.numpy(), expected)


BOUNDS = [(-2.0, 2.0), (-0.1, 0.3), (1.0, 3.0), (4.0, 5.0), (-9.0, 9.0), (-8.9, -7.0)]


@needs_compiler
@pytest.mark.parametrize("low, high", BOUNDS)
def test_truncated_normals_are_the_quantiles(low, high):
    out = torch.empty((50, 99))
    cut = truncated.cut_of(low, high)
    emulate.launch_rows("truncated", "truncated_rows", out, [*address(SEED, STREAM, 3), *cut])
    expected = truncated.normal_ref(SEED, 50, 99, low=low, high=high, start=3, stream=STREAM)
    assert_close(out, expected)
    assert low <= float(out.min()) and float(out.max()) <= high


@needs_compiler
@pytest.mark.parametrize("dims", [1, 6, 64, 700])
@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_rows_of_pixel_norm_have_a_mean_square_of_one(dims, dtype):
    out = torch.empty((5, dims), dtype=dtype)
    tail = [*address(SEED, STREAM, 3), *truncated.cut_of(-2, 2)]
    arguments = [out, np.uint32(dims), *tail]
    kind = emulate.c_type(out)
    emulate.launch("truncated", "truncated_norm_rows", 5, (128, 1), arguments, TYPE=kind)
    expected = truncated.normal_ref(SEED, 5, dims, pixelnorm=True, start=3, stream=STREAM)
    assert_close(out, expected)


@needs_compiler
def test_without_its_barriers_the_pixel_norm_is_wrong():
    out = torch.empty((5, 64))
    tail = [*address(SEED, STREAM, 3), *truncated.cut_of(-2, 2)]
    arguments = [out, np.uint32(64), *tail]
    emulate.launch("truncated", "truncated_norm_rows", 5, (128, 1), arguments, NO_BARRIER=1)
    expected = truncated.normal_ref(SEED, 5, 64, pixelnorm=True, start=3, stream=STREAM)
    assert np.abs(out.numpy() - expected).max() > 0.01


@needs_compiler
@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("given", [False, True])
def test_smote_rows_are_the_definitions(dtype, given):
    rows = torch.randn(40, 9).to(dtype)
    near = torch.randint(0, 40, (40, 5))
    bases = torch.randint(0, 40, (30,)) if given else None
    out = torch.empty((30, 9), dtype=dtype)
    k = np.uint32(5)
    arguments = [*address(SEED, STREAM, 8), rows, np.uint64(40), near, k, bases]
    emulate.launch_rows("interpolate", "smote_rows", out, arguments)
    expected = interpolate.smote_ref(SEED, 30, rows, near, bases_N=bases, start=8, stream=STREAM)
    assert_close(out, expected)


@needs_compiler
@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 8.0])
def test_mixup_rows_pairs_and_weights_are_the_definitions(alpha):
    rows, out = torch.randn(40, 8), torch.empty((200, 8))
    pairs, weights = torch.empty((200, 2), dtype=torch.int64), torch.empty(200)
    arguments = [*address(SEED, STREAM, 8), rows, np.uint64(40), np.float32(1 / alpha)]
    arguments += [np.uint32(0), pairs, weights]
    emulate.launch_rows("interpolate", "mixup_rows", out, arguments)
    expected = interpolate.mixup_ref(SEED, 200, rows, alpha, start=8, stream=STREAM)
    np.testing.assert_array_equal(pairs.numpy(), expected[1])
    np.testing.assert_allclose(weights.numpy(), expected[2], atol=2e-5)
    np.testing.assert_allclose(out.numpy(), expected[0], atol=1e-4)


@needs_compiler
def test_foreign_neighbours_are_counted():
    near, of = torch.randint(0, 50, (50, 7)), torch.randint(0, 3, (50,), dtype=torch.int32)
    counts = torch.empty(50, dtype=torch.int32)
    arguments = [counts, np.int64(50), near, np.uint32(7), of, of]
    emulate.launch("allocation", "foreign_neighbours", 2, (8, 1), arguments)
    expected = allocation.foreign_neighbours_ref(near, of, of)
    np.testing.assert_array_equal(counts.numpy(), expected)


@needs_compiler
def test_mixup_takes_the_pairs_that_it_is_given():
    rows, out = torch.randn(40, 8), torch.empty((20, 8))
    pairs, weights = torch.randint(0, 40, (20, 2)), torch.empty(20)
    arguments = [*address(SEED, STREAM, 8), rows, np.uint64(40), np.float32(2), np.uint32(1)]
    emulate.launch_rows("interpolate", "mixup_rows", out, [*arguments, pairs, weights])
    expected = interpolate.mixup_ref(SEED, 20, rows, 0.5, pairs_N2=pairs, start=8, stream=STREAM)
    np.testing.assert_allclose(out.numpy(), expected[0], atol=1e-4)


@needs_compiler
def test_rows_chosen_by_weight_are_the_definitions():
    weights, of = np.array([1.0, 2, 0, 5, 1, 1]), np.array([0, 0, 0, 1, 1, 0])
    pools = allocation.Pools.of(weights, of, 2)
    wanted, chosen = torch.randint(0, 2, (90,), dtype=torch.int32), torch.empty(90).long()
    tables = [pools.offsets_K1, pools.rows_P, pools.thresholds_P.view(np.int64), pools.aliases_P]
    arguments = [chosen, np.int64(90), *address(SEED, STREAM, 8), wanted]
    arguments += [torch.from_numpy(table) for table in tables]
    emulate.launch("allocation", "choose_rows", 2, (8, 1), arguments)
    expected = allocation.choose_ref(SEED, wanted, pools, start=8, stream=STREAM)
    np.testing.assert_array_equal(chosen.numpy(), expected)


@needs_compiler
@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_shifted_rows_are_differences_in_float64(dtype):
    features, members = torch.randn(20, 6).to(dtype), torch.tensor([3, 0, 19])
    shift, out = features[3].double(), torch.empty((3, 6), dtype=torch.float64)
    kind = emulate.c_type(features)
    arguments = [out, np.int64(3), np.uint32(6), features, members, shift]
    emulate.launch("moments", "shifted_rows", 2, (4, 2), arguments, TYPE=kind)
    np.testing.assert_array_equal(out.numpy(), (features[members].double() - shift).numpy())


def nearest_by_kernels(queries, rows, k, exclude_self, tile, number=torch.float32, **defines):
    """The launches of `_neighbours_gpu` with tiles of so many columns."""
    keep = neighbours.SPARE + k
    bounds = torch.full((len(queries), keep), torch.inf, dtype=number)
    ids = torch.full((len(queries), keep), -1, dtype=torch.int32)
    itself = torch.arange(len(queries)) if exclude_self else torch.full((len(queries),), -1)
    squares = rows.to(number).square().sum(1)
    slack = torch.zeros(len(queries), dtype=number)
    keeping = {"KEEP": keep, "NUMBER": {torch.float64: "double"}.get(number, "float"), **defines}
    for first in range(0, len(rows), tile):
        part = rows[first : first + tile]
        terms = squares[first : first + tile].contiguous()
        arguments = [
            queries.to(number) @ part.to(number).T,
            np.uint32(len(part)),
            terms,
            terms.sqrt(),
        ]
        arguments += [slack, itself, np.uint32(first), bounds, ids]
        grid = len(queries)
        emulate.launch("neighbours", "keep_smallest", grid, (32, 1), arguments, **keeping)
    found = torch.empty((len(queries), k)), torch.empty((len(queries), k), dtype=torch.int64)
    arguments = [queries, rows, np.uint32(rows.shape[1]), ids, np.uint32(k), *found]
    emulate.launch("neighbours", "rerank", len(queries), (128, 1), arguments, KEEP=keep, **defines)
    return found[0].sqrt().numpy(), found[1].numpy()


@needs_compiler
@pytest.mark.parametrize("count, tile", [(40, 64), (40, 7), (200, 64), (6, 4)])
@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("number", [torch.float32, torch.float64])
def test_kernels_of_the_neighbours_find_those_of_the_definition(count, tile, exclude_self, number):
    rows = torch.randn(count, 12)
    distances, indices = nearest_by_kernels(rows, rows, 5, exclude_self, tile, number)
    expected, at = neighbours.nearest_ref(rows, rows, 5, exclude_self=exclude_self)
    np.testing.assert_array_equal(indices, at)
    np.testing.assert_allclose(distances, expected, rtol=1e-5, atol=1e-6)


@needs_compiler
def test_duplicates_come_in_the_order_of_their_numbers_in_the_kernels_too():
    rows = torch.randint(-5, 6, (20, 3)).float().repeat(6, 1)
    _, indices = nearest_by_kernels(rows, rows, 4, True, 33)
    np.testing.assert_array_equal(
        indices, neighbours.nearest_ref(rows, rows, 4, exclude_self=True)[1]
    )


@needs_compiler
def test_without_their_barriers_the_kernels_of_the_neighbours_are_wrong():
    rows = torch.randn(40, 12)
    _, indices = nearest_by_kernels(rows, rows, 5, False, 16, NO_BARRIER=1)
    assert (indices != neighbours.nearest_ref(rows, rows, 5)[1]).any()


def unusual_barriers(text):
    """What the lint refuses: a barrier below the top level, or a body without its frame."""
    text = re.sub(r"//.*", "", text)
    wrong = []
    for body in re.split(r"\bKERNEL\b", text)[1:]:
        depth, inside = 0, False
        for token in re.findall(r"[{}]|\w+", body):
            depth += {"{": 1, "}": -1}.get(token, 0)
            if token in ("BEGIN", "BARRIER", "END") and depth != 1:
                wrong.append(f"{token} at depth {depth}")
            if token == "BARRIER" and not inside:
                wrong.append("BARRIER outside BEGIN and END")
            inside = {"BEGIN": True, "END": False}.get(token, inside)
            if token == "}" and depth == 0:
                break
        wrong += [f"no {word}" for word in ("BEGIN", "END") if not re.search(rf"\b{word}\b", body)]
        for statement in re.findall(
            r"(?:if|for|while)\s*\([^;{}]*\)\s*BARRIER|else\s+BARRIER", body
        ):
            wrong.append(f"BARRIER under {statement.split('(')[0].strip()}")
    return wrong


@pytest.mark.parametrize("source", SOURCES)
def test_barriers_stand_at_the_top_level_of_a_body_only(source):
    text = (emulate.FOLDER / f"{source}.cu").read_text()
    assert "KERNEL" in text and not unusual_barriers(text)
    assert not re.search(r"__shfl|__sync|wmma|__global__|__shared__", text)


BAD_BODIES = [
    "KERNEL f(int n) { BEGIN for (;;) { BARRIER } END }",
    "KERNEL f(int n) { BEGIN if (n) BARRIER END }",
    "KERNEL f(int n) { BEGIN if (n) { g(); } else BARRIER END }",
    "KERNEL f(int n) { BARRIER BEGIN END }",
    "KERNEL f(int n) { g(); }",
]


@pytest.mark.parametrize("body", BAD_BODIES)
def test_the_lint_refuses_barriers_elsewhere(body):
    assert unusual_barriers(body)


def nvrtc(text, *options):
    """Compiles as CuPy would; the log where it fails, else None."""
    from cuda.bindings import nvrtc as library

    _, program = library.nvrtcCreateProgram(text.encode(), b"kernel.cu", 0, [], [])
    flags = [option.encode() for option in options]
    (result,) = library.nvrtcCompileProgram(program, len(flags), flags)
    if result == library.nvrtcResult.NVRTC_SUCCESS:
        return None
    log = b" " * library.nvrtcGetProgramLogSize(program)[1]
    library.nvrtcGetProgramLog(program, log)
    return log.decode()


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("source", SOURCES)
def test_every_file_compiles_for_gpus_in_every_type(source, architecture):
    pytest.importorskip("cuda.bindings.nvrtc")
    from medray.kernels._launch import OPTIONS, TYPES

    text = (emulate.FOLDER / f"{source}.cu").read_text()
    for kind in TYPES.values():
        log = nvrtc(text, *OPTIONS, f"-arch={architecture}", f"-DTYPE={kind}")
        assert log is None, log


def test_the_compiler_of_gpu_code_refuses_what_is_wrong():
    pytest.importorskip("cuda.bindings.nvrtc")
    assert "error" in nvrtc("KERNEL f() { BEGIN undeclared = 1; END }", "-arch=sm_80")


def test_shared_memory_of_every_kernel_fits_a_block():
    text = (emulate.FOLDER / "neighbours.cu").read_text()
    assert "THREADS 32" in text
    largest = 48 * 1024 // (32 * 8)
    from medray.kernels._neighbours_gpu import LARGEST_K

    assert LARGEST_K + neighbours.SPARE <= min(largest, 128)
