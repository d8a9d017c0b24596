"""The errors a person sees: what, what was given, what is allowed, and an exit code.

Exit codes: 0 done, 1 unexpected, 2 usage or configuration, 3 data, 4 environment or resources,
5 a quality gate failed, 75 stopped and resumable, 130 and 143 interrupted.
"""

from __future__ import annotations

import errno


class MedrayError(Exception):
    """An error with a message for the user, a hint of what to do about it, and an exit code."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword arguments do not survive the default pickling between Ray's processes.
        return (_rebuild, (type(self), self.message, self.__dict__))


def _rebuild(kind: type[MedrayError], message: str, fields: dict[str, object]) -> MedrayError:
    error = kind(message)
    error.__dict__.update(fields)
    return error


class UsageError(MedrayError, ValueError):
    """A flag, a configuration or an argument that cannot be taken."""

    exit_code = 2


class DataError(MedrayError, ValueError):
    """Data that cannot be taken; `code` is stable (MR-Dnnn), `where` names file and place."""

    exit_code = 3

    def __init__(
        self, message: str, *, code: str = "MR-D000", where: str = "", hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.where = where

    def __str__(self) -> str:
        place = f"  {self.where}" if self.where else ""
        fix = f"\n        fix: {self.hint}" if self.hint else ""
        return f"{self.code} error  {self.message}{place}{fix}"


class ResourceError(MedrayError, RuntimeError):
    """Something that the machine, the cluster or a store lacks or refuses."""

    exit_code = 4


class StoreOutage(ResourceError):
    """An object store or web server that does not answer, or not with what was asked for.

    It may pass: what is there is neither absent nor damaged, and the same command goes on.
    """


# What the machine or its disks refuse whatever the program does.
_OF_THE_MACHINE = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)
    + (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)
)


def of_machine(error: BaseException | None) -> ResourceError | None:
    """The ResourceError that an OSError such as of a full disk stands for; None for others.

    Wherever one escapes (a job, a rank, an actor), so that each write need not be wrapped for it.
    """
    if not isinstance(error, OSError) or error.errno not in _OF_THE_MACHINE:
        return None
    place = f" {error.filename}" if error.filename else ""
    return ResourceError(f"the machine refuses{place}: {error.strerror}")


class GateError(MedrayError):
    """A quality gate that did not pass."""

    exit_code = 5


class Stopped(MedrayError):
    """Stopped on request with everything saved; the same command goes on."""

    exit_code = 75
