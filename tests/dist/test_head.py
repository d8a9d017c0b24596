"""A driver ends with exit code 4 when its cluster's head stays away, and not before."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time

import pytest

from medray.dist import _head

LIMIT_S = 5
# Nothing takes the polls out of a head's backlog, which holds 128: they must be few.
DRIVER = """
import sys, time
from medray.dist import _head
_head.POLL_S = 0.25
with _head.watched(sys.argv[1]):
    print("ready", flush=True)
    time.sleep(float(sys.argv[2]))
"""


class Head:
    """Something that takes connections at an address, as long as it is there."""

    def __init__(self, port: int = 0) -> None:
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port = self._socket.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"

    def close(self) -> None:
        self._socket.close()


def drive(head: Head, seconds: float, monkeypatch: pytest.MonkeyPatch) -> subprocess.Popen[str]:
    """A driver that works for so long; it lets the head be away for LIMIT_S."""
    monkeypatch.setenv(_head.RAY_WAITS[0], str(LIMIT_S + _head.BEFORE_S))
    words = [sys.executable, "-c", DRIVER, head.address, str(seconds)]
    driver = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert driver.stdout and driver.stdout.readline() == "ready\n"
    return driver


def test_a_head_that_is_gone_ends_the_driver_with_4_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = Head()
    with drive(head, 60, monkeypatch) as driver:
        begun_s = time.monotonic()
        head.close()
        _, said = driver.communicate(timeout=90)
    assert driver.returncode == 4
    # Counted from the driver's last poll, which may have been a while before the end.
    assert LIMIT_S - 2 < time.monotonic() - begun_s < LIMIT_S + 20
    away = re.search(rf"Ray's head at {re.escape(head.address)} has not answered for (\d+) s", said)
    assert away and LIMIT_S <= int(away[1]) < LIMIT_S + 20
    assert "the same command goes on" in said


def test_a_head_that_comes_back_in_time_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head()
    with drive(head, LIMIT_S + 2, monkeypatch) as driver:
        head.close()
        time.sleep(1)
        back = Head(head.port)
        _, said = driver.communicate(timeout=90)
        back.close()
    assert (driver.returncode, said) == (0, "")
