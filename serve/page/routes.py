"""Serves the page's files, and nothing else: each is known by name when the service starts.

Their links are relative, so that they work under any prefix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources

from fastapi import APIRouter, Request, Response

from serve.problems import Problem, shown
from serve.services import Services

# Path -> title; the body and the script of a path have its name, of "" index.
PAGES = {
    "": "Synthetic medical images",
    "synthesis": "Synthesis",
    "classify": "Classify",
    "jobs": "Jobs",
    "studies": "Studies",
}
SHELL = "shell.html"
TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}


def files() -> dict[str, tuple[bytes, str]]:
    """Content and media type of every file of the page by name."""
    found = {}
    for entry in resources.files("serve.page").iterdir():
        extension = entry.name.rpartition(".")[2]
        if extension in TYPES:
            found[entry.name] = (entry.read_bytes(), TYPES[extension])
    return found


def page(path: str, known: Mapping[str, tuple[bytes, str]]) -> bytes:
    """The page at a path: its body in the shell that all have, notice and menu included."""
    name, text = path or "index", known[SHELL][0].decode()
    for other in PAGES:
        mark = ' aria-current="page"' if other == path else ""
        text = text.replace(f"{{at-{other or 'home'}}}", mark)
    body = known[f"{name}.html"][0].decode()
    return (
        text.replace("{title}", PAGES[path])
        .replace("{script}", name)
        .replace("{body}", body)
        .encode()
    )


def router(services: Services) -> APIRouter:
    """The pages, and `/static/NAME`."""
    made, known = APIRouter(include_in_schema=False), files()
    static = {name: of for name, of in known.items() if not name.endswith(".html")}

    def add(path: str) -> None:
        data = page(path, known)

        async def show(request: Request) -> Response:
            return answered(request, data, TYPES["html"])

        made.add_api_route(f"/{path}", show, methods=["GET", "HEAD"])

    for path in PAGES:
        add(path)

    @made.get("/static/{name}")
    async def file(request: Request, name: str) -> Response:
        if name not in static:
            raise Problem(404, "not_found", f"given: {shown(name)}; there is no such file")
        return answered(request, *static[name])

    return made


def answered(request: Request, data: bytes, media_type: str) -> Response:
    """A file, or 304 where the browser has it: asked for every time, sent when it changed."""
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {"cache-control": "no-cache", "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, 200, headers, media_type)
