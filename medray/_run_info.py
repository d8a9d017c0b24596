"""What a run folder says about its run: versions and hardware, what changed, how to go on."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from medray.errors import DataError

PACKAGES = (
    "medray numpy torch ray deepspeed cupy-cuda13x webdataset monai safetensors fsspec "
    "opencv-python-headless"
).split()
# What decides which kernels oneDNN dispatches to, and so the last bits of a result.
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
# On resume these differ from the first command by their nature.
ENTRY_FLAGS = {"--resume": 0, "--overwrite": 0, "--init-from": 1}
ABSENT = "(absent)"


def environment() -> dict[str, Any]:
    """Versions and hardware, found without importing a heavy library."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "schema": "medray.env/1",
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": found,
        "hardware": _hardware(),
    }


def _hardware() -> dict[str, Any]:
    fields = _first_processor()
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return {
        "cpu": fields.get("model name", platform.processor() or platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "gpus": _gpus(),
    }


def _first_processor() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _gpus() -> list[str]:
    paths = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for path in paths for line in path.read_text().splitlines()]
    return [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]


def changes(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines `key: old -> new`, nested keys joined by dots."""
    lines = []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key, ABSENT), after.get(key, ABSENT)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += changes(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old} -> {new}")
    return lines


def config_changes(
    before: Mapping[str, Any], after: Mapping[str, Any], changeable: frozenset[str]
) -> list[str]:
    """What a resumed run's configuration changed that it may not.

    `auto` on the command line takes what was chosen before.
    """
    given = {k: v for k, v in after.items() if k not in changeable}
    taken = {k: before.get(k, v) if v == "auto" else v for k, v in given.items()}
    return changes({k: v for k, v in before.items() if k not in changeable}, taken)


def merged(
    before: Mapping[str, Any], after: Mapping[str, Any], changeable: frozenset[str]
) -> dict[str, Any]:
    """The stored configuration with the new values of what may change."""
    new = {k: v for k, v in after.items() if k in changeable and v != "auto"}
    return {**before, **new}


def parsed(data: bytes, where: str) -> dict[str, Any]:
    """The keys and values of a stored configuration; DataError where it is no such thing."""
    try:
        content = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise _unusable(f"is not YAML: {first}", where) from None
    if not isinstance(content, dict):
        raise _unusable(f"must hold keys and values, got {type(content).__name__}", where)
    return content


def parsed_json(data: bytes, where: str) -> dict[str, Any]:
    """The keys and values of a JSON file of a run; DataError where it is no such thing."""
    try:
        content = json.loads(data)
    except ValueError as error:
        raise _unusable(f"is not JSON: {error}", where) from None
    if not isinstance(content, dict):
        raise _unusable(f"must hold keys and values, got {type(content).__name__}", where)
    return content


def _unusable(what: str, where: str) -> DataError:
    return DataError(
        what,
        code="MR-D046",
        where=where,
        hint="put the file back as it was (command.txt has the flags), or --overwrite to begin "
        "again, or another --run-dir with --init-from this one for its weights",
    )


def resume_command(command: Sequence[str]) -> str:
    """The command that goes on with a run that `command` started."""
    kept: list[str] = []
    skip = 0
    for word in command:
        name, _, value = word.partition("=")
        if skip:
            skip -= 1
        elif name in ENTRY_FLAGS:
            skip = 0 if value else ENTRY_FLAGS[name]
        else:
            kept.append(word)
    return shlex.join([*kept, "--resume"])
