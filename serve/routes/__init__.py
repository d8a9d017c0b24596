"""The routes, a file each: `router(services)` makes them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator

from fastapi import APIRouter

from serve.services import Services

MODULES = (
    "serve.routes.health",
    "serve.routes.models",
    "serve.routes.jobs",
    "serve.routes.generate",
    "serve.routes.classify",
    "serve.routes.features",
    "serve.routes.nearest",
    "serve.readers.routes",
    "serve.page.routes",
)


def routers() -> Iterator[Callable[[Services], APIRouter]]:
    """What makes each file's routes."""
    for name in MODULES:
        if _exists(name):
            yield importlib.import_module(name).router


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
