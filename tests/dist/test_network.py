"""The interface by which ranks on several machines meet."""

from __future__ import annotations

import socket

import pytest

from medray.dist._network import interface_to


def test_the_interface_is_the_one_that_reaches_the_meeting_point() -> None:
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    assert interface_to("tcp://127.0.0.1:1234") == loopback


def test_torchruns_meeting_point_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert interface_to("env://") == interface_to("tcp://127.0.0.1:1")


@pytest.mark.parametrize("method", ["env://", "tcp://[::1]:1", "file:///tmp/meeting"])
def test_where_there_is_no_such_address_gloo_chooses(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert interface_to(method) is None
