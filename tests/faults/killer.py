"""Runs a function in forked children that are killed (SIGKILL) after a while.

`python -m tests.faults.killer MODULE FUNCTION` imports once and answers lines
`[folder, arguments, delay_s]`, so that a trial costs no imports. The function returns an exit code.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.faults.preload import ROOT


class Killer:
    """Runs `function(folder, **arguments)` in children that are killed after a while."""

    def __init__(self, function: Callable[..., int]) -> None:
        command = [sys.executable, "-m", "tests.faults.killer"]
        self._process = subprocess.Popen(
            [*command, function.__module__, function.__name__],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, folder: Path, delay_s: float = 100.0, **arguments: Any) -> tuple[int, float]:
        """The exit code (-9: killed) and the seconds it took."""
        assert self._process.stdin and self._process.stdout, "made with pipes"
        trial = json.dumps([str(folder), arguments, delay_s])
        print(trial, file=self._process.stdin, flush=True)
        code, seconds = json.loads(self._process.stdout.readline())
        return int(code), float(seconds)

    def kill_at_random(
        self,
        work: Path,
        kills: int,
        *,
        check: Callable[[Path], None],
        done: Callable[[Path], None],
        seed: int = 0,
        **arguments: Any,
    ) -> None:
        """Kills at random instants, `kills` times in all, each folder up to four times.

        `check(folder)` runs after each kill, `done(folder)` after the run that ends by itself.
        """
        self.run(work / "warm", **arguments)
        code, clean_s = self.run(work / "timed", **arguments)
        assert code == 0
        draw, killed, trial = random.Random(seed), 0, 0
        while killed < kills:
            folder, trial = work / f"trial{trial}", trial + 1
            for _ in range(4):
                delay_s = draw.uniform(0, clean_s)
                killed += self.run(folder, delay_s, **arguments)[0] == -signal.SIGKILL
                check(folder)
            assert self.run(folder, **arguments)[0] == 0, f"trial {trial}"
            done(folder)
            shutil.rmtree(folder)

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


def _killed(
    act: Callable[..., int], folder: str, arguments: dict[str, Any], delay_s: float
) -> tuple[int, float]:
    start_s = time.monotonic()
    child = os.fork()
    if child == 0:
        os._exit(act(Path(folder), **arguments))
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
    act = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(_killed(act, *json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
