"""Several nodes on this machine as tests see them, and jobs on them: started, met, ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.chaos_budget import trials
from tests.faults.kill import kill_group, wait_for

ROOT = Path(__file__).resolve().parents[2]
# For a busy machine; what is waited for usually takes a tenth of it.
PATIENCE_S = 240.0
# What takes a minute or more, or is near to what another test shows.
long = pytest.mark.skipif(
    not trials(0, 1), reason="of the whole table alone: CHAOS_TRIALS=full (make chaos-long)"
)


def environment(**more: str) -> dict[str, str]:
    """What nodes and jobs start with: tests can be imported, one thread, no token unless named."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MEDRAY_", "RAY_"))}
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        **more,
    }


# --- nodes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A node: its name in Ray, and its own processes."""

    name: str
    pids: dict[str, int]

    @property
    def raylet(self) -> int:
        return self.pids["raylet"]

    def processes(self) -> list[int]:
        """Process ids of the raylet and of everything that it has started."""
        return [self.raylet, *children(self.raylet)]

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """All of the node's processes stopped while it lasts."""
        pids = self.processes()
        _signal(pids, signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(pids, signal.SIGCONT)


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        # It may have ended by itself.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def children(pid: int) -> list[int]:
    """Process ids of everything below a process."""
    below: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        # A process may end while one looks.
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            below.setdefault(parent, []).append(int(path.parent.name))
    found = list(below.get(pid, []))
    for child in found:
        found += below.get(child, [])
    return found


class Nodes:
    """A cluster of this machine: a head, and nodes that come and are lost."""

    def __init__(self, head_cpus: int, **more: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.nodes.keeper", str(head_cpus)],
            cwd=ROOT,
            env=environment(**more),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        told = self._answer()
        self.address = str(told["address"])
        self.head = Node(told["node"], told["pids"])

    def add(self, cpus: int) -> Node:
        """One node more."""
        told = self._order({"add": cpus})
        return Node(told["node"], told["pids"])

    def lose(self, node: Node) -> None:
        """Kills everything of a node at once."""
        self._order({"lose": node.name})

    def notice(self, node: Node, seconds: int) -> None:
        """Tells the cluster that a node will be taken away."""
        words = ("--address", self.address, "--node-id", node.name)
        reason = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test")
        end = ("--deadline-remaining-seconds", str(seconds))
        ray = Path(sys.executable).with_name("ray")
        command = [str(ray), "drain-node", *words, *reason, *end]
        subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=60)

    def _order(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise AssertionError(f"the keeper of the nodes has ended with {self._process.wait()}")

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(60)
        _signal([*children(self._process.pid), self._process.pid], signal.SIGKILL)
        self._process.wait()
        self._process.stdout.close()


# --- jobs ---------------------------------------------------------------------------------------


@dataclass
class Job:
    """A command, running or ended: `words` in the environment `env`, its output in `log`."""

    words: Sequence[str]
    env: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> Job:
        """Starts it; the same words start a job and go on with it."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.words,
                cwd=ROOT,
                env=self.env,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return self

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """The exit code."""
        return self.process.wait(timeout_s)

    def run(self) -> int:
        """Starts it and waits."""
        return self.start().wait()

    def stop(self) -> None:
        """Kills it if it runs."""
        if hasattr(self, "process"):
            kill_group(self.process)

    def said(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def until(self, condition: Any, timeout_s: float = PATIENCE_S) -> float:
        """Waits until something holds while the job goes on; how long that took, in seconds."""
        begun_s = time.monotonic()
        wait_for(lambda: condition() or self.process.poll() is not None, timeout_s)
        assert condition(), f"ended with {self.process.poll()}: {self.said()[-3000:]}"
        return time.monotonic() - begun_s
