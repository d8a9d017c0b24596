"""Rows of `bench.py --suite serve`, two cores for service and client together.

What is measured is in `serve/bench.py`, which a job may not import: a process for each row, asked
by words on its standard input.

- `noop_default`, `noop_haproxy`: 1 KB through key, body cap, quota, metrics and request id, 32
  clients; the own door against Serve's proxy, and against its HAProxy mode. That listens on all
  interfaces, so its row has a network of its own (`unshare`).
- `generate_32`: one image a request, 32 clients, against the same service with batches of one.
- `latency_32`: the slowest of a hundred answers then, against two batches' time and the window.
- `generate_64`, `classify_128`: that gain against what the bare network gains by batches.
- `overload`: the latency of what is accepted at ten times the capacity against that at half of it.
- `replica_killed`: requests that failed of those that were in flight when a replica was killed.
- `soak`: memory at the end of a long load against that at its beginning.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from medray import log

ROWS = {
    "noop_default": "Ray Serve's proxy",
    "noop_haproxy": "Ray Serve with HAProxy",
    "generate_32": "batches of one",
    "latency_32": "two batches and the window",
    "generate_64": "the network's own gain",
    "classify_128": "the network's own gain",
    "overload": "p99 at half the load",
    "replica_killed": "in flight on it",
    "soak": "memory at the start",
}
ALONE = {"noop_haproxy"}
ROOT = Path(__file__).resolve().parents[1]
STOP_S = 60

Case = tuple[str, str, float, Callable[[], float], Callable[[], float], Callable[[], None]]


def rows(rounds: int) -> Iterator[Case]:
    """The rows; each side of a round is asked of the row's process."""
    for name, against in ROWS.items():
        if name in ALONE and not _own_network():
            log.warn("bench", f"{name} is left out: `unshare -Urn` is not allowed here")
            continue
        row = _Row(name, rounds)
        try:
            yield name, against, 0.0, row.asks("ours"), row.asks("other"), row.checks
        finally:
            row.stop()


def _own_network() -> bool:
    command = ["unshare", "-Urn", "true"]
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(command, capture_output=True).returncode == 0
    return False


class _Row:
    """The process of a row, started when it is first asked."""

    def __init__(self, name: str, rounds: int) -> None:
        self.name, self.rounds = name, rounds
        self._process: subprocess.Popen[str] | None = None

    def asks(self, word: str) -> Callable[[], float]:
        """What gives the figure of a word."""
        return lambda: float(self._ask(word))

    def checks(self) -> None:
        """AssertionError where both sides do not do the same."""
        self._ask("check")

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "serve.bench", self.name, str(self.rounds)]
        if self.name in ALONE:
            inside = "ip link set lo up && exec " + " ".join(command)
            command = ["unshare", "-Urn", "sh", "-c", inside]
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=None if "MEDRAY_DEBUG" in os.environ else subprocess.DEVNULL,
        )  # fmt: skip
        self._process = process
        assert self._read(process) == "ready"
        return process

    def _ask(self, word: str) -> Any:
        process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(word + "\n")
        process.stdin.flush()
        answer = self._read(process)
        assert not isinstance(answer, dict), f"{self.name}: {answer.get('failed')}"
        return answer

    def _read(self, process: subprocess.Popen[str]) -> Any:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("bench: "):
                return json.loads(line.removeprefix("bench: "))
        raise AssertionError(f"the process of {self.name} ended ({process.wait()})")

    def stop(self) -> None:
        """Ends the process by ending its input."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(STOP_S)
