"""Ranks as plain processes of this machine, in the form that torchrun gives them.

The parent names the worker function and writes the configuration as JSON; a child imports the one,
reads the other, and leaves its result or its error as JSON. The ranks meet in a file and talk over
loopback. The first rank that fails ends the others.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from medray.dist import _failures, _stop, context
from medray.errors import UsageError

POLL_S = 0.05
GRACE_S = 5.0


def run(
    worker: context.Worker,
    config: dict[str, Any],
    workers: int,
    gpus_per_worker: float,
    threads: int,
) -> Any:
    """Starts `workers` ranks, waits for them, returns rank 0's result or raises a rank's error."""
    with tempfile.TemporaryDirectory(prefix="medray-") as text:
        folder = Path(text)
        task = {
            "worker": reference(worker),
            "config": config,
            "gpus_per_worker": gpus_per_worker,
            "threads": threads,
        }
        (folder / "task.json").write_text(json.dumps(task))
        ranks = [_start(folder, rank, workers, threads) for rank in range(workers)]
        restore = _stop.install(lambda number, frame: _terminate(ranks))
        try:
            codes = _wait(ranks)
        finally:
            restore()
            _end(ranks)
        return _result(folder, codes)


def reference(worker: context.Worker) -> dict[str, str]:
    """Where a child finds the worker function: its module, or its script's file, and its name."""
    name = worker.__qualname__
    if "<locals>" in name or "<lambda>" in name:
        raise UsageError(f"worker {name} is not at the top level of a module")
    if worker.__module__ != "__main__":
        return {"module": worker.__module__, "name": name}
    return {"file": str(Path(sys.modules["__main__"].__file__ or "").resolve()), "name": name}


def _load(where: dict[str, str]) -> ModuleType:
    if "module" in where:
        return importlib.import_module(where["module"])
    # Under another name than __main__, so that the script's own main does not run.
    spec = importlib.util.spec_from_file_location("medray_worker_script", where["file"])
    assert spec is not None and spec.loader is not None, f"no Python file at {where['file']}"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _start(folder: Path, rank: int, workers: int, threads: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(workers),
        "LOCAL_WORLD_SIZE": str(workers),
        "OMP_NUM_THREADS": str(threads),
        "MEDRAY_RENDEZVOUS": f"file://{folder / 'rendezvous'}",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [sys.executable, "-m", "medray.dist._processes", str(folder)]
    return subprocess.Popen(command, env=environment)


def _terminate(ranks: list[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.terminate()


def _wait(ranks: list[subprocess.Popen[bytes]]) -> list[int | None]:
    """The exit codes once all are done, or once one has failed (None: it was still running)."""
    while True:
        codes = [rank.poll() for rank in ranks]
        if None not in codes or any(codes):
            return codes
        time.sleep(POLL_S)


def _end(ranks: list[subprocess.Popen[bytes]]) -> None:
    # A typed error may stand in another rank's file a moment later, so the others get a grace.
    deadline = time.monotonic() + GRACE_S
    _terminate(ranks)
    for rank in ranks:
        try:
            rank.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()


def _result(folder: Path, codes: list[int | None]) -> Any:
    for path in sorted(folder.glob("error-*.json")):
        raise _failures.rebuild(json.loads(path.read_text()))
    failed = []
    for rank, code in enumerate(codes):
        trace = folder / f"trace-{rank}.txt"
        # The rank that failed first may have been ending still when an echo of it had ended.
        if code or trace.exists():
            text = trace.read_text() if trace.exists() else f"exit code {code}"
            failed.append((_failures.ECHO in text, code is None, rank, text))
    if failed:
        raise _failures.unexpected(*min(failed)[2:])
    return json.loads((folder / "result.json").read_text())


def child(folder: Path) -> int:
    """One rank: runs the worker function and leaves its result or error in `folder`."""
    task = json.loads((folder / "task.json").read_text())
    rank = int(os.environ["RANK"])
    try:
        here = context.torchrun(
            gpus_per_worker=task["gpus_per_worker"], threads_per_rank=task["threads"]
        )
        worker = getattr(_load(task["worker"]), task["worker"]["name"])
        result = worker(here, task["config"])
        here.close()
    except BaseException as error:
        if (known := _failures.known(error)) is not None:
            (folder / f"error-{rank}.json").write_text(json.dumps(_failures.describe(known, rank)))
            return known.exit_code
        (folder / f"trace-{rank}.txt").write_text(traceback.format_exc())
        raise
    if rank == 0:
        (folder / "result.json").write_text(json.dumps(result))
    return 0


def _leave(ended: list[int]) -> None:
    """Ends this process as `child` did, without taking the interpreter down.

    gloo's threads may still hold tensors whose end needs the interpreter's lock; asked for while
    that is taken down it aborts a rank that is done (exit code -6; pytorch/pytorch#179291).
    """
    if ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended[0])


if __name__ == "__main__":
    codes: list[int] = []
    # Registered before what the rank imports, so that it runs after all that those have registered.
    atexit.register(_leave, codes)
    codes.append(child(Path(sys.argv[1])))
    sys.exit(codes[0])
