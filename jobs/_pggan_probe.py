"""Measures, in a process of its own, what cannot be reckoned: a worker's base, a step's time.

Started with `python -m jobs._pggan_probe`, a task as JSON on standard input, figures as JSON on
standard output. It trains on noise, writes nothing, and starts no Ray.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jobs.pggan import PgganJob

# What a worker has imported by its first picture and checkpoint.
MODULES = (
    "jobs._pggan_run",
    "medray.train.loop",
    "medray.train.pggan",
    "medray.train.snapshots",
    "medray.stream.loader",
    "medray.checkpoints",
    "torch.utils.tensorboard.writer",
)
TINY_BATCH = 4
TINY = {
    "final_px": 8,
    "start_px": 8,
    "fmap_base": 64,
    "fmap_max": 8,
    "latent_dims": 8,
    "batch": TINY_BATCH,
    "batch_by_px": {},
    "workers": 1,
    "images_at_once": None,
}
# Each resolution takes two steps of either kind: the first of each chooses kernels.
TURNS = 2


def measure(config: PgganJob, moments: list[dict[str, Any]], budget_s: float) -> dict[str, Any]:
    """Runs the probe: {"base_bytes", "seconds": {px: [with penalty, plain]}}.

    `moments` holds px, images, count (images of a rank) and flops, lowest px first; resolutions
    that would go beyond `budget_s` are left out.
    """
    task = {"config": config.model_dump(mode="json"), "moments": moments, "budget_s": budget_s}
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(config.threads_per_worker),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "jobs._pggan_probe"],
        input=json.dumps(task),
        text=True,
        stdout=subprocess.PIPE,
        env=environment,
    )
    if done.returncode:
        raise RuntimeError(f"the probe of a worker ended with code {done.returncode}")
    # DeepSpeed prints as it is imported: the figures are the last line.
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found["seconds"] = {int(px): pair for px, pair in found["seconds"].items()}
    return found


def peak_bytes() -> int:
    """Most memory this process has had.

    On Linux not from getrusage, which begins with the parent's peak at the time of the fork.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def main(task: dict[str, Any]) -> dict[str, Any]:
    """What `measure` returns, in this process."""
    config = PgganJob.model_validate(task["config"])
    modules = [*MODULES, *(["ray.train"] if config.backend == "ray" else [])]
    for name in [*modules, *(["deepspeed"] if config.engine == "deepspeed" else [])]:
        importlib.import_module(name)
    _draw_curves()
    tiny = config.model_copy(update=TINY | {"engine": "torch", "zero_stage": 0})
    Timed(tiny).seconds(0, TINY_BATCH)
    base = peak_bytes()
    return {"base_bytes": base, "seconds": _rates(config, task["moments"], task["budget_s"])}


def _draw_curves() -> None:
    from medray import report

    report.curves_png([{"images": n, "loss": float(n)} for n in range(3)], {"loss": ("loss",)})


class Timed:
    """Steps of the algorithm on noise, with the penalty or without, timed."""

    def __init__(self, config: PgganJob) -> None:
        import torch

        from medray.dist.context import Context
        from medray.train.pggan import Pggan

        class Told(Pggan):
            """The penalty is due when it is told so."""

            due = False

            def _r1_weight(self, images: int, batch_images: int, px: int) -> float:
                return float(self.due and self.config.loss == "r1")

        threads = config.threads_per_worker or 1
        alone = Context(0, 1, 0, torch.device("cpu"), threads_per_rank=threads)
        plain = config.model_copy(update={"engine": "torch", "zero_stage": 0})
        self.config, self.algorithm = config, Told(plain, alone)

    def seconds(self, images: int, count: int) -> tuple[float, float]:
        """Seconds of a step of `count` images at `images`: with the penalty, and plain."""
        import numpy as np

        from medray.records import Batch

        shape = (count, self.config.channels, self.config.final_px, self.config.final_px)
        noise_NCHW = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        labels_N = np.full(count, -1, np.int64)
        batch = Batch(("",) * count, noise_NCHW, labels_N, (), images)
        took = {True: 0.0, False: 0.0}
        for due in (True, False) * TURNS:
            self.algorithm.due = due
            start_s = time.perf_counter()
            self.algorithm.step(batch, images)
            took[due] = time.perf_counter() - start_s
        return took[True], took[False]


def _rates(
    config: PgganJob, moments: list[dict[str, Any]], budget_s: float
) -> dict[int, tuple[float, float]]:
    end_s = time.perf_counter() + budget_s
    found: dict[int, tuple[float, float]] = {}
    if not moments:
        return found
    timed = Timed(config)
    seconds_per_flop = 0.0
    for moment in moments:
        if time.perf_counter() + moment["flops"] * seconds_per_flop > end_s:
            break
        start_s = time.perf_counter()
        found[moment["px"]] = timed.seconds(moment["images"], moment["count"])
        seconds_per_flop = (time.perf_counter() - start_s) / moment["flops"]
    return found


if __name__ == "__main__":
    print(json.dumps(main(json.load(sys.stdin))))
