"""The other end of `preload.Forks`: imports a function once, forks a child for each trial."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _child(act: Callable[..., Any], fault: list[Any], arguments: dict[str, Any], out: int) -> int:
    """Runs `act` under the fault and writes what came of it to the pipe `out`."""
    faults = ctypes.CDLL(None)
    faults.fault_operations.restype = ctypes.c_uint64
    prefix, at, action, room_bytes, log = fault
    faults.fault_arm(
        prefix.encode(),
        ctypes.c_uint64(at),
        action,
        ctypes.c_uint64(room_bytes),
        log.encode(),
    )
    ended: dict[str, Any]
    try:
        ended = {"result": act(Path(prefix), **arguments)}
    except Exception as error:
        ended = {"error": type(error).__name__, "text": str(error)}
    ended["operations"] = faults.fault_operations()
    os.write(out, json.dumps(ended).encode())
    return 1 if "error" in ended else 0


def _trial(act: Callable[..., Any], fault: list[Any], arguments: dict[str, Any]) -> dict[str, Any]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        # _exit: a child of a fork must not run what the parent registered for its own end.
        os._exit(_child(act, fault, arguments, write))
    os.close(write)
    with os.fdopen(read, "rb") as file:
        text = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"code": code, **json.loads(text or "{}")}


def main() -> None:
    """Reads a trial per line, answers with its outcome."""
    act = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    # What a trial prints goes to stderr: stdout is for the answers.
    os.dup2(2, 1)
    for line in sys.stdin:
        fault, arguments = json.loads(line)
        print(json.dumps(_trial(act, fault, arguments)), file=answers, flush=True)


if __name__ == "__main__":
    main()
