"""`medray doctor`: what this machine and cluster have, what they lack, and what to do about it."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import secrets
import shutil
import socket
import stat
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from medray.errors import MedrayError
from medray.store import Store

REQUIRED = ("torch", "ray", "numpy", "pydantic", "safetensors", "webdataset")
OPTIONAL = {
    "deepspeed": "--engine deepspeed (medray[deepspeed])",
    "pydicom": "DICOM files (medray[dicom])",
    "nibabel": "NIfTI files (medray[dicom])",
    "s3fs": "s3:// URLs (medray[s3])",
    "cupy": "kernels on a GPU (medray[gpu])",
}
# Below it jobs can be run by who reaches the port: GHSA-hhrp-gw25-jr43 and older.
RAY_FLOOR = (2, 56)
LOW_DISK_GIB, LOW_SHM_GIB = 10.0, 2.0
PROBE_MIB, SLOW_MIB_PER_S = 16, 50.0
CONNECT_S = 2.0


def main(argv: Sequence[str]) -> int:
    """The command: `medray doctor [STORE]`."""
    parser = argparse.ArgumentParser(prog="medray doctor", description=__doc__)
    parser.add_argument(
        "store", nargs="?", help="folder or URL that runs shall write to: its speed is measured"
    )
    return report(parser.parse_args(argv).store)


def report(store: str | None = None) -> int:
    """Prints the findings; 4 where something required is missing or `store` fails, else 0."""
    print(f"python     {platform.python_version()} on {platform.platform()}")
    _cpu()
    missing = [name for name in REQUIRED if not _show(name, "")]
    for name, use in OPTIONAL.items():
        _show(name, f"absent: no {use}")
    _gpu()
    _disk()
    works = _storage(store) if store else True
    _ray()
    _token()
    print(
        "network    medray listens on loopback; Ray's own GCS, raylet and metrics ports listen on\n"
        "           all interfaces: close them with a security group or a NetworkPolicy"
    )
    if missing:
        print(f"missing    {', '.join(missing)}", file=sys.stderr)
        _do("pip install -c constraints.txt -e . in the checkout (make setup does it)", sys.stderr)
    return 4 if missing or not works else 0


def _do(text: str, file: TextIO | None = None) -> None:
    """What to do about the line above."""
    print(f"           do: {text}", file=file)


def _show(name: str, otherwise: str) -> bool:
    distribution = "cupy-cuda13x" if name == "cupy" else name
    if importlib.util.find_spec(name) is None:
        print(f"{name:10s} {otherwise or 'MISSING'}")
        return False
    print(f"{name:10s} {importlib.metadata.version(distribution)}")
    return True


def _cpu() -> None:
    found = _bfloat16()
    print(f"cores      {len(os.sched_getaffinity(0))}; bfloat16 in hardware: {found}")
    if "amx_bf16" in found:
        _do("nothing: --precision auto times bf16 against fp32; AMX makes it 3 to 5 times as fast")
    elif found == "no":
        _do("leave --precision auto or fp32; a CPU with AMX trains several times as fast")


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
        if os.path.exists("/dev/nvidiactl"):
            build = torch.version.cuda or "none, a CPU build"
            _do(f"there is a driver: install a torch with CUDA (this one: {build}), or update it")
        return
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        print(f"gpu {number}      {about.name}, {about.total_memory / 2**30:.0f} GiB")


def _disk() -> None:
    for name, low_gib, remedy in (
        (".", LOW_DISK_GIB, "free some, or point MEDRAY_RUNS_DIR and MEDRAY_CACHE_DIR elsewhere"),
        ("/dev/shm", LOW_SHM_GIB, "Ray falls back to slow disk: docker run --shm-size=8g"),
    ):
        if os.path.exists(name):
            free_gib = shutil.disk_usage(name).free / 2**30
            print(f"disk       {os.path.abspath(name)}: {free_gib:.1f} GiB free")
            if free_gib < low_gib:
                _do(remedy)


def _storage(url: str) -> bool:
    """Writes a file to the store, reads it back, and removes it; whether that works."""
    name, data = f".medray-doctor-{secrets.token_hex(8)}", secrets.token_bytes(PROBE_MIB << 20)
    try:
        store = Store(url)
        begun_s = time.monotonic()
        store.write_bytes(name, data)
        written_s = time.monotonic()
        whole = store.read_bytes(name) == data
        read_s = time.monotonic()
        store.remove(name)
    except (MedrayError, OSError) as error:
        print(f"storage    {url}: {error}")
        _do("check the URL, the credentials of this machine and that it may write there")
        return False
    rates = [PROBE_MIB / max(s, 1e-9) for s in (written_s - begun_s, read_s - written_s)]
    print(f"storage    {store.url}: writes {rates[0]:.0f} MiB/s, reads {rates[1]:.0f} MiB/s")
    if not whole:
        print("           what was read is not what was written")
        _do("do not use this store: checkpoints and shards would be refused as damaged")
    elif min(rates) < SLOW_MIB_PER_S:
        _do("use a store in the same region; --cache-dir on a local disk keeps what was read")
    return whole


def _ray() -> None:
    """Ray's version against the floor, and whether the cluster that is named answers."""
    if importlib.util.find_spec("ray") is None:
        return
    parts = importlib.metadata.version("ray").split(".")
    if tuple(int(part) for part in parts[:2]) < RAY_FLOOR:
        print("ray        this version has known holes that run a stranger's code")
        _do("pip install -c constraints.txt ray")
    for name, default in (("RAY_API_SERVER_ADDRESS", 8265), ("RAY_ADDRESS", 6379)):
        if address := os.environ.get(name):
            answers = _answers(address, default)
            print(f"cluster    {name}={address}: {'answers' if answers else 'no answer'}")
            if not answers:
                _do("is the tunnel open (ray dashboard cluster/aws.yaml, kubectl port-forward)?")


def _answers(address: str, default_port: int) -> bool:
    rest = address.rpartition("://")[2].partition("/")[0]
    host, _, port = rest.partition(":")
    try:
        with socket.create_connection((host, int(port or default_port)), CONNECT_S):
            return True
    except (OSError, ValueError):
        return False


def _token() -> None:
    """Whether token authentication is on and who may read the token; never the token itself."""
    mode = os.environ.get("RAY_AUTH_MODE", "not set")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    if os.environ.get("RAY_AUTH_TOKEN"):
        where = "RAY_AUTH_TOKEN"
    else:
        where = str(path) if path.exists() else "none"
    print(f"ray token  RAY_AUTH_MODE={mode}, token: {where}")
    if mode == "disabled":
        _do("unset RAY_AUTH_MODE: without a token, who reaches the port runs code here")
    elif where == "none":
        _do("ray get-auth-token --generate, or RAY_AUTH_TOKEN of the cluster that you join")
    elif mode == "not set":
        _do("export RAY_AUTH_MODE=token, or `ray job submit` says that a token is missing")
    if where == str(path) and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        _do(f"chmod 600 {path}: others on this machine can read it")
