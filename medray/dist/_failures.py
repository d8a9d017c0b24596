"""Errors that cross a process border, as JSON: the same type and message on the other side."""

from __future__ import annotations

from typing import Any

from medray import errors

Record = dict[str, Any]
# In the trace of a rank whose peer went away, which only echoes the failure of another.
ECHO = "gloo/transport/tcp/pair.cc"


def known(error: BaseException) -> errors.MedrayError | None:
    """The error as one that a person can read, None where it is unexpected."""
    return error if isinstance(error, errors.MedrayError) else errors.of_machine(error)


def describe(error: errors.MedrayError, rank: int) -> Record:
    """The record of an error: its nearest type in `medray.errors`, message, fields and rank."""
    kind = next(cls for cls in type(error).__mro__ if getattr(errors, cls.__name__, None) is cls)
    fields = {key: str(value) for key, value in vars(error).items() if key != "message"}
    return {"type": kind.__name__, "message": error.message, "fields": fields, "rank": rank}


def rebuild(record: Record) -> errors.MedrayError:
    """The error that `describe` recorded."""
    error: errors.MedrayError = getattr(errors, record["type"])(record["message"])
    vars(error).update(record["fields"])
    return error


def unexpected(rank: int, text: str, attempts: int = 1) -> errors.MedrayError:
    """The error for a worker that failed with anything that is not a MedrayError."""
    last = text.strip().splitlines()[-1] if text.strip() else "no message"
    times = f" {attempts} times" if attempts > 1 else ""
    return errors.MedrayError(f"worker of rank {rank} failed{times}: {last}")
