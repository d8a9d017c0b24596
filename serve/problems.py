"""Errors as `application/problem+json` (RFC 9457): what, what was given, what is allowed.

Every handler of the gate ends here, so no answer carries a traceback.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from medray.errors import OutOfMemory, ResourceError, of_machine

MEDIA_TYPE = "application/problem+json"
# A full disk or memory is seldom mended sooner.
LACKING_S = 30


class Problem(Exception):
    """An error that goes to the caller: HTTP status, stable code, detail, hint, headers."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        hint: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.hint = status, code, detail, hint
        self.headers = dict(headers or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return (Problem, (self.status, self.code, self.detail, self.hint, self.headers))

    @property
    def text(self) -> str:
        """What a person who started the service reads."""
        return f"{self.detail}\n  fix: {self.hint}" if self.hint else self.detail

    def body(self, request_id: str | None = None) -> bytes:
        """The JSON text."""
        fields: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if self.hint:
            fields["hint"] = self.hint
        if request_id:
            fields["request_id"] = request_id
        # ASCII, lone surrogates included: what a caller sent must not break the answer.
        return json.dumps(fields).encode("ascii")


def too_many(code: str, detail: str, retry_after_s: float, hint: str | None = None) -> Problem:
    """429: this caller's allowance is used up."""
    return Problem(429, code, detail, hint, retry_after(retry_after_s))


def busy(code: str, detail: str, retry_after_s: float = 1.0, hint: str | None = None) -> Problem:
    """503: whoever asks, not now."""
    return Problem(503, code, detail, hint, retry_after(retry_after_s))


def internal() -> Problem:
    """500: nothing of what happened is told but under which id it is in the log."""
    text = "an unexpected error; it is in the log under this request_id"
    return Problem(500, "internal", text)


def retry_after(seconds: float) -> dict[str, str]:
    """The Retry-After header: whole seconds, at least one."""
    return {"retry-after": str(max(1, -int(-seconds // 1)))}


def shown(value: object, limit: int = 80) -> str:
    """A value given by a caller, as it may stand in an error: short, printable, quoted."""
    text = ascii(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def problem_of(error: Any) -> Problem | None:
    """The Problem that an error is or was caused by, through Ray's wrapping; else None.

    What the machine or a store refuses (a full disk, memory) passes: 503, without the place.
    """
    seen = 0
    while error is not None and seen < 8:
        if type(error) is Problem:
            return error
        known = error if isinstance(error, ResourceError) else of_machine(error)
        if isinstance(known, OutOfMemory):
            return busy("memory", "the service has not the memory for that now", LACKING_S)
        if known is not None:
            return busy("storage", "the service cannot keep or read what that needs", LACKING_S)
        error, seen = getattr(error, "cause", None) or error.__cause__, seen + 1
    return None
