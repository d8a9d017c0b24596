"""What the routes of models have in common: the model that is meant, refusals, files of a body."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from medray.errors import UsageError
from serve.problems import Problem, shown
from serve.services import Services
from serve.uploads import TAKEN, Caps, refusal

if TYPE_CHECKING:
    from fastapi import Request

    from serve.records import Kind, ModelInfo

NOTICE = "Research use only. Not for diagnosis."
MULTIPART = "multipart/form-data"
MOST_HEAD_BYTES = 8192
MEDIA_TYPES = frozenset(
    (
        "application/octet-stream application/dicom application/x-npy application/gzip "
        "application/x-gzip application/x-nifti image/png image/jpeg image/jpg image/nii "
        "application/vnd.unknown.nifti-1"
    ).split()
)
# What every upload route says of its body.
BODY = {
    "requestBody": {
        "required": True,
        "description": f"One file ({TAKEN}; its content says which), or a form of many files.",
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            MULTIPART: {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                        }
                    },
                    "required": ["file"],
                }
            },
        },
    }
}


def model_of(services: Services, kind: Kind, name: str | None) -> ModelInfo:
    """The model of a name, or of none where there is one alone; Problem 404 says which there are.

    Of a name with two versions it is the present one.
    """
    known = {info.name: info for info in reversed(services.models()) if info.kind == kind}
    if name is None and len(known) == 1:
        return next(iter(known.values()))
    if name is None or name not in known:
        names = ", ".join(sorted(known)) or f"none, no {kind} is loaded"
        given = "no model" if name is None else f"model {shown(name)}"
        detail = f"given: {given}; allowed: {names}"
        raise Problem(404, "model_unknown", detail, "GET /v1/models lists them")
    return known[name]


@contextlib.contextmanager
def paid_back(services: Services, key: str, images: int) -> Iterator[None]:
    """What is counted of a key's day is given back where the work on it fails."""
    try:
        yield
    except BaseException:
        services.limits.returned(key, images)
        raise


def refused(field: str, error: UsageError) -> Problem:
    """422 of a value that the model does not take."""
    return Problem(422, "invalid", f"{field}: {error.message}", error.hint or None)


def caps_of(services: Services) -> Caps:
    """What an upload may be here."""
    return Caps(pixels=services.args.pixels, files=services.args.uploads)


async def files_of(request: Request, caps: Caps) -> list[bytes]:
    """The files of a body: all of it, or each file of a form. Problem 4xx for another body."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        given = f"content-encoding {shown(encoding)}"
        raise refusal(415, "encoding", "compressed bodies are not taken", given, "identity")
    stated = request.headers.get("content-type", "application/octet-stream")
    media_type = stated.partition(";")[0].strip().lower()
    if media_type == MULTIPART:
        boundary = boundary_of(stated)
        if boundary is None:
            raise _form_refused(400, f"content-type {shown(stated)}, without a boundary", caps)
        return form_files(await request.body(), boundary, caps)
    if media_type not in MEDIA_TYPES:
        allowed = f"{', '.join(sorted(MEDIA_TYPES))}, {MULTIPART}"
        raise refusal(415, "media_type", "content-type", shown(stated), allowed)
    return [await request.body()]


def form_files(body: bytes, boundary: bytes, caps: Caps) -> list[bytes]:
    """The files of a form's body (RFC 7578); Problem 4xx for one that is cut, or holds too much.

    The body is in memory already, and capped: its parts are pieces of it, nothing is copied twice.
    """
    opening = b"--" + boundary
    first = body.find(opening)
    if first not in (0, body.find(b"\r\n" + opening) + 2):
        raise _form_refused(400, "no part with the boundary that the content-type names", caps)
    pieces = body[first + len(opening) :].split(b"\r\n" + opening, caps.files + 1)
    if len(pieces) > caps.files + 1:
        raise _form_refused(413, f"more than {caps.files} parts", caps)
    if not pieces[-1].startswith(b"--"):
        raise _form_refused(400, "a form without its end", caps)
    if len(pieces) == 1:
        raise _form_refused(400, "a form without parts", caps)
    return [_part(piece, number, caps) for number, piece in enumerate(pieces[:-1])]


def _part(piece: bytes, number: int, caps: Caps) -> bytes:
    head, gap, data = piece.partition(b"\r\n\r\n")
    if not gap or not head.startswith(b"\r\n") or len(head) > MOST_HEAD_BYTES:
        raise _form_refused(400, f"part {number} without proper headers", caps)
    lines = head[2:].lower().split(b"\r\n")
    stated = [line for line in lines if line.startswith(b"content-disposition:")]
    if len(stated) != 1 or b"form-data" not in stated[0]:
        raise _form_refused(400, f"part {number} without Content-Disposition: form-data", caps)
    if not re.search(rb";\s*filename\*?=", stated[0]):
        raise _form_refused(422, f"part {number}, a field without a file name", caps)
    if any(line.startswith(b"content-transfer-encoding:") for line in lines):
        raise _form_refused(415, f"part {number} with a transfer encoding", caps)
    return data


def _form_refused(status: int, given: str, caps: Caps) -> Problem:
    return refusal(status, "form", "form", given, f"{MULTIPART} of 1 to {caps.files} files")


def boundary_of(content_type: str) -> bytes | None:
    """The boundary of a form's content type; None where it names no proper one."""
    found = re.search(r';\s*boundary=(?:"([^"\r\n]{1,70})"|([^\s";,]{1,70}))', content_type, re.I)
    text = (found[1] or found[2]) if found else ""
    return text.encode("latin-1", "replace") if text else None
