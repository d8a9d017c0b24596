"""The errors a person sees: what, what was given, what is allowed, and an exit code.

Exit codes: 0 done, 1 unexpected, 2 usage or configuration, 3 data, 4 environment or resources,
5 a quality gate failed, 75 stopped and resumable, 130 and 143 interrupted.
"""

from __future__ import annotations

import errno
import re


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


class OutOfMemory(ResourceError):
    """The memory of the machine or of its GPU is used up."""


# What the machine or its disks refuse whatever the program does.
_OF_THE_MACHINE = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)
    + (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)
)


# Errors of torch without a type of their own: of the host, of a context on a full GPU, of cuBLAS.
_LACKING = re.compile("DefaultCPUAllocator|CUDA error: out of memory|STATUS_ALLOC_FAILED")
# What torch puts before its account of an allocation that failed.
_FRAME = re.compile(r"^.*DefaultCPUAllocator: |^CUDA out of memory\. ")


def of_machine(error: BaseException | None) -> ResourceError | None:
    """The ResourceError that a full disk or memory stands for; None for other errors.

    Wherever one escapes (a job, a rank, an actor), so that each write need not be wrapped for it.
    """
    if _of_memory(error):
        # Of a GPU's text the first sentences: what was asked for, and what there is.
        told = ". ".join(_FRAME.sub("", str(error).split("\n")[0]).split(". ")[:2]).rstrip(".")
        return OutOfMemory(
            f"out of memory: {told}" if told else "out of memory",
            hint="take less at once (--images-at-once, smaller batches) or more memory; "
            "what was saved is kept, and the same command goes on",
        )
    if not isinstance(error, OSError) or error.errno not in _OF_THE_MACHINE:
        return None
    place = f" {error.filename}" if error.filename else ""
    return ResourceError(f"the machine refuses{place}: {error.strerror}")


def _of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out: Python, NumPy, CuPy, torch on a GPU, torch on a CPU.

    torch is known by its names: a command that does not need it does not import it for this.
    """
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return type(error).__name__ == "OutOfMemoryError" or bool(_LACKING.search(str(error)))


class GateError(MedrayError):
    """A quality gate that did not pass."""

    exit_code = 5


class Stopped(MedrayError):
    """Stopped on request with everything saved; the same command goes on."""

    exit_code = 75
