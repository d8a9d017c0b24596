"""jobs/pggan.py with something of `pggan_runs.PATCHES` taken away in its workers on Ray.

python -m tests.jobs.patched_workers PATCHES FLAGS...
"""

from __future__ import annotations

import sys
from typing import Any

from jobs import _pggan_run, _training
from medray.dist.context import Context
from tests.jobs import pggan_runs

PATCH = "patch"
_job_task, _job_worker = _training.task_of, _pggan_run.worker


def worker(context: Context, task: dict[str, Any]) -> dict[str, Any]:
    """The job's worker, patched."""
    pggan_runs.apply(task.pop(PATCH))
    return _job_worker(context, task)


def main(patches: str, argv: list[str]) -> int:
    """The job's main, whose workers are patched; the driver is as it is."""
    from jobs.pggan import main
    from tests.jobs import patched_workers

    def task(*arguments: Any) -> dict[str, Any]:
        return {**_job_task(*arguments), PATCH: patches}

    _training.task_of = task
    # By its module's name, under which the workers import it.
    _pggan_run.worker = patched_workers.worker
    return main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
