"""Small runs of jobs/pggan.py to be killed: a process imports everything once and forks each run.

`Nursery` starts a run per fork (about a second instead of ten) with a fault of the disk (`preload`)
or a patch (`PATCHES`, what a negative control takes away). `results` is what a run must leave.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.faults import preload
from tests.faults.kill import tree_sha256

ROOT = Path(__file__).resolve().parents[2]
TOTAL_IMAGES, BATCH, SAVE_IMAGES = 96, 8, 16
SMALL = (
    *("--final-px", "16", "--start-px", "8", "--phantom-images", "48", "--precision", "fp32"),
    *("--fmap-base", "64", "--fmap-max", "8", "--latent-dims", "8", "--threads-per-worker", "1"),
    *("--total-images", f"{TOTAL_IMAGES}", "--batch", f"{BATCH}", "--log-images", "8"),
    *("--snapshot-images", "48", "--checkpoint-images", f"{SAVE_IMAGES}", "--r1-every", "3"),
)
CLOCKS = ("perf/", "mem/")
IMPORTS = (
    "jobs._pggan_run medray.train.pggan medray.train.loop medray.train.snapshots torch._dynamo "
    "medray.models.weights medray.stream.loader medray.phantoms torch.utils.tensorboard.writer "
    "matplotlib.backends.backend_agg matplotlib.figure medray.metrics"
).split()


def arguments(folder: Path, *more: str) -> list[str]:
    """The flags of a small run in one process in `folder`; the same line starts and goes on."""
    return [*SMALL, "--backend", "local", "--resume", "--run-dir", str(folder), *more]


def environment(cache: Path) -> dict[str, str]:
    """The environment of a run: phantoms in `cache`, one thread, no token of a cluster."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MEDRAY_", "RAY_"))}
    return {
        **kept,
        "MEDRAY_CACHE_DIR": str(cache),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }


def command(folder: Path, *more: str) -> list[str]:
    """The same as a command."""
    return [sys.executable, str(ROOT / "jobs" / "pggan.py"), *arguments(folder, *more)]


# --- what a run leaves ------------------------------------------------------------------------


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, clocks and memory aside."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(CLOCKS)} for row in rows]


def results(folder: Path, total_images: int = TOTAL_IMAGES) -> dict[str, Any]:
    """What must not depend on kills: every checkpoint, the model, the pictures and the rows.

    A manifest tells the number of its start, which is left out.
    """
    tops = ("checkpoints/", "model/", "fakes-", "reals.png", "growth.png", "DONE")
    found: dict[str, Any] = dict(tree_sha256(folder, lambda name: name.startswith(tops)))
    for name in found:
        if name.endswith("manifest.json"):
            found[name] = {**json.loads((folder / name).read_text()), "epoch": 0}
    assert f"checkpoints/{total_images:010d}/state.safetensors" in found, sorted(found)
    assert {"model/generator.safetensors", "growth.png", "DONE"} <= set(found)
    return {**found, "metrics": metrics(folder)}


def sound_checkpoints(folder: Path) -> list[int]:
    """Images of the checkpoints; every one that has a manifest must load."""
    from medray.checkpoints import Checkpoints
    from medray.store import Store

    checkpoints = Checkpoints(Store(folder), None)
    for images in checkpoints.complete():
        checkpoints.load(checkpoints.at(images), as_numpy=True)
    return checkpoints.complete()


def writer(folder: Path) -> dict[str, int]:
    """The process that publishes into the run folder, and its number among all there were."""
    record = json.loads((folder / ".lease" / "epoch.json").read_text())
    return {"pid": record["writer_process"]["pid"], "number": record["writer"]}


def members(folder: Path) -> set[int]:
    """The processes that hold a share of the run folder's lease."""
    wanted = str(folder / ".lease" / "members.lock")
    return {int(name) for name in os.listdir("/proc") if name.isdigit() and _holds(name, wanted)}


def _holds(process: str, wanted: str) -> bool:
    """Whether a process has a file open; it may end, or close one, while one looks."""
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{process}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{process}/fd/{name}") == wanted:
                    return True
    return False


# --- runs as forks ----------------------------------------------------------------------------


class Nursery:
    """A process that has imported the job; each `start` forks one run of it."""

    def __init__(self, cache: Path, log: Path) -> None:
        self.log = log
        faults = {"LD_PRELOAD": str(preload.library())} if shutil.which("gcc") else {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.jobs.pggan_runs"],
            cwd=ROOT,
            env={**environment(cache), **faults},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(
        self, folder: Path, *more: str, fault: Sequence[Any] | None = None, patch: str = ""
    ) -> int:
        """Starts a run in `folder`; its process id. `fault`: prefix, number and action."""
        assert self._process.stdin is not None
        task = {"argv": arguments(folder, *more), "fault": fault, "patch": patch}
        print(json.dumps({**task, "log": str(self.log)}), file=self._process.stdin, flush=True)
        pid = int(self._answer())
        assert pid > 1, f"the nursery must answer with a process id, got {pid}"
        return pid

    def wait(self) -> int:
        """The exit code of the run, minus the signal that ended it."""
        return int(self._answer())

    def run(self, folder: Path, *more: str, **named: Any) -> int:
        """Runs to the end; the exit code."""
        self.start(folder, *more, **named)
        return self.wait()

    def run_killed_after(self, delay_s: float, folder: Path, *more: str, **named: Any) -> bool:
        """Runs, kills after `delay_s` seconds; whether the kill met it alive."""
        pid = self.start(folder, *more, **named)
        time.sleep(delay_s)
        # A run that has ended by itself is gone: its answer is still to be read.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the nursery has ended with {self._process.wait()}:\n{self.said()}"
        return line

    def said(self) -> str:
        """What the runs have printed."""
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""

    def __enter__(self) -> Nursery:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def kills(seed: int, clean_s: float, count: int) -> list[float]:
    """Instants drawn with `seed`, in seconds from the start."""
    draw = random.Random(seed)
    return [draw.uniform(0, clean_s) for _ in range(count)]


# --- what controls take away, and what tests watch --------------------------------------------


def _forget_position() -> None:
    """A stream that begins again after every resume."""
    from medray.stream.loader import Stream

    Stream.restore = lambda self, state: None  # type: ignore[method-assign]


def _forget_adam() -> None:
    """A resume that brings back the weights, not the optimisers."""
    from medray.train.pggan import Pggan

    whole = Pggan.load_state_dict

    def without(self: Any, state: dict[str, Any]) -> None:
        whole(self, {n: t * 0 if n.startswith("adam") else t for n, t in state.items()})

    Pggan.load_state_dict = without  # type: ignore[method-assign]


def _keep_rows() -> None:
    """A resume that leaves the rows past its checkpoint."""
    from medray.rundir import RunDir

    RunDir.cut_metrics = lambda self, images: None  # type: ignore[method-assign]


def _die_at(images: str) -> None:
    """A run that is killed just before the step at so many images."""
    from medray.train.pggan import Pggan

    step = Pggan.step

    def dying(self: Any, batch: Any, seen: int) -> Any:
        if seen == int(images):
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch, seen)

    Pggan.step = dying  # type: ignore[method-assign]


def _lack_memory(group: str = "") -> None:
    """A run that asks for too much memory in the middle: torch refuses it.

    In a memory cgroup with a limit, the folder `group`, the kernel gives it and kills the process.
    """
    import torch

    from medray.train.pggan import Pggan

    step = Pggan.step

    def lacking(self: Any, batch: Any, seen: int) -> Any:
        if seen == TOTAL_IMAGES // 2 + BATCH:
            if group:
                Path(group, "cgroup.procs").write_text(str(os.getpid()))
            torch.ones(2**28 if group else 2**48)
        return step(self, batch, seen)

    Pggan.step = lacking  # type: ignore[method-assign]


def _record(folder: str) -> None:
    """Ranks that write down which image they were given, and a run that stops half-way."""
    from jobs import _pggan_run
    from tests.jobs import recording

    os.environ[recording.FOLDER] = folder
    _pggan_run.worker = recording.worker


def _note(folder: str) -> None:
    """Ranks that write down which image they were given, in any kind of worker."""
    from medray.train.pggan import Pggan
    from tests.jobs import recording

    step = Pggan.step

    def noted(self: Any, batch: Any, seen: int) -> Any:
        recording.note(Path(folder), self.context, batch)
        return step(self, batch, seen)

    Pggan.step = noted  # type: ignore[method-assign]


def _pace(step_s: str) -> None:
    """Steps that take so long at least, on any machine."""
    from medray.train.pggan import Pggan

    step = Pggan.step

    def slow(self: Any, batch: Any, seen: int) -> Any:
        time.sleep(float(step_s))
        return step(self, batch, seen)

    Pggan.step = slow  # type: ignore[method-assign]


def _hold(place: str) -> None:
    """Steps from IMAGES on (`IMAGES:FILE`) that wait for the file, or to be asked to stop.

    Until then the run goes on, however fast the machine: what is to meet it meets it.
    """
    from medray.train.pggan import Pggan

    images, _, file = place.partition(":")
    step = Pggan.step

    def held(self: Any, batch: Any, seen: int) -> Any:
        while seen >= int(images) and not (Path(file).exists() or self.context.stop_reason()):
            time.sleep(0.01)
        return step(self, batch, seen)

    Pggan.step = held  # type: ignore[method-assign]


def _hang_in_save(images: str) -> None:
    """A writer, the run's first, that stops for good half-way through saving a checkpoint."""
    from medray.checkpoints import Checkpoints

    is_there = Checkpoints._is_there

    def hanging(self: Any, saved: int, files: Any) -> bool:
        found = is_there(self, saved, files)
        if saved == int(images) and self.lease._writer == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        return found

    Checkpoints._is_there = hanging  # type: ignore[method-assign]


PATCHES: dict[str, Callable[..., None]] = {
    "hang_in_save": _hang_in_save,
    "hold": _hold,
    "forget_position": _forget_position,
    "forget_adam": _forget_adam,
    "keep_rows": _keep_rows,
    "die_at": _die_at,
    "lack_memory": _lack_memory,
    "record": _record,
    "note": _note,
    "pace": _pace,
}


def apply(patches: str) -> None:
    """Applies `NAME` or `NAME=ARGUMENT`, several joined by commas, to this process."""
    for patch in filter(None, patches.split(",")):
        name, _, argument = patch.partition("=")
        PATCHES[name](*filter(None, [argument]))


def _child(task: dict[str, Any]) -> int:
    os.setsid()
    output = os.open(task["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    apply(task["patch"])
    if task["fault"]:
        prefix, at, action = task["fault"]
        preload_arm(prefix, at, preload.ACTIONS[action])
    from jobs.pggan import main

    code = main(task["argv"])
    if task["fault"]:
        count = ctypes.CDLL(None).fault_operations
        count.restype = ctypes.c_uint64
        os.write(output, f"operations {count()}\n".encode())
    return code


def preload_arm(prefix: str, at: int, action: int) -> None:
    """Arms the faulty disk in this process."""
    faults = ctypes.CDLL(None)
    room = ctypes.c_uint64(preload.NO_LIMIT_BYTES)
    faults.fault_arm(prefix.encode(), ctypes.c_uint64(at), action, room, b"")


def serve() -> None:
    """Reads a task per line, answers with the child's process id and then with its exit code."""
    for name in IMPORTS:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            # _exit: a fork must not run what the parent registered for its own end.
            os._exit(_child(json.loads(line)))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
