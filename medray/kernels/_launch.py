"""The one home of CuPy: compiles `.cu` files with NVRTC and runs them on torch's current stream.

A kernel gets the tensors' addresses; nothing is copied. Nothing is compiled or imported before
a kernel runs.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medray.errors import ResourceError

if TYPE_CHECKING:
    import torch

FOLDER = Path(__file__).resolve().parent
# The features' type in C. Square roots and quotients to the last bit but two are exact enough.
TYPES = {"float32": "float", "float16": "Half", "bfloat16": "Bfloat16"}
OPTIONS = ("-std=c++17", "-prec-sqrt=false", "-prec-div=false", f"-I{FOLDER}")
THREADS = 256
BLOCKS_PER_PROCESSOR = 32
_LARGEST_GRID = 2**30


def launch(
    source: str,
    kernel: str,
    grid: int,
    block: tuple[int, int],
    arguments: list[Any],
    **defines: str | int,
) -> None:
    """Runs a kernel of `source`.cu: tensors by address, None as null, NumPy scalars as they are.

    ResourceError without a GPU or CuPy, ValueError for tensors of different GPUs.
    """
    tensors = [a for a in arguments if hasattr(a, "data_ptr")]
    devices = {tensor.device for tensor in tensors}
    if len(devices) != 1:
        raise ValueError(f"arrays must be on one GPU, got {sorted(map(str, devices))}")
    cupy, device = require_gpu(), devices.pop()
    import torch

    assert all(tensor.is_contiguous() for tensor in tensors), "kernels take contiguous tensors"
    stream = cupy.cuda.ExternalStream(torch.cuda.current_stream(device).cuda_stream)
    with cupy.cuda.Device(device.index or 0), stream:
        run = _function(source, kernel, tuple(sorted(defines.items())), device.index or 0)
        run((grid,), block, tuple(_argument(argument) for argument in arguments))


def launch_rows(
    source: str, kernel: str, out: torch.Tensor, arguments: list[Any], rows: int | None = None
) -> None:
    """`launch_table` of four columns a thread, with the type of `out` for that of the features."""
    defines: dict[str, str | int] = {"TYPE": c_type(out)}
    if out.shape[1] % 4 == 0:
        defines["WHOLE"] = 1
    launch_table(source, kernel, out, arguments, rows, columns=4, **defines)


def launch_whole_rows(source: str, kernel: str, out: torch.Tensor, arguments: list[Any]) -> None:
    """`launch_rows` where a row of threads has one row of `out`, for kernels with a barrier."""
    dims, rows = out.shape[1], len(out)
    across, down = _shape(dims, 4)
    defines: dict[str, str | int] = {"TYPE": c_type(out)}
    if dims % 4 == 0:
        defines["WHOLE"] = 1
    grid = -(-rows // down)
    assert grid <= _LARGEST_GRID, f"{rows} rows are more than a grid holds"
    head = [out, np.int64(rows), np.uint32(dims)]
    launch(source, kernel, grid, (across, down), head + arguments, **defines)


def launch_table(
    source: str,
    kernel: str,
    out: torch.Tensor,
    arguments: list[Any],
    rows: int | None = None,
    columns: int = 1,
    **defines: str | int,
) -> None:
    """`launch` over the rows of `out` (or so many), so many columns a thread.

    The kernel's first arguments are out, rows and columns.
    """
    dims, rows = out.shape[1], len(out) if rows is None else rows
    if not rows:
        return
    across, down = _shape(dims, columns)
    grid = min(-(-rows // down), _blocks(out.device.index or 0))
    head = [out, np.int64(rows), np.uint32(dims)]
    launch(source, kernel, grid, (across, down), head + arguments, **defines)


def _shape(dims: int, columns: int) -> tuple[int, int]:
    """Threads of a block along a row, up to a warp of them, and rows of threads."""
    across = 1
    while across < min(-(-dims // columns), 32):
        across *= 2
    return across, THREADS // across


def launch_each(source: str, kernel: str, count: int, arguments: list[Any]) -> None:
    """`launch` over `count` elements, one thread each."""
    if count:
        grid = min(-(-count // THREADS), 2**20)
        launch(source, kernel, grid, (THREADS, 1), arguments)


def launch_blocks(
    source: str, kernel: str, count: int, threads: int, arguments: Any, **defines: str | int
) -> None:
    """`launch` with one block of threads for each of `count` rows, in parts that a grid can hold.

    `arguments(first)` gives those of the part that begins at row `first`.
    """
    for first in range(0, count, _LARGEST_GRID):
        grid = min(count - first, _LARGEST_GRID)
        launch(source, kernel, grid, (threads, 1), arguments(first), **defines)


def c_type(tensor: torch.Tensor) -> str:
    """The C type of a tensor of features."""
    return TYPES[str(tensor.dtype).removeprefix("torch.")]


def as_cupy(tensor: torch.Tensor) -> Any:
    """A tensor on a GPU as CuPy's array, without a copy."""
    return require_gpu().from_dlpack(tensor)


def require_gpu() -> Any:
    """CuPy, once a GPU is there; ResourceError that says what is missing."""
    import torch

    if not torch.cuda.is_available():
        raise ResourceError(
            "a GPU was asked for, and torch sees none here",
            hint="give arrays on the CPU, or run where torch.cuda.is_available() is true",
        )
    try:
        import cupy
    except ImportError as error:
        raise ResourceError(
            "the kernels on a GPU need CuPy, which is not installed",
            hint="pip install 'medray[gpu]'",
        ) from error
    return cupy


@cache
def _function(
    source: str, kernel: str, defines: tuple[tuple[str, str | int], ...], device: int
) -> Any:
    return _module(source, defines, device).get_function(kernel)


@cache
def _module(source: str, defines: tuple[tuple[str, str | int], ...], device: int) -> Any:
    """The compiled file, once for each GPU and set of definitions."""
    options = (*OPTIONS, *(f"-D{name}={value}" for name, value in defines))
    text = (FOLDER / f"{source}.cu").read_text(encoding="utf-8")
    return require_gpu().RawModule(code=text, options=options)


def _blocks(device: int) -> int:
    """Enough blocks to fill a GPU several times over."""
    import torch

    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return int(processors) * BLOCKS_PER_PROCESSOR


def _argument(argument: Any) -> Any:
    """What CuPy passes on: a tensor's address, a null pointer, a scalar of known width.

    The tensors live as long as the caller holds them, and are used on torch's own stream.
    """
    if argument is None:
        return np.uint64(0)
    return np.uint64(argument.data_ptr()) if hasattr(argument, "data_ptr") else argument
