"""Killing a command at random instants until it is done, and comparing what it left."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kill:
    """One attempt: the delay after which it was to be killed, and whether it ended before."""

    delay_s: float
    finished: bool


def tree_sha256(folder: Path, keep: Callable[[str], bool] = lambda name: True) -> dict[str, str]:
    """SHA-256 of every file by its relative name; `keep` leaves out what may differ."""
    paths = (p for p in sorted(folder.rglob("*")) if p.is_file())
    names = {p.relative_to(folder).as_posix(): p for p in paths}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in names.items()
        if keep(name)
    }


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a process that leads its own group, with all its children."""
    # The leader may have ended by itself a moment ago, and its group with it.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_killed(
    command: Sequence[str],
    *,
    seed: int,
    kills: int,
    clean_s: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: Path | None = None,
) -> list[Kill]:
    """Runs `command` again and again, at last to its end with exit code 0.

    The first `kills` times it is killed after up to `clean_s` seconds, at an instant drawn with
    `seed`. `log` gets its output.
    """
    draw = random.Random(seed)
    attempts: list[Kill] = []
    with (log or Path(os.devnull)).open("ab") as output:
        for _ in range(kills):
            delay_s = draw.uniform(0, clean_s)
            process = subprocess.Popen(
                command,
                env=env,
                cwd=cwd,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                process.wait(delay_s)
                finished = process.returncode == 0
            except subprocess.TimeoutExpired:
                kill_group(process)
                finished = False
            attempts.append(Kill(delay_s, finished))
            print(f"seed {seed}: delay {delay_s:.3f} s, finished {finished}")
        done = subprocess.run(command, env=env, cwd=cwd, stdout=output, stderr=output)
    if done.returncode != 0:
        raise AssertionError(
            f"after {kills} kills (seed {seed}: {attempts}) the command ended with "
            f"{done.returncode}:\n{_tail(log)}"
        )
    return attempts


def _tail(log: Path | None) -> str:
    return log.read_text(errors="replace")[-2000:] if log else "(no log)"


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stops a process while the context lasts (SIGSTOP), as if its machine hung; then it wakes."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        # Who thought it dead may have ended it.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def at_load(seconds: float) -> float:
    """A limit of time, longer where more processes want to run than there are processors."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def wait_for(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Returns when `condition` holds; AssertionError when it does not within the time."""
    until_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until_s:
            raise AssertionError(f"nothing came within {timeout_s} s")
        time.sleep(0.02)
