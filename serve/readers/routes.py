"""The reader studies over HTTP: readers by session, administrators by key.

A change by a reader needs the session's CSRF token beside the cookie, and no page of another
origin. Plain functions: they run in threads, the database may take its time.
"""

from __future__ import annotations

import hmac
import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from medray.evaluate.reader_report import FIGURES, IMRMC, PAGE, TABLE
from serve.keys import scope
from serve.problems import Problem, shown
from serve.readers.desk import Desk, Given, public
from serve.readers.office import Office, lines
from serve.readers.store import Reader, Session
from serve.services import Services

COOKIE, CSRF = "medray_reader", "x-csrf-token"
NAME = r"^\w[\w .'-]{0,63}$"
JSONL = "application/jsonl"
NO_STORE = {"cache-control": "no-store"}
KINDS = {
    "html": (PAGE, "text/html; charset=utf-8"),
    "json": (FIGURES, "application/json"),
    "csv": (TABLE, "text/csv; charset=utf-8"),
    "imrmc": (IMRMC, "text/plain; charset=utf-8"),
}


class Body(BaseModel):
    """A body: nothing that is not known."""

    model_config = ConfigDict(extra="forbid")


class Login(Body):
    """The token of a reader's link."""

    token: str = Field(min_length=1, max_length=200)


class Begin(Body):
    """Which set becomes a study."""

    study: str = Field(max_length=64, description="name of a folder below `studies`")


class Invite(Body):
    """A reader to be."""

    name: str = Field(pattern=NAME, description="shown in the report; no comma")
    days: float = Field(30, gt=0, le=366, description="how long the link works")


class Event(Body):
    """A pause begins or ends."""

    kind: Literal["pause", "resume"]


class Answered(Body):
    """One answer: `score` 1 (surely real) to 5 (surely synthetic), or `choice` of a pair."""

    item: str = Field(pattern="^[0-9a-f]{16}$")
    token: str = Field(
        pattern="^[A-Za-z0-9_-]{8,64}$", description="the page's own, once an answer"
    )
    score: int | None = Field(None, ge=1, le=5, strict=True)
    choice: Literal["left", "right"] | None = Field(None, description="which one is synthetic")
    label: str | None = Field(None, max_length=100)
    seconds: float | None = Field(None, ge=0, le=86_400, allow_inf_nan=False)
    hidden: bool = Field(False, strict=True, description="the page was hidden meanwhile")
    idle: bool = Field(False, strict=True, description="nothing moved for 30 s meanwhile")
    corrects: int | None = Field(None, ge=1, strict=True, description="id of the own answer")


def router(services: Services) -> APIRouter:
    """The routes of the readers and of the administrator."""
    args = services.args
    return of_desk(Desk(args.studies, args.database, args.state_dir), args.root_path)


def of_desk(desk: Desk, root_path: str = "") -> APIRouter:
    """The routes over a desk."""
    routes = APIRouter(prefix="/v1/studies", tags=["reader study"])
    _sessions(routes, desk, root_path)
    _reading(routes, desk)
    _administering(routes, Office(desk), root_path)
    return routes


def _same_origin(request: Request) -> None:
    """403 for a change that a page of another origin sends."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    other = origin is not None and origin.partition("://")[2] != request.headers.get("host", "")
    if other or site in ("cross-site", "same-site"):
        raise Problem(403, "origin_other", f"given: Origin {shown(origin)}; allowed: this one")


class Who:
    """Dependencies: the reader of the session, for reading and for changing."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def reads(self, request: Request) -> Reader:
        """The reader; 401 for none."""
        return self.desk.who(request.cookies.get(COOKIE))[1]

    def changes(self, request: Request) -> Reader:
        """The reader, whose page sent the session's CSRF token; 401, 403."""
        return self.session(request)[1]

    def session(self, request: Request) -> tuple[Session, Reader]:
        """The session too."""
        _same_origin(request)
        session, reader = self.desk.who(request.cookies.get(COOKIE))
        given = request.headers.get(CSRF, "")
        if not hmac.compare_digest(given.encode(), session.csrf.encode()):
            raise Problem(403, "csrf", "the change lacks the session's token", f"header {CSRF}")
        return session, reader


def _json(content: Any, status: int = 200) -> Response:
    body = json.dumps(content, allow_nan=False).encode()
    return Response(body, status, NO_STORE, "application/json")


def _sessions(routes: APIRouter, desk: Desk, root_path: str) -> None:
    who = Who(desk)
    path = f"{root_path}/v1/studies"

    @routes.post("/login", summary="Log in by the token of a link")
    def login(request: Request, body: Login) -> Response:
        _same_origin(request)
        address = request.client.host if request.client else ""
        secret, session, reader = desk.login(body.token, address)
        answer = _json({"csrf": session.csrf, **desk.overview(reader)})
        answer.set_cookie(
            COOKIE,
            secret,
            max_age=int(session.expires_s - desk.now()),
            path=path,
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return answer

    @routes.get("/session", summary="Who is logged in, and how far")
    def session(request: Request) -> Response:
        own, reader = desk.who(request.cookies.get(COOKIE))
        return _json({"csrf": own.csrf, **desk.overview(reader)})

    @routes.post("/logout", status_code=204, summary="End the session")
    def logout(request: Request) -> Response:
        who.session(request)
        desk.logout(request.cookies[COOKIE])
        answer = Response(status_code=204)
        answer.delete_cookie(COOKIE, path=path, httponly=True, samesite="strict")
        return answer


def _reading(routes: APIRouter, desk: Desk) -> None:
    who = Who(desk)
    reads, changes = Depends(who.reads), Depends(who.changes)

    @routes.get("/{study}/items", summary="The cases in the reader's order")
    def items(study: str, reader: Reader = reads) -> Response:
        desk.own_study(reader, study)
        return _json({"items": desk.items(reader)})

    @routes.get("/{study}/items/{item}/images/{side}", summary="The pixels of an image, as .npy")
    def image(study: str, item: str, side: int, reader: Reader = reads) -> Response:
        desk.own_study(reader, study)
        data = desk.image(reader, item, side)
        return Response(data, 200, NO_STORE, "application/x-npy")

    @routes.post("/{study}/answers", status_code=201, summary="Answer a case, once or to correct")
    def answer(study: str, body: Answered, reader: Reader = changes) -> Response:
        desk.own_study(reader, study)
        kept, fresh, truth = desk.answer(reader, Given(**body.model_dump()))
        content = {"answer": public(kept), "sitting": desk.sitting(reader)}
        if truth is not None:
            content["truth"] = truth
        return _json(content, 201 if fresh else 200)

    @routes.post("/{study}/events", status_code=204, summary="A pause begins or ends")
    def event(study: str, body: Event, reader: Reader = changes) -> Response:
        desk.own_study(reader, study)
        desk.store.add_event(reader.id, body.kind, desk.now())
        return Response(status_code=204)

    @routes.post("/{study}/finish", status_code=204, summary="The reader is done")
    def finish(study: str, reader: Reader = changes) -> Response:
        desk.own_study(reader, study)
        desk.finish(reader)
        return Response(status_code=204)


def _administering(routes: APIRouter, office: Office, root_path: str) -> None:
    desk = office.desk
    admin = [Depends(scope("admin"))]

    @routes.get("", dependencies=admin, summary="All studies with their progress")
    def studies() -> Response:
        return _json({"studies": office.studies()})

    @routes.post("", dependencies=admin, status_code=201, summary="Begin a study")
    def begin(body: Begin) -> Response:
        return _json(office.begin(body.study), 201)

    @routes.get("/{study}/progress", dependencies=admin, summary="How far the readers are")
    def progress(study: str) -> Response:
        return _json(office.progress(desk.study(study)))

    @routes.post("/{study}/readers", dependencies=admin, status_code=201, summary="Invite a reader")
    def invite(study: str, body: Invite) -> Response:
        token, reader = office.invite(desk.study(study), body.name, body.days)
        link = f"{root_path}/studies#{token}"
        about = {"id": reader.id, "name": reader.name, "expires_s": reader.expires_s}
        return _json({**about, "token": token, "link": link}, 201)

    @routes.delete(
        "/{study}/readers/{reader}", dependencies=admin, status_code=204, summary="End an access"
    )
    def revoke(study: str, reader: int) -> Response:
        office.revoke(desk.study(study), reader)
        return Response(status_code=204)

    @routes.post("/{study}/{action}", dependencies=admin, summary="Lock, unlock or close a study")
    def move(study: str, action: Literal["lock", "unlock", "close"]) -> Response:
        return _json(office.move(desk.study(study), action))

    @routes.get("/{study}/answers", dependencies=admin, summary="All answers, after the lock")
    def answers(study: str) -> Response:
        rows = lines(office.answers(desk.study(study)))
        name = f'attachment; filename="{desk.study(study).id}-answers.jsonl"'
        return Response(rows, 200, {"content-disposition": name, **NO_STORE}, JSONL)

    @routes.get("/{study}/report", dependencies=admin, summary="The report, after the close")
    def report(
        study: str, format: Annotated[Literal["html", "json", "csv", "imrmc"], Query()] = "json"
    ) -> Response:
        file, media_type = KINDS[format]
        found = desk.study(study)
        data = office.report(found, file)
        # Attached, never shown in this origin: its pictures and styles are its own.
        name = f'attachment; filename="{found.id}-{file}"'
        return Response(data, 200, {"content-disposition": name, **NO_STORE}, media_type)
