"""A service whose models are made of nothing: the gate is tested, not what they compute."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from serve import door, gate, keys
from serve.compute.orders import Offer
from serve.in_process import InProcess
from serve.keys import KeyBook
from serve.records import Array, Diagnosed, Made, ModelSpec, Order, Want
from serve.settings import Args, parsed

WHO = {
    "reader": ("read",),
    "maker": ("generate",),
    "other": ("generate",),
    "admin": ("admin",),
}


class Fake:
    """A model whose digest is that of its place, and whose images say who made them."""

    classes, size_px = ("a", "b"), 8
    work_s = 0.0

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.sha256 = hashlib.sha256(spec.url.encode()).hexdigest()
        self.facts = {**Offer((), {}, plain=True).facts} if spec.kind == "generator" else {}

    def make(self, orders: Sequence[Order], formats: Sequence[str]) -> list[Made]:
        time.sleep(self.work_s)
        return [self._one(order) for order in orders]

    def _one(self, order: Order) -> Made:
        if order.index == 666:
            raise RuntimeError("a secret of the patient")
        address = f"mr1:{self.sha256[:12]}:prior:{order.seed}:{order.index}"
        facts = {"provenance": {"generator_sha256": self.sha256, "index": order.index}}
        return Made(address.encode(), address, "image/png", facts)

    def diagnose(self, images: Sequence[Array], wants: Sequence[Want]) -> list[Diagnosed]:
        time.sleep(self.work_s)
        return [Diagnosed({"a": 0.25, "b": 0.75}, self.sha256) for _ in images]

    def features(self, images: Sequence[Array]) -> Array:
        return np.zeros((len(images), 3), np.float32)


def loads(spec: ModelSpec, name: str, args: Args) -> Fake:
    """Puts a fake in the place of a model; one whose place says so is absent."""
    if "absent" in spec.url:
        raise FileNotFoundError(spec.url)
    return Fake(spec)


def slow(seconds: float) -> Callable[[ModelSpec, str, Args], Fake]:
    """The same with so much work for each batch."""

    def load(spec: ModelSpec, name: str, args: Args) -> Fake:
        made = loads(spec, name, args)
        made.work_s = seconds
        return made

    return load


def book(**limits: Any) -> tuple[dict[str, str], KeyBook]:
    """A token for each of WHO, and what is kept of them."""
    made = {who: keys.make(who, scopes, **limits) for who, scopes in WHO.items()}
    return {who: token for who, (token, _) in made.items()}, KeyBook(k for _, k in made.values())


def args(folder: Path, **more: Any) -> Args:
    """Settings with a generator, at the root of places that may be put."""
    return parsed(
        {
            "generator": str(folder / "one"),
            "model_roots": (str(folder),),
            "state_dir": str(folder / "state"),
            "window_ms": 1,
            "port": 0,
            **more,
        }
    )


class Asking:
    """A client in the service's own loop."""

    def __init__(self, services: InProcess, tokens: dict[str, str], client: Any) -> None:
        self.services, self.tokens, self.client = services, tokens, client

    async def __call__(
        self, method: str, path: str, who: str | None = "admin", **more: Any
    ) -> httpx.Response:
        """A request with somebody's key."""
        headers = {"authorization": f"Bearer {self.tokens[who]}"} if who else {}
        headers |= more.pop("headers", {})
        answer: httpx.Response = await self.client.request(method, path, headers=headers, **more)
        return answer


@contextlib.asynccontextmanager
async def asking(
    settings: Args,
    *,
    load: Any = loads,
    key_book: Any = None,
    address: str = "127.0.0.1",
    **parts: Any,
) -> AsyncIterator[Asking]:
    """The whole gate in this loop."""
    tokens, known = key_book or book()
    services = InProcess(settings, load=load, keys=known, **parts)
    application = gate.front(services)
    transport = httpx.ASGITransport(application, client=(address, 1))
    await services.start()
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield Asking(services, tokens, client)
    await services.close()


@contextlib.contextmanager
def opened(
    settings: Args, *, load: Any = loads, key_book: Any = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """The whole service behind its own door, in a thread; its port, and the tokens."""
    tokens, known = key_book or book()
    make = lambda: gate.front(InProcess(settings, load=load, keys=known))  # noqa: E731
    with door.opened(make, settings) as port:
        yield port, tokens


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Runs a test's coroutine."""
    return asyncio.run(main)


GENERATE = "/v1/images/generations"


def one(index: int, **more: Any) -> dict[str, Any]:
    """The body that asks for one image."""
    return {"n": 1, "seed": 3, "start": index, **more}
