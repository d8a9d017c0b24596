"""The `medray` command: jobs by name, and submit, local, verify, regenerate, doctor, top.

medray NAME ...            runs jobs/NAME.py here
medray submit NAME ...     runs it on a Ray cluster and ends with its own exit code
medray local NAME ...      starts a Ray on this machine for it, submits, and stops that Ray
medray verify SET          checks every digest of a set of shards
medray regenerate ARCHIVE ADDRESS --out FILE    makes one synthetic image again
medray doctor              what this machine has, what it lacks, and what to do about it
medray top RUN ...         how runs stand, live in the terminal (--once: printed once)
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from medray import __version__, log
from medray.config import SUBMIT_DIR
from medray.errors import DataError, MedrayError, UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    name, rest = arguments[0], arguments[1:]
    try:
        if name in COMMANDS:
            return COMMANDS[name](rest)
        return run_job(name, rest)
    except MedrayError as error:
        log.error("failed", str(error), exit_code=error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def job_names() -> dict[str, Path]:
    """The job scripts by name, private modules left out."""
    spec = importlib.util.find_spec("jobs")
    folders = list(spec.submodule_search_locations or []) if spec else []
    paths = [path for folder in folders for path in Path(folder).glob("*.py")]
    return {p.stem: p for p in sorted(paths) if not p.stem.startswith("_")}


def run_job(name: str, argv: Sequence[str]) -> int:
    """Runs jobs/NAME.py in this process."""
    if name not in job_names():
        known = ", ".join([*job_names(), *COMMANDS])
        raise UsageError(f"unknown command {name!r}; there are: {known}")
    module = importlib.import_module(f"jobs.{name}")
    return int(module.main(argv))


def _help() -> str:
    lines = [__doc__ or "", "jobs:"]
    for name, path in job_names().items():
        about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines.append(f"  {name:12s} {about.partition(chr(10))[0]}")
    return "\n".join([*lines, "", "medray NAME --help lists a job's flags."])


def _submit(argv: Sequence[str]) -> int:
    from medray import submit

    return submit.submit(_job_argument(argv), argv[1:])


def _local(argv: Sequence[str]) -> int:
    from medray import submit

    name = _job_argument(argv)
    os.environ.setdefault(SUBMIT_DIR, os.getcwd())
    return submit.local(name, argv[1:])


def _job_argument(argv: Sequence[str]) -> str:
    if not argv or argv[0] not in job_names():
        given = repr(argv[0]) if argv else "nothing"
        raise UsageError(
            f"give the name of a job, got {given}; there are: {', '.join(job_names())}"
        )
    return argv[0]


def _verify(argv: Sequence[str]) -> int:
    from medray import shards
    from medray.store import Store

    if len(argv) != 1:
        raise UsageError("usage: medray verify SET")
    found = shards.verify(Store(argv[0]))
    for error in found:
        log.error("damaged", str(error), code=error.code, where=error.where)
    if found:
        return DataError.exit_code
    log.event("verified", f"{argv[0]}: every digest agrees")
    return 0


def _regenerate(argv: Sequence[str]) -> int:
    """The job of that name; its two first arguments stand for --archive and --address."""
    if argv and argv[0].startswith("-"):
        return run_job("regenerate", argv)
    if len(argv) < 2:
        raise UsageError("usage: medray regenerate ARCHIVE ADDRESS --out FILE")
    return run_job("regenerate", ["--archive", argv[0], "--address", argv[1], *argv[2:]])


def _doctor(argv: Sequence[str]) -> int:
    from medray import doctor

    return doctor.main(argv)


def _top(argv: Sequence[str]) -> int:
    from medray import top

    return top.main(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "submit": _submit,
    "local": _local,
    "verify": _verify,
    "regenerate": _regenerate,
    "doctor": _doctor,
    "top": _top,
}

if __name__ == "__main__":
    sys.exit(main())
