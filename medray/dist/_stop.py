"""Why this process should stop: SIGTERM, or a request from the driver; set once, read often."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_reasons: list[str] = []


def request(reason: str) -> None:
    """Asks for a stop; the first reason stays."""
    if not _reasons:
        _reasons.append(reason)


def reason() -> str | None:
    """The first reason given since the last `clear`, or None."""
    return _reasons[0] if _reasons else None


def clear() -> None:
    """Forgets the reason, before the next run in this process."""
    _reasons.clear()


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    request("SIGTERM")


def install(handler: Callable[[int, FrameType | None], Any] = _on_sigterm) -> Callable[[], None]:
    """Makes SIGTERM a request instead of the end; returns what restores the old handler.

    Python allows handlers in the main thread alone: elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    previous = signal.signal(signal.SIGTERM, handler)
    return lambda: _restore(previous)


def _restore(previous: Any) -> None:
    # None stands for a handler that was not set from Python and cannot be put back from it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)
