#!/usr/bin/env python3
"""Makes one image of an archive again: medray regenerate ARCHIVE ADDRESS --out FILE

The generator is taken from where it was when the archive was made, or from --generator.
"""

from __future__ import annotations

import sys

from pydantic import Field

from medray.config import JobConfig, Location
from medray.job import job


class RegenerateJob(JobConfig):
    """Which image of which archive, and where to."""

    archive: Location = Field(
        description="folder or URL of the archive", json_schema_extra={"metavar": "URL"}
    )
    address: str = Field(description="mr1:GENERATOR:LATENTS:SEED:INDEX")
    out: Location = Field(
        description="file to write: .png, .npy or .dcm", json_schema_extra={"metavar": "FILE"}
    )
    generator: Location | None = Field(None, description="where the generator is now")
    latents: Location | None = Field(None, description="where the latents are now")
    classifier: Location | None = Field(None, description="where the classifier is now")
    gate: Location | None = Field(None, description="where the gate is now")


def run(config: RegenerateJob) -> None:
    """Makes the image."""
    from jobs import _archive_run as archive_run

    archive_run.regenerate(config)


main = job(RegenerateJob, run)

if __name__ == "__main__":
    sys.exit(main())
