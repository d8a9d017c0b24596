"""`medray doctor`: what this machine and cluster have, and what they lack."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys

REQUIRED = ("torch", "ray", "numpy", "pydantic", "safetensors", "webdataset")
OPTIONAL = {
    "deepspeed": "--engine deepspeed (medray[deepspeed])",
    "pydicom": "DICOM files (medray[dicom])",
    "nibabel": "NIfTI files (medray[dicom])",
    "s3fs": "s3:// URLs (medray[s3])",
    "cupy": "kernels on a GPU (medray[gpu])",
}


def report() -> int:
    """Prints the findings; 4 where something required is missing, else 0."""
    print(f"python     {platform.python_version()} on {platform.platform()}")
    print(f"cores      {len(os.sched_getaffinity(0))}; bfloat16 in hardware: {_bfloat16()}")
    missing = [name for name in REQUIRED if not _show(name, "")]
    for name, use in OPTIONAL.items():
        _show(name, f"absent: no {use}")
    _gpu()
    _disk()
    print(f"ray token  RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE', 'not set')}")
    print(
        "network    medray listens on loopback; Ray's own GCS, raylet and metrics ports listen on\n"
        "           all interfaces: close them with a security group or a NetworkPolicy"
    )
    if missing:
        print(f"missing    {', '.join(missing)}", file=sys.stderr)
    return 4 if missing else 0


def _show(name: str, otherwise: str) -> bool:
    distribution = "cupy-cuda13x" if name == "cupy" else name
    if importlib.util.find_spec(name) is None:
        print(f"{name:10s} {otherwise or 'MISSING'}")
        return False
    print(f"{name:10s} {importlib.metadata.version(distribution)}")
    return True


def _bfloat16() -> str:
    flags = ""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    return ", ".join(name for name in ("amx_bf16", "avx512_bf16") if name in flags.split()) or "no"


def _gpu() -> None:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    if not torch.cuda.is_available():
        print("gpu        none that torch sees")
        return
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        print(f"gpu {number}      {about.name}, {about.total_memory / 2**30:.0f} GiB")


def _disk() -> None:
    for name in (".", "/dev/shm"):
        if os.path.exists(name):
            free_gib = shutil.disk_usage(name).free / 2**30
            print(f"disk       {os.path.abspath(name)}: {free_gib:.1f} GiB free")
