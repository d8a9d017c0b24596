"""A driver ends with exit code 4 when its cluster's head stays away, and not before."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest

DRIVER = """
import sys, time
from medray.dist import _head
_head.POLL_S = 0.05
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
    """A driver that works for so long; it lets the head be away for a second."""
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "11")
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
        _, said = driver.communicate(timeout=30)
    assert driver.returncode == 4
    assert 0.9 < time.monotonic() - begun_s < 20
    assert f"Ray's head at {head.address} has not answered for 1 s" in said
    assert "the same command goes on" in said


def test_a_head_that_comes_back_in_time_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head()
    with drive(head, 3, monkeypatch) as driver:
        head.close()
        time.sleep(0.4)
        back = Head(head.port)
        _, said = driver.communicate(timeout=30)
        back.close()
    assert (driver.returncode, said) == (0, "")
