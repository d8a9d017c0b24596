"""A small archive to kill: three shards of eight images of 16 px, made in a forked child.

`python -m tests.archive.small_archive` answers lines `[folder, arguments, delay_s]`: it forks a
child that makes the archive and kills it after that time, so that a trial costs no imports.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import jobs._archive_run  # noqa: F401  (so that a forked child imports nothing)
from jobs import archive
from tests.archive.made_parts import arguments
from tests.faults.preload import ROOT


def make(folder: Path, parts: str, durable: bool = True, guarded: bool = True) -> int:
    """Makes the archive at `folder`/archive; the exit code."""
    if not durable:
        os.fsync = lambda handle: None
    if not guarded:
        _write_under_final_names()
    return archive.main([*arguments(Path(parts), folder / "archive"), "--wait-s", "5", "--quiet"])


def _write_under_final_names() -> None:
    """Takes a guard away: what is half written bears its final name, and nobody looks twice."""
    from medray.archive import archive as making
    from medray.archive import worker
    from medray.shards import writer

    writer._part_path = lambda store, name: store.path(f"{name}.tar")
    worker._is_whole = lambda store, shard: True
    making.finished = lambda store, plan, number: (
        worker.finished(store, plan, number)
        if store.exists(worker.manifest_name(plan.shard_name(number)))
        else None
    )


class Killer:
    """Makes archives in children that are killed after a while."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.archive.small_archive"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, folder: Path, parts: Path, delay_s: float = 100.0) -> tuple[int, float]:
        """The exit code (-9: killed) and the seconds it took."""
        assert self._process.stdin and self._process.stdout, "made with pipes"
        print(json.dumps([str(folder), str(parts), delay_s]), file=self._process.stdin, flush=True)
        code, seconds = json.loads(self._process.stdout.readline())
        return int(code), float(seconds)

    def __enter__(self) -> Killer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin and self._process.stdout, "made with pipes"
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _killed(folder: str, parts: str, delay_s: float) -> tuple[int, float]:
    start_s = time.monotonic()
    child = os.fork()
    if child == 0:
        os._exit(make(Path(folder), parts))
    while time.monotonic() - start_s < delay_s:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), time.monotonic() - start_s
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status), time.monotonic() - start_s


def main() -> None:
    """Reads a trial per line, answers with what came of it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(_killed(*json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
