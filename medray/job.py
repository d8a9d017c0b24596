"""What every job does alike: parse, log, run, end with the right exit code or a readable error.

A job script is a configuration class, a `run(config)` and one line: `main = job(Config, run)`.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Literal, Protocol, TypeVar

from pydantic import Field, model_validator

from medray import log
from medray.config import SUBMIT_DIR, JobConfig, Location, parse
from medray.errors import MedrayError, UsageError, of_machine

EXIT_LINE = "medray-exit:"
J = TypeVar("J", bound=JobConfig)
Split = Literal["train", "val", "test"]


class RunJob(JobConfig):
    """A job that trains: its results lie in a run folder."""

    run_dir: Location | None = Field(
        None, description="exactly this folder or URL; without it a numbered one under runs/"
    )
    resume: bool = Field(False, description="go on where the run folder's newest checkpoint is")
    init_from: Location | None = Field(
        None, description="start with the weights of this run or model folder (weights only)"
    )
    overwrite: bool = Field(False, description="empty the run folder first")

    @model_validator(mode="after")
    def _one_way_in(self) -> RunJob:
        ways = [n for n in ("resume", "init_from", "overwrite") if getattr(self, n)]
        if "resume" in ways and len(ways) > 1:
            other = ways[-1].replace("_", "-")
            raise ValueError(f"--resume restores everything: it does not go with --{other}")
        return self


class TrainJob(RunJob):
    """What runs of every network take: on whom, how often what is due, what is kept."""

    split: Split = Field("train", description="split to train on")
    fraction: float = Field(
        1.0, gt=0, le=1, description="share of the patients whose labels are used, class by class"
    )
    fraction_seed: int = Field(0, ge=0, lt=2**63, description="which patients those are")
    cache_dir: Location | None = Field(
        None, description="where remote shards and phantoms are kept"
    )
    threads_per_worker: int | None = Field(
        None, ge=1, description="torch threads of each worker (auto: cores / workers)"
    )
    log_images: int | None = Field(None, ge=1, description="images between rows of metrics.jsonl")
    snapshot_images: int | None = Field(None, ge=1, description="images between validations")
    checkpoint_images: int | None = Field(None, ge=1, description="images between checkpoints")
    keep_last: int = Field(2, ge=1, description="newest checkpoints kept")
    keep_best: int = Field(1, ge=0, description="best checkpoints kept, by validation score")


class ImagesJob(TrainJob):
    """A run on images, data-parallel."""

    data: tuple[Location, ...] = Field(
        (),
        description="sets of shards (folder or URL); none: phantoms",
        json_schema_extra={"metavar": "URL"},
    )
    phantoms: Literal["chest", "brain", "lung"] = Field(
        "chest", description="phantoms where --data is not given"
    )
    phantom_images: int = Field(2000, ge=16, description="number of phantoms, all splits together")
    on_error: Literal["raise", "skip"] = Field("raise", description="what a damaged sample does")
    loader_threads: int = Field(2, ge=1, description="threads that read and decode, per worker")
    backend: Literal["ray", "torchrun", "local"] = Field(
        "ray", description="who starts the workers"
    )
    workers: int = Field(1, ge=1, description="data-parallel workers (ranks)")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs of each worker")
    cpus_per_worker: float = Field(1, gt=0, description="CPUs of each worker, for Ray's placement")
    max_failures: int = Field(3, ge=0, description="restarts of the workers before giving up")


class JudgedJob(ImagesJob):
    """A run whose weights are chosen by patients that it did not train on."""

    validation_split: Split = Field("val", description="split that chooses the weights")
    evaluate_split: Literal["val", "test"] = Field(
        "val", description="test: the test split is read as well, once, at the end"
    )
    patients: Literal["all", "half-a", "half-b"] = Field(
        "all", description="patients to train and validate on; the halves share none"
    )
    exclude_patients: Location | None = Field(
        None,
        description="keyed patient hashes, one a line: left out of training and validation",
        json_schema_extra={"metavar": "FILE"},
    )
    validation_patients: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the patients to train on who validate instead; --validation-split is "
        "not read then",
    )
    interval_draws: int = Field(1000, ge=20, description="draws of the bootstrap over patients")

    def check_splits(self) -> None:
        """ValueError where training, validation and test would share a split."""
        splits = [self.split]
        if self.validation_patients is None:
            splits.append(self.validation_split)
        if self.evaluate_split == "test":
            splits.append("test")
        if len(set(splits)) < len(splits):
            raise ValueError(
                "training, validation and test need a split each, got "
                f"{', '.join(splits)} (--split, --validation-split, --evaluate-split)"
            )


class OutJob(JobConfig):
    """A job that makes a set or a table: run again with the same plan, it goes on."""

    out: Location = Field(
        description="folder or URL for the result", json_schema_extra={"metavar": "URL"}
    )
    overwrite: bool = Field(False, description="remove what is there first")


class Main(Protocol):
    """A job script's `main`: arguments (default: the command line's) to exit code."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def job(config_class: type[J], run: Callable[[J], None]) -> Main:
    """The `main` of a job script."""

    def main(argv: Sequence[str] | None = None) -> int:
        arguments = sys.argv[1:] if argv is None else argv
        module = sys.modules[run.__module__]
        script = Path(module.__file__ or "job").stem
        code = _guarded(config_class, run, arguments, script, module.__doc__ or "")
        if SUBMIT_DIR in os.environ:
            # Ray reports any failure as 1; `medray submit` reads the true code from here.
            print(f"{EXIT_LINE} {code}", file=sys.stderr, flush=True)
        return code

    return main


def _guarded(
    config_class: type[J], run: Callable[[J], None], argv: Sequence[str], script: str, about: str
) -> int:
    debug = "--debug" in argv
    try:
        config = parse(config_class, argv, prog=f"medray {script}", description=about)
        level = "warning" if config.quiet else "debug" if config.verbose else "info"
        log.setup(json_lines=config.json_lines, level=level)
        signal.signal(signal.SIGTERM, _on_sigterm)
        run(config)
        return 0
    except MedrayError as error:
        return _told(error, debug)
    except KeyboardInterrupt:
        log.error("interrupted", "interrupted; the same command goes on")
        return 130
    except Exception as error:
        known = of_machine(error)
        return _told(known, debug) if known else _unexpected(error, script, debug)


def _told(error: MedrayError, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    name = "usage" if isinstance(error, UsageError) else "failed"
    say = log.warn if error.exit_code == 75 else log.error
    say(name, str(error), exit_code=error.exit_code)
    return error.exit_code


def _unexpected(error: Exception, script: str, debug: bool) -> int:
    text = traceback.format_exc()
    if debug:
        print(text, file=sys.stderr)
        place = ""
    else:
        with tempfile.NamedTemporaryFile(
            "w", prefix=f"medray-{script}-", suffix=".log", delete=False
        ) as file:
            file.write(text)
        place = f"; the traceback is in {file.name} (--debug shows it)"
    log.error("unexpected", f"{type(error).__name__}: {error}{place}", exit_code=1)
    return 1


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    raise SystemExit(143)
