"""What a run tells Prometheus, through Ray's own agents, which put `ray_` before each name.

Rank 0 of a training tells its rows, the driver of a pool its tasks. A label holds the name of a
job, a stage or a loss: never a path, a patient or a sample.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

Report = Callable[[dict[str, Any]], None]

# name: (kind, what it is, labels)
TABLE: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "medray_train_images_total": ("Counter", "Images trained on.", ("job",)),
    "medray_train_images_per_second": ("Gauge", "Images a second since the last row.", ("job",)),
    "medray_train_data_wait_share": ("Gauge", "Share of the time spent on data.", ("job",)),
    "medray_train_loss": ("Gauge", "Mean loss since the last row.", ("job", "name")),
    "medray_train_peak_memory_gib": ("Gauge", "Peak memory of rank 0 in GiB.", ("job",)),
    "medray_pool_tasks_total": (
        "Counter",
        "Tasks (shards, chunks) by their end.",
        ("stage", "state"),
    ),
    "medray_pool_tasks_waiting": ("Gauge", "Tasks that no worker has begun.", ("stage",)),
}
ROW = {
    "perf/images_per_s": "medray_train_images_per_second",
    "perf/data_wait_share": "medray_train_data_wait_share",
    "mem/peak_gib": "medray_train_peak_memory_gib",
}
LOSS = "train/loss"


@functools.cache
def _metric(name: str) -> Any:
    """The metric of that name in this process; made when it is first told."""
    from ray.util import metrics

    kind, about, labels = TABLE[name]
    return getattr(metrics, kind)(name, description=about, tag_keys=labels)


def teller(job: str) -> Report:
    """What tells rank 0's rows; `job` is the run's kind, such as pggan."""
    seen = 0

    def tell(row: dict[str, Any]) -> None:
        nonlocal seen
        images = int(row.get("images", seen))
        # A resumed run begins with what it has seen: a rate over it is right from the second row.
        if images > seen:
            _metric("medray_train_images_total").inc(images - seen, tags={"job": job})
            seen = images
        for key, name in ROW.items():
            if key in row:
                _metric(name).set(row[key], tags={"job": job})
        for key, value in row.items():
            if key.startswith(LOSS):
                loss = key.removeprefix("train/")
                _metric("medray_train_loss").set(value, tags={"job": job, "name": loss})

    return tell


def task(work: Callable[..., Any], state: str, waiting: int) -> None:
    """Tells that a task of a pool ended `done` or `lost`, and how many wait."""
    stage = _stage(work)
    _metric("medray_pool_tasks_total").inc(1, tags={"stage": stage, "state": state})
    _metric("medray_pool_tasks_waiting").set(waiting, tags={"stage": stage})


def _stage(work: Callable[..., Any]) -> str:
    """The part of medray that a function belongs to: archive, pack, sample, ..."""
    parts = work.__module__.split(".")
    return parts[1] if parts[0] in ("medray", "jobs") and len(parts) > 1 else parts[0]
