"""A driver whose cluster's head is gone for good ends as every other outage does.

Ray waits a minute for its head (GCS) and then ends the process from C++: exit code 1, and nothing
that says what to do. A little earlier the driver ends itself here, with exit code 4. What it has
published stays; nothing is tidied up, since all of that would ask the head.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

from medray import log
from medray.errors import ResourceError

POLL_S = 5.0
# By how much Ray is forestalled.
BEFORE_S = 10.0
# Ray's own setting, with its default.
RAY_WAITS = ("RAY_gcs_rpc_server_reconnect_timeout_s", "60")


@contextlib.contextmanager
def watched(address: str) -> Iterator[None]:
    """Ends this process with exit code 4 once the head at `address` (HOST:PORT) stays away."""
    limit_s = max(POLL_S, float(os.environ.get(*RAY_WAITS)) - BEFORE_S)
    done = threading.Event()
    words = (address, limit_s, done)
    threading.Thread(target=_watch, args=words, name="medray-head", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _watch(address: str, limit_s: float, done: threading.Event) -> None:
    seen_s = time.monotonic()
    while not done.wait(POLL_S):
        if _answers(address):
            seen_s = time.monotonic()
        elif (away_s := time.monotonic() - seen_s) >= limit_s:
            _end(address, away_s)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), POLL_S).close()
    except OSError:
        return False
    return True


def _end(address: str, away_s: float) -> None:
    error = ResourceError(
        f"Ray's head at {address} has not answered for {away_s:.0f} s",
        hint="what was finished is kept; the same command goes on, on this cluster or another",
    )
    log.error("failed", str(error), exit_code=error.exit_code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(error.exit_code)
