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
from typing import Protocol, TypeVar

from pydantic import Field, model_validator

from medray import log
from medray.config import SUBMIT_DIR, JobConfig, Location, parse
from medray.errors import MedrayError, UsageError, of_machine

EXIT_LINE = "medray-exit:"
J = TypeVar("J", bound=JobConfig)


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
