"""Runs of jobs/classify.py to be killed: a process imports everything once and forks each run."""

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
from pathlib import Path

from tests.faults.kill import tree_sha256
from tests.jobs.pggan_runs import ROOT, environment

TOTAL_IMAGES = 96
SMALL = (
    *("--phantoms", "brain", "--phantom-images", "60", "--size-px", "16", "--width", "8"),
    *("--threads-per-worker", "1", "--batch", "8", "--total-images", f"{TOTAL_IMAGES}"),
    *("--log-images", "8", "--snapshot-images", "16", "--checkpoint-images", "16"),
    *("--backend", "local", "-q", "--interval-draws", "40"),
)

IMPORTS = (
    "jobs._classify_run jobs._classify_report medray.train.loop medray.train.validation "
    "medray.stream medray.phantoms medray.models.weights torch.utils.tensorboard.writer "
    "torch._dynamo matplotlib.backends.backend_agg matplotlib.figure"
).split()


def results(folder: Path) -> dict[str, str]:
    """What must not depend on kills: model, checkpoints, pictures; a manifest tells its start."""
    tops = ("checkpoints/", "model/", "confusion", "reliability", "mistakes", "DONE")
    found = tree_sha256(folder, lambda name: name.startswith(tops))
    return {name: digest for name, digest in found.items() if not name.endswith("manifest.json")}


def killed(folder: Path, cache: Path, *, kills: int, seed: int, more: tuple[str, ...] = ()) -> int:
    """Runs in `folder`, killed so many times at random, and then to the end; how often killed.

    A run that had ended before it was to be killed is thrown away and begun once more.
    """
    where = ("-m", "tests.jobs.classify_runs", str(folder), str(kills), str(seed))
    command = [sys.executable, *where, *more]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(cache), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return int(json.loads(done.stdout.splitlines()[-1])["met"])


def _fork(folder: Path, more: list[str]) -> int:
    child = os.fork()
    if child == 0:
        from jobs.classify import main

        os._exit(main([*SMALL, *more, "--resume", "--run-dir", str(folder)]))
    return child


def _serve(folder: Path, kills: int, seed: int, more: list[str]) -> int:
    for name in IMPORTS:
        importlib.import_module(name)
    draw, met = random.Random(seed), 0
    started_s = time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(_fork(Path(f"{folder}-clean"), more), 0)[1])
    longest_s = time.monotonic() - started_s
    while met < kills and code == 0:
        child = _fork(folder, more)
        time.sleep(draw.uniform(0.1, max(0.2, longest_s)))
        os.kill(child, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL:
            met += 1
        else:
            shutil.rmtree(folder)
            longest_s /= 2
    code = code or os.waitstatus_to_exitcode(os.waitpid(_fork(folder, more), 0)[1])
    print(json.dumps({"met": met}))
    return code


if __name__ == "__main__":
    sys.exit(_serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
