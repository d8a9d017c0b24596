"""A service of reader studies on a free port of loopback, in this process; a client for it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import uvicorn

from serve import keys
from serve.gate import front
from serve.in_process import InProcess
from serve.readers import routes
from serve.readers.desk import Desk
from serve.settings import Args


class Clock:
    """Seconds as the service sees them; a test moves them on."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@dataclass
class Service:
    """Where it is, and the administrator's key."""

    url: str
    admin_token: str
    reader_token: str
    inner: InProcess
    desk: Desk
    clock: Clock
    clients: list[httpx.Client] = field(default_factory=list)

    def client(self, token: str = "", **headers: str) -> httpx.Client:
        """A client with cookies of its own."""
        sent = {**headers, **({"authorization": f"Bearer {token}"} if token else {})}
        made = httpx.Client(base_url=self.url, headers=sent, timeout=20)
        self.clients.append(made)
        return made

    @property
    def admin(self) -> httpx.Client:
        """The administrator."""
        return self.client(self.admin_token)


@contextlib.contextmanager
def serving(folder: Path, *, open_door: bool = False, **args: Any) -> Iterator[Service]:
    """Serves the studies below `folder`."""
    admin, admin_key = keys.make("boss", ["admin"])
    other, other_key = keys.make("other", ["read", "generate"])
    book = keys.KeyBook([] if open_door else [admin_key, other_key])
    named = {"generator": None, "classifier": None, **args}
    settings = Args(
        studies=str(folder),
        state_dir=str(folder / "state"),
        door=False,
        rate_per_s=100_000,
        burst=100_000,
        **named,
    )
    inner = InProcess(settings, keys=book)
    clock = Clock()
    desk = Desk(settings.studies, settings.database, settings.state_dir, clock)
    with mock.patch.object(routes, "Desk", lambda *_: desk):
        whole = front(inner)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(whole, log_config=None, lifespan="on", access_log=False)  # type: ignore[arg-type]
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until = time.monotonic() + 120
    while not server.started and time.monotonic() < until and thread.is_alive():
        time.sleep(0.01)
    assert server.started, "the service did not start"
    port = listening.getsockname()[1]
    made = Service(f"http://127.0.0.1:{port}{settings.root_path}", admin, other, inner, desk, clock)
    if open_door:
        made.admin_token = ""
    try:
        yield made
    finally:
        for client in made.clients:
            client.close()
        server.should_exit = True
        thread.join(20)
        listening.close()
        desk.close()


def begin(service: Service, study: str, *names: str) -> list[str]:
    """Begins a study and invites readers: their tokens."""
    admin = service.admin
    assert admin.post("/v1/studies", json={"study": study}).status_code == 201
    found = []
    for name in names:
        answer = admin.post(f"/v1/studies/{study}/readers", json={"name": name})
        assert answer.status_code == 201, answer.text
        found.append(answer.json()["token"])
    return found


def logged_in(service: Service, token: str) -> httpx.Client:
    """A reader's client, with cookie and CSRF token."""
    client = service.client()
    answer = client.post("/v1/studies/login", json={"token": token})
    assert answer.status_code == 200, answer.text
    client.headers["x-csrf-token"] = answer.json()["csrf"]
    return client
