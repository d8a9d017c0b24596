#!/usr/bin/env python3
"""Compares encoders by classifiers of clips on each: same patients, same seeds, same budget.

Trains on all patients but those of --test-patients, at each fraction of labels and each seed, on
every encoder, frozen and fine-tuned, and leaves what each said of the test patients. An encoder
that saw one of them, or a label of the set, is refused. All fits share one process, and maps of a
frozen encoder are made once; run again after an interruption, it goes on.
"""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import Field, field_validator, model_validator

from medray.config import Location
from medray.job import OutJob, job


class TransferJob(OutJob):
    """Which encoders, on which clips, tested on whom."""

    data: Location = Field(
        description="set of clips (folder or URL)", json_schema_extra={"metavar": "URL"}
    )
    encoders: dict[str, str] = Field(
        description="name=RUN of every encoder; RUN may be the word random: other weights each seed"
    )
    test_patients: Location = Field(
        description="keyed patient hashes, one a line: tested on, never trained on",
        json_schema_extra={"metavar": "FILE"},
    )
    findings: tuple[str, ...] = Field((), description="only these findings (none: all)")
    fractions: tuple[float, ...] = Field((0.25, 0.5, 1.0), description="shares of the patients")
    seeds: int = Field(3, ge=1, description="fits of each kind, paired over encoders")
    modes: tuple[Literal["frozen", "tuned"], ...] = Field(
        ("frozen", "tuned"), description="encoders left as they are, or trained on"
    )
    pool: Literal["attention", "convlstm", "mean"] = Field(
        "attention", description="how the frames of a clip become one"
    )
    frames: int = Field(16, ge=1, description="frames of a clip, of a frozen encoder")
    size_px: int = Field(128, ge=32, description="size of frames, of a frozen encoder")
    clips_seen: int = Field(1500, ge=16, description="clips that each frozen fit sees")
    tuned_frames: int = Field(8, ge=1, description="frames of a clip, fine-tuned")
    tuned_px: int = Field(64, ge=32, description="size of frames, fine-tuned")
    tuned_clips_seen: int = Field(320, ge=16, description="clips that each fine-tuned fit sees")
    cache_dir: Location | None = Field(None, description="where remote shards are kept")

    @field_validator("fractions")
    @classmethod
    def _shares(cls, fractions: tuple[float, ...]) -> tuple[float, ...]:
        if not fractions or any(not 0 < share <= 1 for share in fractions):
            raise ValueError("shares of the patients lie above 0 and at 1 at most")
        return fractions

    @model_validator(mode="after")
    def _named(self) -> TransferJob:
        if wrong := [name for name in self.encoders if not name.replace("-", "").isalnum()]:
            raise ValueError(f"an encoder's name has letters, digits and -, got {wrong[0]!r}")
        return self


def run(config: TransferJob) -> None:
    """Fits what is not fitted yet; or with --dry-run says what that is."""
    from jobs import _transfer_run as transfer_run

    transfer_run.transfer(config)


main = job(TransferJob, run)

if __name__ == "__main__":
    sys.exit(main())
