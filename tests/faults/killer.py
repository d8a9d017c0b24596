"""Runs a function in forked children that are killed (SIGKILL) after a while, or two at once.

`python -m tests.faults.killer MODULE FUNCTION` imports once and answers lines
`[folder, [arguments of one or two children], seconds, signal]`, so that a trial costs no imports.
The function returns an exit code.
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
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.faults.preload import ROOT

UNITS = "*.tar*"
FURTHER = 20


@dataclass
class Cost:
    """How many kills, files lost to one at most, seconds until it ended and of a last run."""

    kills: int = 0
    lost: int = 0
    ended_s: float = 0.0
    recovered_s: float = 0.0

    def lose(self, before: set[tuple[str, int]], after: set[tuple[str, int]]) -> Any:
        """Counts what was there before and is not, or is another file; gives `after`."""
        self.lost = max(self.lost, len(before - after))
        return after


def there(folder: Path, units: str = UNITS) -> set[tuple[str, int]]:
    """Files by name, each as it is: one that was made again is another."""
    return {(str(path), path.stat().st_mtime_ns) for path in folder.rglob(units)}


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

    def run(
        self, folder: Path, delay_s: float = 100.0, number: int = signal.SIGKILL, **arguments: Any
    ) -> tuple[int, float]:
        """The exit code (-9: killed) and the seconds it took; `number` is the signal it gets."""
        code, seconds = self._asked(folder, [arguments], delay_s, number)
        return int(code), float(seconds)

    def run_two(
        self, folder: Path, first: dict[str, Any], second: dict[str, Any], apart_s: float
    ) -> list[tuple[int, str]]:
        """Starts two in one folder, `apart_s` apart; exit code and what it said of each."""
        return [(code, said) for code, said in self._asked(folder, [first, second], apart_s)]

    def kept_out(
        self,
        work: Path,
        first: dict[str, Any],
        other: dict[str, Any],
        count: int,
        one_was: Callable[[Path, list[tuple[int, str]]], bool],
    ) -> int:
        """`count` times two starts in one folder: of how many pairs `one_was` kept out.

        The same work twice, or another as the second, apart by no time at all or up to the time
        that one takes, drawn from a fixed seed. Forks may miss each other all the same: while no
        pair has met, the same work is started twice at once, up to 20 times more.
        """
        self.run(work / "warm", **first)
        _, clean_s = self.run(work / "timed", **first)
        draw, found = random.Random(0), 0
        for number in range(count + FURTHER):
            further = number >= count
            if further and found:
                break
            folder = work / "two"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            apart_s = draw.uniform(0, clean_s) if number % 4 > 1 and not further else 0.0
            second = other if number % 2 and not further else first
            found += one_was(folder, self.run_two(folder, first, second, apart_s))
        return found

    def _asked(
        self,
        folder: Path,
        arguments: list[dict[str, Any]],
        seconds: float,
        number: int = signal.SIGKILL,
    ) -> Any:
        assert self._process.stdin and self._process.stdout, "made with pipes"
        trial = json.dumps([str(folder), arguments, seconds, number])
        print(trial, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def kill_at_random(
        self,
        work: Path,
        kills: int,
        *,
        check: Callable[[Path], None],
        done: Callable[[Path], None],
        seed: int = 0,
        units: str = UNITS,
        number: int = signal.SIGKILL,
        **arguments: Any,
    ) -> Cost:
        """Kills at random instants, `kills` times in all, each folder up to four times.

        With SIGTERM as `number` it asks to end: exit code 75 or 143, unless it was too early.

        `check(folder)` runs after each kill, `done(folder)` after the run that ends by itself.
        Files named as `units` are those whose loss is work done again.
        """
        self.run(work / "warm", **arguments)
        code, clean_s = self.run(work / "timed", **arguments)
        assert code == 0
        draw, cost, trial = random.Random(seed), Cost(), 0
        while cost.kills < kills:
            folder, trial = work / f"trial{trial}", trial + 1
            before: set[tuple[str, int]] = set()
            for _ in range(4):
                delay_s = draw.uniform(0, clean_s)
                code, seconds = self.run(folder, delay_s, number, **arguments)
                assert code in (0, -number, *((75, 143) if number == signal.SIGTERM else ())), code
                if code != 0:
                    cost.kills += 1
                    cost.ended_s = max(cost.ended_s, seconds - delay_s)
                check(folder)
                before = cost.lose(before, there(folder, units))
            code, seconds = self.run(folder, **arguments)
            assert code == 0, f"trial {trial}"
            cost.lose(before, there(folder, units))
            cost.recovered_s = max(cost.recovered_s, seconds)
            done(folder)
            shutil.rmtree(folder)
        return cost

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


def _code_of(act: Callable[..., int], folder: str, arguments: dict[str, Any]) -> int:
    """The exit code: a child of a fork must not run what its parent registered for its own end."""
    try:
        return act(Path(folder), **arguments)
    except SystemExit as ending:
        return int(ending.code or 0)


def _killed(
    act: Callable[..., int], folder: str, arguments: dict[str, Any], delay_s: float, number: int
) -> tuple[int, float]:
    start_s = time.monotonic()
    child = os.fork()
    if child == 0:
        os._exit(_code_of(act, folder, arguments))
    while time.monotonic() - start_s < delay_s:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), time.monotonic() - start_s
        time.sleep(0.001)
    os.kill(child, number)
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status), time.monotonic() - start_s


def _two(
    act: Callable[..., int], folder: str, arguments: list[dict[str, Any]], apart_s: float
) -> list[tuple[int, str]]:
    children = []
    for number, given in enumerate(arguments):
        time.sleep(apart_s * number)
        with tempfile.TemporaryFile() as said:
            child = os.fork()
            if child == 0:
                os.dup2(said.fileno(), 2)
                os._exit(_code_of(act, folder, given))
            children.append((child, os.dup(said.fileno())))
    ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in children]
    return [(code, _said(file)) for code, (_, file) in zip(ended, children, strict=True)]


def _said(file: int) -> str:
    with os.fdopen(file, "rb") as opened:
        opened.seek(0)
        return opened.read().decode(errors="replace")


def main() -> None:
    """Reads a trial per line, answers with what came of it."""
    act = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        folder, arguments, seconds, number = json.loads(line)
        if len(arguments) == 2:
            found: Any = _two(act, folder, arguments, seconds)
        else:
            found = _killed(act, folder, arguments[0], seconds, number)
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
