"""safetensors files, written one tensor in memory at a time; read with safetensors itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "np.ndarray[Any, Any] | torch.Tensor"]

# Names of safetensors (its format's own), by NumPy's and torch's names.
DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}


def _array(tensor: Any) -> tuple[str, tuple[int, ...], np.ndarray[Any, Any]]:
    """Type name, shape and the bytes (flat uint8) of a NumPy array or a torch tensor."""
    shape = tuple(tensor.shape)
    if not isinstance(tensor, np.ndarray | np.generic):
        import torch

        name = str(tensor.dtype).removeprefix("torch.")
        flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
        return name, shape, flat
    flat_array = np.ascontiguousarray(tensor).reshape(-1)
    return tensor.dtype.name, shape, flat_array.view(np.uint8)


def write_tensors(path: Path, tensors: Tensors) -> dict[str, Any]:
    """Writes a safetensors file, one tensor in memory at a time; its size and SHA-256.

    The same tensors give the same bytes: names sorted, header padded to eight bytes.
    """
    header: dict[str, Any] = {}
    offset = 0
    for name in sorted(tensors):
        dtype, shape, count = _described(name, tensors[name])
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + count]}
        offset += count
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for chunk in (len(text).to_bytes(8, "little"), text):
            digest.update(chunk)
            file.write(chunk)
        for name in sorted(tensors):
            data = _array(tensors[name])[2].data
            digest.update(data)
            file.write(data)
    return {"bytes": 8 + len(text) + offset, "sha256": digest.hexdigest()}


def read_tensors(data: bytes, as_numpy: bool) -> dict[str, Any]:
    """The tensors of a file's bytes; ValueError where it is no such file."""
    from safetensors import SafetensorError

    try:
        if as_numpy:
            from safetensors.numpy import load as load_numpy

            return dict(load_numpy(data))
        from safetensors.torch import load

        return dict(load(data))
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _described(name: str, tensor: Any) -> tuple[str, list[int], int]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"{name}: dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    shape = [int(length) for length in tensor.shape]
    itemsize = int(getattr(tensor, "itemsize", 0) or tensor.element_size())
    return DTYPES[dtype], shape, int(np.prod(shape, dtype=np.int64)) * itemsize
