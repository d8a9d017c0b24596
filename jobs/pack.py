#!/usr/bin/env python3
"""Packs images (a CSV, a folder per class, a tree of DICOM) into shards, de-identified, by patient.

With --clips it packs volumes and series instead: frames in order, several findings a clip.

Run again after an interruption, it goes on; the same files and flags give the same bytes whatever
the number of workers. Files that cannot be packed go to rejected.csv, beside the index.
"""

from __future__ import annotations

import sys

from medray.job import OutJob, job
from medray.pack.config import PackConfig


class PackJob(OutJob, PackConfig):
    """A pack: what to read, where to write, what becomes of the pixels."""


def run(config: PackJob) -> None:
    """Packs as the configuration says."""
    from medray.pack.pack import Job, pack

    job_of = Job(config.out, config.seed, config.overwrite, config.dry_run)
    pack(PackConfig(**{name: getattr(config, name) for name in PackConfig.model_fields}), job_of)


main = job(PackJob, run)

if __name__ == "__main__":
    sys.exit(main())
