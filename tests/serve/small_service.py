"""A small service for tests: untrained networks that know phantoms, keys, the whole gate."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from medray import phantoms
from medray.evaluate import ood
from medray.models.classifier import Classifier
from medray.models.pixels import to_unit
from medray.models.weights import load_classifier, save_network
from medray.sample.conditional import of_classes
from medray.store import Store
from serve import keys
from serve.gate import front
from serve.in_process import InProcess
from serve.keys import KeyBook
from serve.settings import Args
from tests.archive.made_parts import DIMS, make_generator

CLASSES = ("clear", "opacity")
PX = 32
SCOPES = {"read": ("read",), "generate": ("generate",), "both": ("read", "generate")}


@dataclass(frozen=True)
class Places:
    """Where the models of the tests are."""

    conditional: str
    plain: str
    classifier: str
    bare: str


def make_models(folder: Path) -> Places:
    """A conditional and a plain generator, a classifier that knows chest phantoms, and one bare."""
    conditional, plain = folder / "conditional", folder / "plain"
    sha256 = make_generator(conditional, classes=len(CLASSES))
    of_classes(CLASSES, DIMS, sha256).save(Store(conditional / "latents"))
    make_generator(plain, seed=1)
    for name, familiar in (("classifier", True), ("bare", False)):
        _make_classifier(folder / name, familiar)
    return Places(*(str(folder / name) for name in ("conditional", "plain", "classifier", "bare")))


def chest(first: int, count: int) -> np.ndarray:
    """Chest phantoms of addresses from `first` on, uint8 (N, H, W)."""
    indices = range(first, first + count)
    return np.stack([phantoms.chest(3, index, PX).image for index in indices])


def _make_classifier(folder: Path, familiar: bool) -> None:
    network = Classifier(CLASSES, size_px=PX, width=8).seed_weights(1)
    with torch.no_grad():
        network.bias.copy_(torch.tensor([0.3, -0.2]))
        network.temperature.fill_(1.5)
    about = {"kind": "classifier", "arguments": network.arguments()}
    sha256 = save_network(Store(folder), "classifier", network.state_dict(), about, "a test")
    if familiar:
        loaded, _ = load_classifier(str(folder))
        fitted = ood.fit(_rows(loaded, chest(0, 200)), _rows(loaded, chest(200, 200)), sha256)
        fitted.save(Store(folder))


def _rows(network: Classifier, images_NHW: np.ndarray) -> Any:
    with torch.no_grad():
        unit_NCHW = to_unit(torch.from_numpy(images_NHW[:, None]))
        return ood.describe(unit_NCHW.numpy(), network.features(unit_NCHW).numpy())


@dataclass(frozen=True)
class Service:
    """A client, the services behind it, and a token for each identity."""

    client: httpx.AsyncClient
    services: InProcess
    tokens: dict[str, str]
    loop: asyncio.AbstractEventLoop

    def headers(self, who: str = "both") -> dict[str, str]:
        """The header of an identity's key."""
        return {"authorization": f"Bearer {self.tokens[who]}"}

    def post(self, path: str, who: str | None = "both", **more: Any) -> Any:
        """A request with a key."""
        headers = {**(self.headers(who) if who else {}), **more.pop("headers", {})}
        return self.wait(self.client.post(path, headers=headers, **more))

    def wait(self, coroutine: Any, timeout_s: float = 30) -> Any:
        """What a coroutine gives that runs where the service does."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout_s)


@contextlib.contextmanager
def running(places: Places, folder: Path, **more: Any) -> Iterator[Service]:
    """The service of the models at `places`; `more` are its settings."""
    tokens, book = _keys()
    args = Args(
        generator=places.conditional,
        classifier=places.classifier,
        models={
            "plain": _spec("generator", places.plain),
            "bare": _spec("classifier", places.bare),
        },
        state_dir=str(folder / "state"),
        window_ms=1,
        **more,
    )
    services = InProcess(args, keys=book)
    transport = httpx.ASGITransport(front(services), client=("127.0.0.1", 1))
    client = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    found = Service(client, services, tokens, loop)
    try:
        found.wait(services.start())
        yield found
        found.wait(services.close())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _spec(kind: Any, url: str) -> Any:
    from serve.records import ModelSpec

    return ModelSpec(kind, url)


def _keys() -> tuple[dict[str, str], KeyBook]:
    tokens, found = {}, []
    for name, scopes in SCOPES.items():
        tokens[name], key = keys.make(name, scopes)
        found.append(key)
    tokens["expired"], key = keys.make(
        "expired", SCOPES["both"], expires="2001-01-01T00:00:00+00:00"
    )
    found.append(key)
    tokens["scarce"], key = keys.make("scarce", SCOPES["both"], images_per_day=10)
    return tokens, KeyBook([*found, key])
