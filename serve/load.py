"""Load on a service from a process of its own: closed loop (clients that wait) or open (a rate).

`python -m serve.load '{"port": 8700, "clients": 32, "seconds": 3, ...}'` prints one JSON object.
Raw sockets under uvloop: the measuring must cost less than what is measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

QUANTILES = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99}
# An answer later than that counts as lost.
LOST_S = 60.0


@dataclass
class Load:
    """What is sent, to where, by how many, for how long."""

    port: int
    path: str = "/v1/ping"
    body: str = ""
    hex_body: str = ""
    body_bytes: int = 0
    key: str = ""
    host: str = "127.0.0.1"
    content_type: str = "application/json"
    clients: int = 32
    seconds: float = 3.0
    warm_s: float = 0.3
    rate_per_s: float = 0.0
    # With {n} in the body each request gets a number of its own.
    numbered: bool = False
    expect: int = 200
    extra: dict[str, str] = field(default_factory=dict)

    def request(self, number: int) -> bytes:
        """The bytes of a request."""
        body = (self.body.replace("{n}", str(number)) if self.numbered else self.body).encode()
        body = body or bytes.fromhex(self.hex_body) or b"x" * self.body_bytes
        head = {
            "Host": f"{self.host}:{self.port}",
            "Content-Type": self.content_type,
            "Content-Length": str(len(body)),
            **({"Authorization": f"Bearer {self.key}"} if self.key else {}),
            **self.extra,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        return f"POST {self.path} HTTP/1.1\r\n{lines}\r\n".encode() + body


class Client(asyncio.Protocol):
    """One connection: a request at a time, its answer read to the end."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._need = -1
        self._status = 0
        self._waiter: asyncio.Future[int] | None = None
        self.transport: Any = None
        self.closed = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._need < 0:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._buffer[:end]).lower()
            self._status = int(head[9:12])
            length = head.find(b"content-length:")
            if length < 0:
                self._done(-2)
                return
            self._need = end + 4 + int(head[length + 15 :].split(b"\r\n", 1)[0])
        if len(self._buffer) >= self._need:
            self._done(self._status)

    def _done(self, status: int) -> None:
        self._buffer.clear()
        self._need = -1
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(status)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._done(-1)

    async def ask(self, request: bytes) -> int:
        """The status of an answer; -1 where the connection broke."""
        self._waiter = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await asyncio.wait_for(self._waiter, LOST_S)


class Measured:
    """Statuses and latencies."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.seconds: dict[int, list[float]] = {}

    def add(self, status: int, seconds: float) -> None:
        self.statuses[status] += 1
        self.seconds.setdefault(status, []).append(seconds)

    def body(self, wall_s: float, expect: int) -> dict[str, Any]:
        """As JSON has it; rates and latencies are those of the expected answers."""
        taken = sorted(self.seconds.get(expect, []))
        refused = sorted(
            s for status, all_s in self.seconds.items() if status != expect for s in all_s
        )
        return {
            "per_s": len(taken) / wall_s,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            **{name: 1000 * _quantile(taken, q) for name, q in QUANTILES.items()},
            "refused_p99_ms": 1000 * _quantile(refused, 0.99),
        }


def _quantile(values: list[float], q: float) -> float:
    return values[min(len(values) - 1, int(q * len(values)))] if values else 0.0


async def connected(load: Load) -> Client:
    """A new connection."""
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(Client, load.host, load.port)
    return client


async def closed_loop(load: Load) -> dict[str, Any]:
    """Clients that ask again as soon as they are answered."""
    measured = Measured()
    begin_s = time.perf_counter() + load.warm_s
    end_s = begin_s + load.seconds
    numbers = iter(range(10**9))

    async def one() -> None:
        client = await connected(load)
        while (asked_s := time.perf_counter()) < end_s:
            status = await client.ask(load.request(next(numbers)) if load.numbered else request)
            now_s = time.perf_counter()
            if begin_s <= now_s <= end_s:
                measured.add(status, now_s - asked_s)
            if client.closed:
                client = await connected(load)
        client.transport.close()

    request = load.request(0)
    await asyncio.gather(*(one() for _ in range(load.clients)))
    return measured.body(load.seconds, load.expect)


async def open_loop(load: Load) -> dict[str, Any]:
    """Requests at a rate, whether earlier ones are answered or not; connections are kept."""
    measured = Measured()
    free: list[Client] = []
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def one(number: int, due_s: float) -> None:
        try:
            client = free.pop() if free else await connected(load)
            status = await client.ask(load.request(number))
            if not client.closed:
                free.append(client)
        except (OSError, TimeoutError):
            status = -1
        measured.add(status, loop.time() - due_s)

    begin_s = loop.time()
    for number in range(int(load.rate_per_s * load.seconds)):
        due_s = begin_s + number / load.rate_per_s
        if (wait_s := due_s - loop.time()) > 0:
            await asyncio.sleep(wait_s)
        task = asyncio.create_task(one(number, due_s))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks)
    return measured.body(load.seconds, load.expect)


def main() -> int:
    """Runs the load that the only argument describes."""
    import uvloop

    load = Load(**json.loads(sys.argv[1]))
    work = open_loop(load) if load.rate_per_s else closed_loop(load)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(work)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
