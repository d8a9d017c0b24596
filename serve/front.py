"""What every request passes before a route: id, key, body cap, rate, time-outs, counts.

Plain ASGI, one wrapper for all of it: behind Serve's proxy and behind the own door it is the same.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from medray import log
from medray.errors import MedrayError
from serve import keys
from serve.problems import MEDIA_TYPE, Problem, busy, internal, problem_of, shown
from serve.registry import PINS
from serve.services import Services
from serve.settings import is_loopback

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

REQUEST_ID = re.compile(rb"^[A-Za-z0-9._-]{1,64}$")
# Below these a key is needed; the readers of a study have sessions of their own.
GUARDED, SESSIONS = "/v1/", ("/v1/studies",)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; font-src 'self'; manifest-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
SECURITY = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
# Waiting that long for a rest of a body nobody will read would hold the connection.
TOKEN_BYTES = 512


class _Head:
    """The headers that matter here, found in one pass."""

    __slots__ = ("authorization", "length", "request_id", "host", "origin", "twice", "has_body")

    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.authorization = self.length = self.request_id = self.host = self.origin = b""
        self.twice = self.has_body = False
        for name, value in headers:
            if name == b"authorization":
                self.twice = self.twice or bool(self.authorization)
                self.authorization = value
            elif name == b"content-length":
                self.length = value
                self.has_body = value != b"0"
            elif name == b"transfer-encoding":
                self.has_body = True
            elif name == b"x-request-id":
                self.request_id = value
            elif name == b"host":
                self.host = value
            elif name == b"origin":
                self.origin = value


class _Passage:
    """One request on its way: what is received is counted, what is sent is marked."""

    __slots__ = ("front", "receive_", "send_", "got", "failure", "status", "id", "clock", "whole")

    def __init__(self, front: Front, receive: Receive, send: Send, request_id: bytes) -> None:
        self.front, self.receive_, self.send_, self.id = front, receive, send, request_id
        self.got = self.status = 0
        self.failure: Problem | None = None
        self.clock: asyncio.Timeout | None = None
        self.whole = False

    async def receive(self) -> Message:
        """The next part of the body; Problem 413 where it becomes too large."""
        message = await self.receive_()
        if message["type"] == "http.request" and not self.whole:
            self.got += len(message.get("body", b""))
            if self.got > self.front.body_bytes:
                self.failure = self.front.too_large(self.got)
                raise self.failure
            if not message.get("more_body"):
                # The wait for an answer begins when the whole question is there.
                self.whole = True
                if not self.status:
                    self.rearm(asyncio.get_running_loop().time() + self.front.timeout_s)
        return message

    def rearm(self, at_s: float | None) -> None:
        if self.clock is not None and not self.clock.expired():
            self.clock.reschedule(at_s)

    def late(self) -> Problem:
        """Of what the time ran out: of the question, or of the answer."""
        if not self.whole:
            text = f"the body did not arrive within {self.front.body_timeout_s:g} s"
            return Problem(408, "body_timeout", text, headers={"connection": "close"})
        text = f"no answer within {self.front.timeout_s:g} s"
        return busy("timeout", text, 5, "ask for less at once, or as a job")

    async def send(self, message: Message) -> None:
        """What the app answers; a problem met while receiving stands above it."""
        if message["type"] == "http.response.start":
            if self.status:
                return
            if self.failure is not None:
                await self.problem(self.failure)
                return
            self.status = message["status"]
            # An answer that has begun may take its time: it is streamed to who reads it.
            self.rearm(None)
            headers = [*message.get("headers", ()), (b"x-request-id", self.id), *SECURITY]
            message = {**message, "headers": headers}
        elif self.failure is not None:
            return
        await self.send_(message)

    async def problem(self, problem: Problem) -> None:
        """Answers with a problem, where no answer has begun."""
        if self.status:
            return
        self.status, self.failure = problem.status, problem
        body = problem.body(self.id.decode())
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-request-id", self.id),
            *((name.encode(), value.encode("latin-1")) for name, value in problem.headers.items()),
            *SECURITY,
        ]
        start = {"type": "http.response.start", "status": problem.status, "headers": headers}
        await self.send_(start)
        await self.send_({"type": "http.response.body", "body": body})


class Front:
    """The wrapper around the app; `prefix` is the path under which a proxy shows it."""

    def __init__(self, app: App, services: Services) -> None:
        self.app, self.services = app, services
        args = services.args
        self.prefix = args.root_path
        self.body_bytes, self.timeout_s = args.body_bytes, args.timeout_s
        self.body_timeout_s, self.requests = args.body_timeout_s, args.requests
        self.running = 0
        # Every gate's ids differ from every other's.
        self._numbers = itertools.count()
        self._boot = secrets.token_hex(5)
        # What kept the service from starting.
        self.failure: MedrayError | Problem | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1002})
            return
        started_s = time.perf_counter()
        head = _Head(scope["headers"])
        request_id = head.request_id
        if not REQUEST_ID.match(request_id):
            request_id = f"{self._boot}-{next(self._numbers):x}".encode()
        passage = _Passage(self, receive, send, request_id)
        self.running += 1
        try:
            await self._pass(scope, head, passage)
        finally:
            self.running -= 1
            self._count(scope, passage, time.perf_counter() - started_s)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The service's begin and end; a failure that has a name is kept, without a trace."""

        async def told(message: Message) -> None:
            await send({**message, "message": ""} if "message" in message else message)

        try:
            await self.app(scope, receive, told)
        except (MedrayError, Problem) as failure:
            self.failure = failure

    async def _pass(self, scope: Scope, head: _Head, passage: _Passage) -> None:
        try:
            self._admit(scope, head)
        except Problem as problem:
            await passage.problem(problem)
            return
        scope["state"]["request_id"] = passage.id.decode()
        PINS.set({})
        # What has no body is a whole question at once.
        passage.whole = not head.has_body
        wait_s = self.timeout_s if passage.whole else self.body_timeout_s
        try:
            async with asyncio.timeout(wait_s) as passage.clock:
                await self.app(scope, passage.receive, passage.send)
        except TimeoutError:
            if passage.clock is None or not passage.clock.expired():
                raise
            await passage.problem(passage.late())
        except Problem as problem:
            await passage.problem(passage.failure or problem)
        except Exception as error:
            _log(error, passage.id)
            answer = problem_of(error) or internal()
            await passage.problem(answer)
            if passage.status != answer.status:
                # An answer had begun: it must not look whole.
                raise

    def _admit(self, scope: Scope, head: _Head) -> None:
        """Who asks, and whether that may be: sets `state`; Problem otherwise."""
        state = scope.setdefault("state", {})
        root = scope["root_path"] = scope.get("root_path") or self.prefix
        # A proxy may have taken the prefix off already.
        path = scope["path"].removeprefix(root)
        key, scopes = self._key(scope, head, path)
        state["key"], state["scopes"] = (key.name if key else None), scopes
        if self.services.keys.open:
            state["key"] = keys.OPEN
        if self.running > self.requests:
            raise busy("overloaded", f"{self.requests} requests are under way already")
        if head.length and (not head.length.isdigit() or int(head.length) > self.body_bytes):
            raise self.too_large(head.length.decode("latin-1"))
        if key is not None:
            self.services.limits.request(key)

    def _key(self, scope: Scope, head: _Head, path: str) -> tuple[keys.Key | None, frozenset[str]]:
        book = self.services.keys
        if book.open:
            self._only_local(scope, head)
            return None, frozenset(keys.SCOPES)
        if head.authorization:
            kind, _, token = head.authorization.partition(b" ")
            if head.twice or kind.lower() != b"bearer" or not 0 < len(token) <= TOKEN_BYTES:
                raise keys.malformed()
            return book.find(token.strip(), time.time())
        if path.startswith(GUARDED) and not path.startswith(SESSIONS):
            raise keys.missing()
        return None, frozenset()

    def _only_local(self, scope: Scope, head: _Head) -> None:
        """Without keys, this machine alone: no other host, and no page of another origin."""
        client = scope.get("client")
        if client and client[0] and not is_loopback(client[0]):
            raise Problem(403, "key_needed", "this service has no keys: it answers loopback alone")
        host = head.host.decode("latin-1")
        if not is_loopback(_without_port(host)):
            text = f"given: Host {shown(host)}; allowed without keys: localhost"
            raise Problem(403, "host_unknown", text, "make a key: python -m serve.keys new")
        if head.origin and head.origin.decode("latin-1").partition("://")[2] != host:
            text = f"given: Origin {shown(head.origin.decode('latin-1'))}; allowed: this one"
            raise Problem(403, "origin_other", text)

    def too_large(self, given: object) -> Problem:
        """413: the body."""
        text = f"given: a body of {shown(given)} bytes; allowed: {self.body_bytes:,}"
        return Problem(413, "body_too_large", text, headers={"connection": "close"})

    def _count(self, scope: Scope, passage: _Passage, seconds: float) -> None:
        route = scope.get("route")
        path = getattr(route, "path", "other") if passage.status not in (401, 404) else "other"
        method = scope["method"] if scope["method"] in METHODS else "other"
        metrics = self.services.metrics
        metrics.count("medray_http_requests_total", path, method, str(passage.status or 499))
        metrics.observe("medray_http_seconds", seconds, path)


METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


def _log(error: BaseException, request_id: bytes) -> None:
    """What went wrong and where, without the error's text: that may hold what was sent."""
    places = traceback.extract_tb(error.__traceback__)[-3:]
    where = " < ".join(f"{p.filename.rpartition('/')[2]}:{p.lineno}" for p in reversed(places))
    text = f"request {request_id.decode()}: {type(error).__name__} at {where}"
    log.error("internal", text, request_id=request_id.decode(), error=type(error).__name__)
    log.debug("internal_detail", "see --debug", python=sys.version_info[:2])
