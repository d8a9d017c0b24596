"""A process whose disk fails at its k-th operation, fills up, or loses what was not made durable.

`preload.c` says how; here it is compiled (once per source, with gcc) and given to commands
(`environment`) or, a hundred times faster, to a forked child per trial (`Forks`): the interpreter
imports once, each trial runs a function on a folder in a child that is armed with one fault.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

SOURCE = Path(__file__).with_name("preload.c")
ROOT = Path(__file__).resolve().parents[2]
ACTIONS = {"none": 0, "exit": 1, "torn": 2, "enospc": 3, "eio": 4}
EXIT_CODE = 86
NO_LIMIT_BYTES = 2**64 - 1


def library(source: Path = SOURCE) -> Path:
    """The compiled library; the test skips, saying so, where there is no C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("faults of the disk need Linux and a C compiler (gcc)")
    name = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    path = Path(tempfile.gettempdir(), f"medray-faults-{os.getuid()}", f"{name}.so")
    if not path.exists():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        flags = ["-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(part), str(source)]
        subprocess.run([compiler, *flags, "-ldl", "-lpthread"], check=True)
        os.replace(part, path)
    return path


def environment(
    prefix: Path,
    *,
    action: str = "none",
    at: int = 0,
    room_bytes: int = NO_LIMIT_BYTES,
    log: Path | None = None,
    state: Path | None = None,
) -> dict[str, str]:
    """Variables that arm a command and all its children; `state` (made here) counts operations."""
    if state is not None:
        state.write_bytes(bytes(16))
    return {
        "LD_PRELOAD": str(library()),
        "FAULT_PREFIX": str(prefix.resolve()),
        "FAULT_ACTION": str(ACTIONS[action]),
        "FAULT_AT": str(at),
        "FAULT_BYTES": str(room_bytes),
        "FAULT_LOG": str(log or ""),
        "FAULT_STATE": str(state or ""),
    }


def operations(state: Path) -> int:
    """How many operations the commands armed with `state` did."""
    return int.from_bytes(state.read_bytes()[:8], sys.byteorder)


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: its exit code, its result or its error, and the operations it did."""

    code: int
    operations: int = 0
    result: Any = None
    error: str = ""
    text: str = ""

    @property
    def ended_by_fault(self) -> bool:
        """Whether the fault ended the process."""
        return self.code == EXIT_CODE


class Forks:
    """Runs `function(folder)` of a module in a fresh child per trial, each with its own fault."""

    def __init__(self, function: Callable[..., Any]) -> None:
        command = [sys.executable, "-m", "tests.faults.forks"]
        self._process = subprocess.Popen(
            [*command, function.__module__, function.__name__],
            cwd=ROOT,
            env={**os.environ, "LD_PRELOAD": str(library()), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        folder: Path,
        *,
        action: str = "none",
        at: int = 0,
        room_bytes: int = NO_LIMIT_BYTES,
        log: Path | None = None,
        **arguments: Any,
    ) -> Outcome:
        """One trial; `arguments` go to the function."""
        assert self._process.stdin and self._process.stdout, "made with pipes"
        fault = [str(folder.resolve()), at, ACTIONS[action], room_bytes, str(log or "")]
        print(json.dumps([fault, arguments]), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, f"the process that forks has ended with {self._process.wait()}"
        return Outcome(**json.loads(line))

    def close(self) -> None:
        """Ends the process that forks."""
        assert self._process.stdin and self._process.stdout, "made with pipes"
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Forks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
