"""Arrays of NumPy and torch (and CuPy) in, the same kind out; what they must look like.

The array's home picks the implementation: a NumPy array or a torch tensor on the CPU runs on the
CPU, a torch tensor or CuPy array on a GPU runs there. Nothing moves from one to the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medray.rng import INDICES, key, stream_id

if TYPE_CHECKING:
    import torch

Array = Any
Floats = NDArray[np.floating[Any]]
DTYPES = ("float32", "float16", "bfloat16")


def is_torch(array: Array) -> bool:
    """Whether this is a torch tensor; imports nothing."""
    return type(array).__module__.partition(".")[0] == "torch"


def is_cupy(array: Array) -> bool:
    """Whether this is a CuPy array; imports nothing."""
    return type(array).__module__.partition(".")[0] == "cupy"


def on_gpu(*arrays: Array | None) -> bool:
    """Whether the arrays live on a GPU; ValueError if some do and some do not."""
    homes = {
        is_cupy(array) or (is_torch(array) and array.is_cuda)
        for array in arrays
        if array is not None
    }
    if len(homes) > 1:
        raise ValueError("arrays must all be on the CPU or all on one GPU, got some of each")
    return homes == {True}


def as_tensor(array: Array) -> torch.Tensor:
    """The array as a torch tensor where it is, without a copy."""
    import torch

    if is_torch(array):
        return array.detach()  # type: ignore[no-any-return]
    if is_cupy(array):
        return torch.utils.dlpack.from_dlpack(array)
    numbers = np.ascontiguousarray(array)
    return torch.from_numpy(numbers if numbers.flags.writeable else numbers.copy())


def as_numpy(array: Array) -> NDArray[Any]:
    """An array of the CPU as NumPy's, without a copy; bfloat16, unknown to NumPy, as float32."""
    if not is_torch(array):
        return np.asarray(array)
    tensor = array.detach()
    return np.asarray((tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy())


def like(array: Array, model: Array | None) -> Array:
    """A result, NumPy or torch, in the kind of `model` (NumPy for None), without a copy."""
    if is_torch(model):
        return as_tensor(array)
    if is_cupy(model):
        from medray.kernels._launch import as_cupy

        return as_cupy(array)
    return array.numpy() if is_torch(array) else array


def empty(shape: tuple[int, ...], dtype: str, model: Array | None) -> torch.Tensor:
    """A tensor to be filled where `model` lives, on the CPU for None.

    ValueError for a type that is not one of the three, or that NumPy does not have.
    """
    import torch

    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if dtype == "bfloat16" and not is_torch(model):
        raise ValueError("NumPy has no bfloat16: give torch tensors, or take float32 or float16")
    device = as_tensor(model).device if model is not None else "cpu"
    return torch.empty(shape, dtype=getattr(torch, dtype), device=device)


def as_table(array: Array, dtype: str) -> torch.Tensor:
    """Numbers as a contiguous tensor of a type, where they are.

    Kernels read four numbers at once, so on a GPU a table begins on a border of 16 bytes.
    """
    import torch

    table = as_tensor(array).to(getattr(torch, dtype)).contiguous()
    return table.clone() if table.is_cuda and table.data_ptr() % 16 else table


def check_samples(start: int, count: int) -> None:
    """ValueError unless samples start .. start + count have addresses."""
    if start < 0 or count < 0 or start + count > INDICES:
        raise ValueError(
            f"samples must lie in 0 to 2**64, got start {start} and count {count}, none negative"
        )


def indices_of(start: int, count: int) -> NDArray[np.uint64]:
    """The addresses start .. start + count, (N,); ValueError as `check_samples`."""
    check_samples(start, count)
    return np.uint64(start) + np.arange(count, dtype=np.uint64)


def address(seed: int, stream: str, start: int) -> list[Any]:
    """A kernel's arguments start, seed and stream; ValueError for a seed that rng refuses."""
    key(seed)
    return [np.uint64(start), np.uint64(seed), np.uint32(stream_id(stream))]


def check_rows(name: str, array: Array, columns: int | None = None) -> None:
    """ValueError unless the array is (N, D) of floating numbers, D at least 1 (or `columns`)."""
    shape = tuple(array.shape) if hasattr(array, "shape") else np.shape(array)
    if len(shape) != 2 or shape[1] < 1:
        raise ValueError(f"{name} must have shape (N, D) with D at least 1, got {shape}")
    if columns is not None and shape[1] != columns:
        raise ValueError(f"{name} must have {columns} columns as the others, got shape {shape}")
    if "float" not in str(getattr(array, "dtype", "")):
        given = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"{name} must hold floating numbers, got {given}")


def check_finite(name: str, array: Array) -> None:
    """ValueError that names the first row with NaN or infinity, if any."""
    import torch

    finite = torch.isfinite(as_tensor(array))
    if not bool(finite.all()):
        bad = (~finite.reshape(len(finite), -1).all(1)).nonzero()
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in {len(bad)} rows, "
            f"first in row {int(bad[0])}"
        )


def check_labels(labels_N: Array, rows: int, classes: int) -> None:
    """ValueError unless the labels are `rows` integers from 0 to classes - 1."""
    shape = tuple(labels_N.shape)
    if shape != (rows,) or "int" not in str(labels_N.dtype):
        raise ValueError(
            f"labels must be integers of shape ({rows},), got {labels_N.dtype} of shape {shape}"
        )
    if rows and not 0 <= int(labels_N.min()) <= int(labels_N.max()) < classes:
        raise ValueError(
            f"labels must be 0 to {classes - 1}, got {int(labels_N.min())} to {int(labels_N.max())}"
        )
