"""A TCP proxy in front of an HTTP server that fails as networks and stores do: seeded, counted.

Each request is read whole, may meet a fault, and is passed on over a connection of its own. Faults:
refused (the connection ends before anything is read), unavailable (503), internal (500), reset
(the connection breaks before the server hears of it), lost (it breaks after the server did it),
short (the body ends early), sliced (it comes in small pieces), stall (it waits first).
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

RATES = {
    "refused": 0.02,
    "unavailable": 0.05,
    "internal": 0.02,
    "reset": 0.03,
    "lost": 0.02,
    "short": 0.05,
    "sliced": 0.1,
    "stall": 0.02,
}
_ERROR = (
    "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{text}</Message>"
    "<RequestId>0</RequestId></Error>"
)
_ANSWERS = {
    "unavailable": (503, "Slow Down", _ERROR.format(code="SlowDown", text="Reduce your rate.")),
    "internal": (500, "Internal Server Error", _ERROR.format(code="InternalError", text="Again.")),
}
SLICE_BYTES = 700
_RESET_AT_ONCE = struct.pack("ii", 1, 0)


class Proxy:
    """Listens on loopback for a server there; `url` is where. `injected` counts the faults."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self.injected: Counter[str] = Counter()
        self.requests: list[str] = []
        self._rates: dict[str, float] = {}
        self._draw = random.Random(0)
        self.stall_s = 0.05
        self._silent = False
        self._lost: tuple[str, str] | None = None
        self._losses: list[int] = []
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = self._wait(self._listen(0))
        self.url = f"http://127.0.0.1:{self.port}"

    def _wait(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _listen(self, port: int) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def _stop_listening(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()

    def close(self) -> None:
        """Ends it."""
        self._wait(self._stop_listening())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    # --- what fails -----------------------------------------------------------------------------

    @contextmanager
    def failing(
        self, seed: int, *, stall_s: float = 0.05, **rates: float
    ) -> Iterator[Counter[str]]:
        """Faults at these rates while the context lasts; what was injected in it."""
        self._draw, self.stall_s, self.injected = random.Random(seed), stall_s, Counter()
        self._rates = rates
        try:
            yield self.injected
        finally:
            self._rates = {}

    @contextmanager
    def losing(self, method: str, part: str) -> Iterator[list[int]]:
        """The answer to the first request of this method with `part` in it is lost; how many were.

        The server has done what it was asked for by then.
        """
        self._lost, lost = (method, part), self._losses
        lost[:] = [0]
        try:
            yield lost
        finally:
            self._lost = None

    @contextmanager
    def down(self) -> Iterator[None]:
        """Nobody listens while the context lasts."""
        self._wait(self._stop_listening())
        try:
            yield
        finally:
            self._wait(self._listen(self.port))

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Requests are taken and never answered while the context lasts."""
        self._silent = True
        try:
            yield
        finally:
            self._silent = False

    def _strikes(self, fault: str) -> bool:
        hit = self._draw.random() < self._rates.get(fault, 0.0)
        self.injected[fault] += hit
        return hit

    # --- one request ----------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            if self._strikes("refused"):
                _reset(writer)
                return
            await self._one(reader, writer)
        with suppress(ConnectionError, RuntimeError):
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, body = await _request(reader, writer)
        self.requests.append(head.split(b"\r\n")[0].decode("latin-1"))
        if self._silent:
            await asyncio.sleep(3600)
        if self._strikes("stall"):
            await asyncio.sleep(self.stall_s)
        for fault, (status, reason, text) in _ANSWERS.items():
            if self._strikes(fault):
                found = f"HTTP/1.1 {status} {reason}\r\nContent-Length: {len(text)}\r\n"
                found += "Content-Type: application/xml\r\nConnection: close\r\n\r\n"
                body_sent = b"" if head.startswith(b"HEAD") else text.encode()
                await _send(writer, found.encode() + body_sent)
                return
        if self._strikes("reset"):
            _reset(writer)
            return
        answer = await self._passed_on(head, body)
        if self._strikes("lost") or self._is_to_be_lost():
            _reset(writer)
            return
        await self._answer(writer, answer)

    def _is_to_be_lost(self) -> bool:
        if self._lost is None:
            return False
        method, part = self._lost
        line = self.requests[-1]
        if self._losses[0] or not line.startswith(method) or part not in line:
            return False
        self._losses[0] = 1
        return True

    async def _passed_on(self, head: bytes, body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        try:
            await _send(writer, head + body)
            return await reader.read()
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, answer: bytes) -> None:
        start = answer.find(b"\r\n\r\n") + 4
        if len(answer) > start + 1 and self._strikes("short"):
            await _send(writer, answer[: self._draw.randrange(start, len(answer))])
            return
        if self._strikes("sliced"):
            for at in range(0, len(answer), SLICE_BYTES):
                await _send(writer, answer[at : at + SLICE_BYTES])
                await asyncio.sleep(0)
            return
        await _send(writer, answer)


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection by a reset, not in order."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_ONCE)
    writer.transport.abort()


async def _request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[bytes, bytes]:
    """Head and body of a request; the head asks the server to close the connection after it."""
    lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[:-2]
    named = {
        line.partition(b":")[0].strip().lower(): line.partition(b":")[2].strip()
        for line in lines[1:]
    }
    if named.get(b"expect", b"").lower() == b"100-continue":
        await _send(writer, b"HTTP/1.1 100 Continue\r\n\r\n")
    body = b""
    if named.get(b"transfer-encoding", b"").lower() == b"chunked":
        while True:
            size = await reader.readuntil(b"\r\n")
            body += size + await reader.readexactly(int(size.split(b";")[0], 16) + 2)
            if int(size.split(b";")[0], 16) == 0:
                break
    elif b"content-length" in named:
        body = await reader.readexactly(int(named[b"content-length"]))
    kept = [
        line
        for line in lines
        if line.partition(b":")[0].strip().lower() not in (b"connection", b"expect")
    ]
    return b"\r\n".join([*kept, b"Connection: close", b"", b""]), body


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
