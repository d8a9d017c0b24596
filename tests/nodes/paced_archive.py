"""jobs/archive.py whose shards take so long at least: on any machine a fault meets it at work.

python -m tests.nodes.paced_archive SECONDS FLAGS...
"""

from __future__ import annotations

import sys
import time
from typing import Any

from jobs import _archive_run as archive_run
from jobs import archive
from medray.archive.worker import Worker, make_shard


class Paced:
    """`make_shard`, later."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, worker: Worker, number: int) -> dict[str, Any]:
        time.sleep(self.seconds)
        return make_shard(worker, number)


def main(seconds: str, argv: list[str]) -> int:
    """The job's main."""
    from tests.nodes import paced_archive

    # By its module's name, under which the workers import it.
    archive_run.make_shard = paced_archive.Paced(float(seconds))
    return archive.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
