"""The own door: uvicorn on host:port, guarded against who is slow, drained before it closes.

Several doors of a machine share a port (SO_REUSEPORT): the kernel deals connections out to them.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from medray.errors import ResourceError
from serve.front import Message, Receive, Scope, Send
from serve.problems import MEDIA_TYPE, Problem
from serve.settings import Args

HEAD_BYTES = 64 * 1024
# A connection that is idle while the door closes may still send what it was about to.
LINGER_S = 0.5
# An answer is read, and the rest of a body that was refused is sent, at some speed.
STALLED_S = 30.0
HEAD_PROBLEM = Problem(431, "head_too_large", f"a head of over {HEAD_BYTES:,} bytes").body()
HEAD_ANSWER = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
    b"content-type: %b\r\ncontent-length: %d\r\n\r\n%b"
    % (MEDIA_TYPE.encode(), len(HEAD_PROBLEM), HEAD_PROBLEM)
)
BACKLOG = 2048
ASK_S = 2.0
START_S = 600.0
T = TypeVar("T")


class Guarded(HttpToolsProtocol):
    """uvicorn's protocol with limits on the head: its time, its bytes; and on who does not read."""

    header_timeout_s = 10.0
    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_body = False
    _closing = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.config.most_connections:  # type: ignore[attr-defined]
            transport.abort()
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop("_head_timer")
        self._stop("_stall_timer")
        super().connection_lost(exc)

    def _stop(self, name: str) -> None:
        timer = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)

    def _await_head(self) -> None:
        self._head_bytes = 0
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.header_timeout_s, self._give_up)

    def _give_up(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES + len(data):
                self.transport.write(HEAD_ANSWER)
                self.transport.close()
                return
            if self._head_timer is None:
                self._await_head()
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._stop("_head_timer")
        self._in_body, self._head_bytes = True, 0
        super().on_headers_complete()
        if self._closing:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body and self._stall_timer is None:
            # Answered before the body was there (too large): its rest is thrown away, for a while.
            self._stall_timer = self.loop.call_later(STALLED_S, self._give_up)
        elif self._closing and not self.transport.is_closing():
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(STALLED_S, self._give_up)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop("_stall_timer")

    def shutdown(self) -> None:
        """The door closes: what is under way is answered; what is idle may send once more."""
        self._closing = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(LINGER_S, self._close_idle)

    def _close_idle(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and not self._in_body and not self.transport.is_closing():
            self.transport.close()


def check_port(args: Args) -> None:
    """ResourceError where somebody else listens: the kernel would deal callers out to both."""
    if not args.port:
        return
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(args.host, args.host)
    asked = http.client.HTTPConnection(host, args.port, timeout=ASK_S)
    try:
        asked.request("GET", "/livez")
        service = asked.getresponse().getheader("x-medray-service")
    except ConnectionRefusedError:
        return
    except (OSError, http.client.HTTPException):
        service = None
    finally:
        asked.close()
    if service != args.service:
        raise ResourceError(
            f"{args.host}:{args.port} is another service's",
            hint="give another port; gates of one service have the same state_dir",
        )


def bound(host: str, port: int) -> socket.socket:
    """A socket that other doors of this machine may share; ResourceError where it is taken.

    It does not listen yet: of the doors that share a port the kernel deals callers out to those
    that listen, and one that still loads its models would keep them waiting.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise ResourceError(f"cannot open {host}:{port}: {error.strerror}") from error
    made.setblocking(False)
    return made


class _Server(uvicorn.Server):
    """uvicorn that says when it listens."""

    opened: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.opened()


def server(app: Any, args: Args, opened: Callable[[], None]) -> uvicorn.Server:
    """uvicorn for an application, not yet running; it calls `opened` once it listens."""
    protocol = type("Door", (Guarded,), {"header_timeout_s": args.header_timeout_s})
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        loop="uvloop",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=int(args.keep_alive_s),
        timeout_graceful_shutdown=int(args.drain_s) or 1,
    )
    config.most_connections = args.connections  # type: ignore[attr-defined]
    made = _Server(config)
    made.opened = opened
    return made


class Door:
    """A running door in a thread with a loop of its own, in which the whole service lives."""

    def __init__(self, make_app: Callable[[], Any], args: Args) -> None:
        self._make_app, self._args = make_app, args
        self._thread = threading.Thread(target=self._main, name="door", daemon=True)
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._server: uvicorn.Server | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.app: Any = None
        self.port = 0

    def start(self) -> None:
        """Opens it; returns when the service is up, or raises what kept it from that."""
        self._thread.start()
        self._started.wait(START_S)
        if self._failure is not None:
            raise self._failure

    def _main(self) -> None:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            try:
                runner.run(self._serve())
            except BaseException as error:
                self._failure = error
            finally:
                self._started.set()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.app = self._make_app()
        self._server = server(self.app, self._args, self._started.set)
        host = self._args.host if self._args.door else "127.0.0.1"
        # Without a door of its own the loop and the lifespan are still uvicorn's.
        if self._args.door:
            await asyncio.to_thread(check_port, self._args)
        sockets = [bound(host, self._args.port)] if self._args.door else []
        self.port = sockets[0].getsockname()[1] if sockets else 0
        try:
            await self._server.serve(sockets)
        finally:
            for one in sockets:
                one.close()
            if (failure := getattr(self.app, "failure", None)) is not None:
                raise failure

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Asks it to close; what is under way is answered."""
        if self._server is not None:
            self._server.should_exit = True

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request that came to another loop (through Serve's proxy), answered in the door's."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        outer, inner = asyncio.get_running_loop(), self.loop
        assert inner is not None, "the door was not started"

        async def received() -> Message:
            return await _in(outer, receive())

        async def sent(message: Message) -> None:
            await _in(outer, send(message))

        scope = {**scope, "state": {}}
        await _in(inner, self.app(scope, received, sent))


async def _lifespan(receive: Receive, send: Send) -> None:
    """The service's begin and end are the door's, not those of the other loop."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _in(loop: asyncio.AbstractEventLoop, work: Awaitable[T]) -> T:
    """The result of work that is done in another loop."""

    async def done() -> T:
        return await work

    coroutine: Coroutine[Any, Any, T] = done()
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, loop))


@contextlib.contextmanager
def opened(make_app: Callable[[], Any], args: Args) -> Any:
    """A door that is open while this lasts; gives its port."""
    door = Door(make_app, args)
    door.start()
    try:
        yield door.port
    finally:
        door.stop()
        door.join(args.drain_s + 5)
