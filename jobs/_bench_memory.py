"""The row `memory_estimate`: what a dry run says of a worker's peak memory against a real worker's.

Each round takes the next of `SETTINGS`, so seven rounds are seven settings and none is fitted to.
The measured side is the job itself in a fresh process: stream, growth, penalty, pictures with their
score, checkpoint and report. Both sides are in GiB, so the ratio is the estimate over the measured.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from jobs.pggan import PgganJob
from medray import log

ROWS = ("memory_estimate",)
Case = tuple[str, str, float, Callable[[], float], Callable[[], float], Callable[[], None]]


@dataclass(frozen=True)
class Setting:
    """A run at a quarter of the published width."""

    px: int
    batch: int
    loss: str
    precision: str

    def job(self, run_dir: str | None = None) -> PgganJob:
        """Two steps at half the resolution, two of fading, two at the final one."""
        return PgganJob.model_validate(
            {
                "final_px": self.px,
                "start_px": self.px // 2,
                "total_images": 6 * self.batch,
                "fade_images": 2 * self.batch,
                "stable_images": 2 * self.batch,
                "snapshot_images": 6 * self.batch,
                "checkpoint_images": 6 * self.batch,
                "log_images": 2 * self.batch,
                "fmap_base": 2048,
                "fmap_max": 128,
                "batch": self.batch,
                "loss": self.loss,
                "r1_every": 2,
                "precision": self.precision,
                "phantom_images": 256,
                "backend": "local",
                "threads_per_worker": 1,
                "run_dir": run_dir,
            }
        )


SETTINGS = (
    Setting(32, 32, "r1", "fp32"),
    Setting(64, 8, "wgan-gp", "fp32"),
    Setting(64, 32, "r1", "bf16"),
    Setting(32, 32, "wgan-gp", "bf16"),
    Setting(64, 8, "r1", "fp32"),
    Setting(64, 32, "wgan-gp", "fp32"),
    Setting(64, 8, "r1", "bf16"),
)


def rows(rounds: int) -> Iterator[Case]:
    """The one row; a round is the next setting."""
    ours, other = itertools.cycle(SETTINGS), itertools.cycle(SETTINGS)
    yield (
        "memory_estimate",
        "measured peak of the worker",
        1.0,
        lambda: estimated_gib(next(ours)),
        lambda: measured_gib(next(other)),
        lambda: None,
    )


def estimated_gib(setting: Setting) -> float:
    """The dry run's figure, without the timing of steps."""
    from jobs import _pggan_estimate

    return _pggan_estimate.make(setting.job(), budget_s=0.0).memory.peak / 2**30


def measured_gib(setting: Setting) -> float:
    """Peak of a process that is the worker, from start to end."""
    with tempfile.TemporaryDirectory() as folder:
        config = setting.job(run_dir=f"{folder}/run").model_dump(mode="json")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MEDRAY_CACHE_DIR": f"{folder}/cache",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        done = subprocess.run(
            [sys.executable, "-m", "jobs._bench_memory"],
            input=json.dumps(config),
            text=True,
            stdout=subprocess.PIPE,
            env=environment,
        )
    assert done.returncode == 0, f"the run ended with code {done.returncode}"
    peak_gib = json.loads(done.stdout.splitlines()[-1]) / 2**30
    log.event("memory", f"{setting}: measured {peak_gib:.3f} GiB", peak_gib=peak_gib)
    return float(peak_gib)


def train(config: dict[str, Any]) -> int:
    """Trains as the job does, in this process; its peak in bytes."""
    from jobs import _pggan_probe, _pggan_run

    log.setup(level="warning")
    _pggan_run.train(PgganJob.model_validate(config))
    return _pggan_probe.peak_bytes()


if __name__ == "__main__":
    print(train(json.load(sys.stdin)))
