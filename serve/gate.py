"""The application: routes, errors as problems, OpenAPI; the same with Ray and without."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from serve import routes
from serve.front import Front
from serve.problems import MEDIA_TYPE, Problem, internal, problem_of, shown
from serve.services import Services

ABOUT = "Synthesis, classification and explanation. Research use only. Not for diagnosis."
CODES = {404: "not_found", 405: "method_not_allowed", 406: "not_acceptable", 415: "media_type"}
MOST_ERRORS = 8


def build(services: Services) -> FastAPI:
    """The application; `front(...)` of it is what is served."""
    args = services.args
    routers = [make_router(services) for make_router in routes.routers()]

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for router in routers:
                await stack.enter_async_context(router.lifespan_context(router))
            await services.start()
            stack.push_async_callback(services.close)
            yield

    app = FastAPI(
        title="medray",
        description=ABOUT,
        version="1",
        redirect_slashes=False,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        # Where a process has a tracer, what is asked would be told to it.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    for router in routers:
        # As they are, not as included ones: those are matched twice for every request.
        app.router.routes.extend(router.routes)
    _errors(app)
    app.openapi = _openapi(app, args.root_path)  # type: ignore[method-assign]
    return app


def front(services: Services) -> Front:
    """The whole service as one ASGI application."""
    return Front(build(services), services)


def _answer(request: Request, problem: Problem) -> Response:
    request_id = getattr(request.state, "request_id", None)
    headers = {"cache-control": "no-store", **problem.headers}
    return Response(problem.body(request_id), problem.status, headers, MEDIA_TYPE)


def _errors(app: FastAPI) -> None:
    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return _answer(request, error)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        cause = problem_of(error.__cause__)
        code = CODES.get(error.status_code, "request_wrong")
        headers = dict(error.headers or {})
        detail = f"{error.detail}: {request.method} {shown(request.url.path)}"
        return _answer(request, cause or Problem(error.status_code, code, detail, None, headers))

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _answer(request, invalid(error.errors()))

    async def on_any(request: Request, error: Exception) -> Response:
        # It is raised again behind this answer, to whoever logs it.
        return _answer(request, problem_of(error) or internal())

    app.add_exception_handler(Exception, on_any)
    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)


def invalid(errors: Any) -> Problem:
    """422 of pydantic's errors: where, what is wrong, what was given."""
    texts = []
    for error in list(errors)[:MOST_ERRORS]:
        where = ".".join(str(part) for part in error.get("loc", ()))
        given = error.get("input")
        # A whole body is not repeated: only what is wrong of it.
        what = f" (given: {shown(given)})" if not isinstance(given, dict | list) else ""
        texts.append(f"{shown(where, 120)[1:-1]}: {error.get('msg', 'not valid')}{what}")
    json_broken = any(error.get("type") == "json_invalid" for error in errors)
    if json_broken:
        return Problem(400, "json_invalid", "the body is not JSON: " + "; ".join(texts))
    return Problem(422, "invalid", "; ".join(texts), "/openapi.json has what is allowed")


def _openapi(app: FastAPI, root_path: str) -> Callable[[], dict[str, Any]]:
    """OpenAPI with the bearer key and the problems that any route answers."""

    def made() -> dict[str, Any]:
        if app.openapi_schema:
            return app.openapi_schema
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes,
            servers=[{"url": root_path or "/"}],
        )  # fmt: skip
        parts = schema.setdefault("components", {})
        parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        parts.setdefault("schemas", {})["Problem"] = PROBLEM
        for path, methods in schema["paths"].items():
            for operation in methods.values():
                _describe(operation, guarded=path.startswith("/v1/"))
        app.openapi_schema = schema
        return schema

    return made


def _describe(operation: dict[str, Any], guarded: bool) -> None:
    answers = operation.setdefault("responses", {})
    answers.pop("422", None)
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    answers["default"] = {"description": "What is wrong, and what is allowed", "content": content}
    for status, text in STATUSES.items():
        if guarded or status in ("404", "405"):
            answers.setdefault(status, {"description": text, "content": content})
    if guarded:
        operation.setdefault("security", [{"key": []}])


STATUSES = {
    "400": "The request cannot be read",
    "401": "No key, an unknown or an expired one",
    "403": "The key lacks the scope",
    "404": "There is no such thing, or it is another's",
    "405": "Another method is meant",
    "413": "The body is too large",
    "415": "The kind of file is not taken",
    "422": "A value is not allowed",
    "429": "The key's rate or quota is used up; Retry-After says until when",
    "503": "Too much to do, or still loading; Retry-After says when to ask again",
}
PROBLEM: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string"},
        "detail": {"type": "string"},
        "hint": {"type": "string"},
        "request_id": {"type": "string"},
    },
    "example": {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "code": "model_unknown",
        "detail": "given: model 'chset'; allowed: chest",
        "request_id": "1f0c9a77de-2b",
    },
}
