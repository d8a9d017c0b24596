"""Runs the bodies of `.cu` files on the CPU: compiled with g++ and `cpu.h`, called by ctypes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch

from medray import kernels
from medray.kernels._launch import c_type

FOLDER = Path(kernels.__file__).parent
BUILD = tempfile.TemporaryDirectory(prefix="medray-kernels-")
HAS_COMPILER = shutil.which("g++") is not None


@cache
def library(source, *defines):
    """The shared library of one file, compiled once for each set of definitions."""
    path = Path(BUILD.name, f"{source}-{abs(hash(defines))}.so")
    flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-x", "c++", "-Wall", "-Wno-unused-function"]
    command = ["g++", *flags, *(f"-D{d}" for d in defines), f"-I{FOLDER}", "-o", str(path)]
    subprocess.run([*command, str(FOLDER / f"{source}.cu")], check=True)
    return ctypes.CDLL(str(path))


class Index3(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in "xyz"]


def launch(source, kernel, grid, block, arguments, **defines):
    """As `medray.kernels._launch.launch`, on the CPU."""
    loaded = library(source, *(f"{name}={value}" for name, value in sorted(defines.items())))
    for name, (x, y) in (("gridDim", (grid, 1)), ("blockDim", block)):
        Index3.in_dll(loaded, name).x, Index3.in_dll(loaded, name).y = x, y
    getattr(loaded, kernel)(*(_argument(argument) for argument in arguments))


def _argument(argument):
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, torch.Tensor):
        assert argument.is_contiguous()
        return ctypes.c_void_p(argument.data_ptr())
    return np.ctypeslib.as_ctypes_type(argument.dtype)(argument.item())


def launch_rows(source, kernel, out, arguments, rows=None, grid=3, block=(4, 2), **defines):
    """As `_launch.launch_rows`, with any grid."""
    head = [out, np.int64(len(out) if rows is None else rows), np.uint32(out.shape[1])]
    if out.shape[1] % 4 == 0:
        defines["WHOLE"] = 1
    launch(source, kernel, grid, block, head + arguments, TYPE=c_type(out), **defines)
