"""The job's worker with a notebook: which image number was which sample; and a stop half-way."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from jobs import _pggan_run
from medray.dist import _stop
from medray.dist.context import Context
from medray.records import Batch
from medray.train.pggan import Pggan

FOLDER = "TEST_RECORDING_FOLDER"
STOP_AFTER = "stop_after"


def worker(context: Context, task: dict[str, Any]) -> dict[str, Any]:
    """Trains as the job does; a file in the folder says after how many images to stop."""
    folder = Path(os.environ[FOLDER])
    stop_after = int((folder / STOP_AFTER).read_text())
    plain = Pggan.step

    def step_noted(self: Pggan, batch: Batch, images: int) -> dict[str, Tensor]:
        note(folder, context, batch)
        if images >= stop_after:
            _stop.request("the test")
        return plain(self, batch, images)

    Pggan.step = step_noted  # type: ignore[method-assign]
    return _job_worker(context, task)


_job_worker = _pggan_run.worker


def note(folder: Path, context: Context, batch: Batch) -> None:
    """Appends to this rank's file which image number was which sample."""
    with (folder / f"{context.world}-{context.rank}.jsonl").open("a") as file:
        for offset, key in enumerate(batch.keys):
            file.write(json.dumps([batch.first_index + offset, key]) + "\n")


def noted(folder: Path) -> list[tuple[int, str]]:
    """Every image number with its sample, in order, all ranks and attempts together."""
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    return sorted((number, key) for number, key in map(json.loads, lines))
