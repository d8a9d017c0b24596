"""What the routes of models have in common: the model that is meant, refusals, files of a body."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from medray.errors import UsageError
from serve.problems import Problem, shown
from serve.services import Services
from serve.uploads import TAKEN, Caps, refusal

if TYPE_CHECKING:
    from fastapi import Request

    from serve.records import Kind, ModelInfo

NOTICE = "Research use only. Not for diagnosis."
MULTIPART = "multipart/form-data"
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
        return await _form(request, caps)
    if media_type not in MEDIA_TYPES:
        allowed = f"{', '.join(sorted(MEDIA_TYPES))}, {MULTIPART}"
        raise refusal(415, "media_type", "content-type", shown(stated), allowed)
    return [await request.body()]


async def _form(request: Request, caps: Caps) -> list[bytes]:
    # One more than allowed is read, so that the count of what was given can be said.
    try:
        form = await request.form(max_files=caps.files + 1, max_fields=8)
    except HTTPException as error:
        # The library says in words what it could not read, and quotes nothing.
        given = f"a form that cannot be read: {error.detail}"
        allowed = f"{MULTIPART} of 1 to {caps.files} files"
        status = 413 if "Too many" in str(error.detail) else 400
        raise refusal(status, "form", "form", given, allowed) from None
    try:
        files = []
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                given = f"field {shown(name)} without a file name"
                raise refusal(422, "form", "form", given, "files alone")
            files.append(await value.read())
        return files
    finally:
        await form.close()
