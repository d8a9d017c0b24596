#!/usr/bin/env python3
"""Puts classifiers of clips of several planes or views together, an exam a patient.

Each run goes with the set at its place in --data. Weights are log(accuracy / (1 - accuracy)), or
those of the likeliest mixture, or equal, finding by finding: made and chosen on validation, as
thresholds are. Runs that saw a patient of the split that is judged are refused.
"""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import Field, model_validator

from medray.config import Location
from medray.job import OutJob, job


class EnsembleJob(OutJob):
    """Which classifiers, on which sets."""

    runs: tuple[Location, ...] = Field(
        description="runs of classify --clips", json_schema_extra={"metavar": "RUN"}
    )
    data: tuple[Location, ...] = Field(
        description="sets of clips, one for each run", json_schema_extra={"metavar": "URL"}
    )
    evaluate_split: Literal["val", "test"] = Field(
        "test", description="split that is judged; weights are made on val alone"
    )
    interval_draws: int = Field(1000, ge=20, description="draws of the bootstrap over patients")
    cache_dir: Location | None = Field(None, description="where remote shards are kept")

    @model_validator(mode="after")
    def _pairs(self) -> EnsembleJob:
        if not self.runs or len(self.runs) != len(self.data):
            raise ValueError(
                f"a set for each run is needed, got {len(self.runs)} runs, {len(self.data)} sets"
            )
        return self


def run(config: EnsembleJob) -> None:
    """Weighs, judges, writes; or with --dry-run says what would be."""
    from jobs import _ensemble_run as ensemble_run

    ensemble_run.ensemble(config)


main = job(EnsembleJob, run)

if __name__ == "__main__":
    sys.exit(main())
