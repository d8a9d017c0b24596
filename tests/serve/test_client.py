"""The thin client: images with addresses, errors with codes, patience where it is asked for."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from medray.images.png import encode_png
from serve import client as client_module
from serve.client import Client, Refused
from tests.serve.fakes import args, book, opened


def test_images_come_with_their_addresses_however_many(tmp_path: Path) -> None:
    with opened(args(tmp_path)) as (port, tokens):
        with Client(f"http://127.0.0.1:{port}", tokens["maker"]) as client:
            (one,) = client.generate(seed=3, start=5)
            assert one.address.endswith(":3:5") and one.data == one.address.encode()
            many = client.generate(150, seed=3, start=5)
            assert [i.address.rpartition(":")[2] for i in many] == [str(n) for n in range(5, 155)]
            assert all(image.data == image.address.encode() for image in many)
            assert many[0] == one


def test_files_are_judged_one_or_many(tmp_path: Path) -> None:
    png = encode_png(np.zeros((8, 8), np.uint8))
    models = {"classifier": str(tmp_path / "judge")}
    with opened(args(tmp_path, **models)) as (port, tokens):
        with Client(f"http://127.0.0.1:{port}", tokens["admin"]) as client:
            for count in (1, 3):
                told = client.features(*[png] * count)
                assert len(told["images"]) == count


def test_refusals_have_code_hint_and_request_id(tmp_path: Path) -> None:
    with opened(args(tmp_path)) as (port, tokens):
        with Client(f"http://127.0.0.1:{port}", tokens["maker"]) as client:
            with pytest.raises(Refused) as refused:
                client.generate(model="nobody")
            assert (refused.value.status, refused.value.code) == (404, "model_unknown")
            assert refused.value.hint and refused.value.request_id
            with pytest.raises(Refused, match="scope_missing"):
                client.put_model("generator", kind="generator", url=str(tmp_path / "two"))
        with Client(f"http://127.0.0.1:{port}", tokens["admin"]) as client:
            put = client.put_model("generator", kind="generator", url=str(tmp_path / "two"))
            assert put["sha256"] == client.models()[0]["sha256"]
        with Client(f"http://127.0.0.1:{port}") as client:
            with pytest.raises(Refused, match="key_missing"):
                client.models()
    with pytest.raises(ValueError, match="url must be"):
        Client("localhost:8700")


def test_it_waits_as_long_as_it_is_told_and_not_longer_than_its_patience(tmp_path: Path) -> None:
    with opened(args(tmp_path), key_book=book(rate_per_s=2.0, burst=2)) as (port, tokens):
        with Client(f"http://127.0.0.1:{port}", tokens["maker"], patience_s=20) as client:
            begun_s = time.monotonic()
            for index in range(5):
                client.generate(start=index)
            assert time.monotonic() - begun_s > 0.9
        with Client(f"http://127.0.0.1:{port}", tokens["maker"], patience_s=0) as client:
            with pytest.raises(Refused, match="rate_exceeded"):
                for index in range(200):
                    client.generate(start=index)


def test_a_connection_that_broke_is_made_again(tmp_path: Path) -> None:
    with opened(args(tmp_path, keep_alive_s=1)) as (port, tokens):
        with Client(f"http://127.0.0.1:{port}", tokens["maker"]) as client:
            client.generate()
            time.sleep(1.5)
            assert len(client.generate()) == 1


@contextlib.contextmanager
def answering(*counts: int) -> Iterator[str]:
    """The address of a server that ends each of its connections after so many answers."""
    answer = b'HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{"models": []}'
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for count in counts:
                connection, _ = server.accept()
                with connection:
                    for _ in range(count):
                        connection.recv(65536)
                        connection.sendall(answer)

        server.settimeout(20)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)
        assert not thread.is_alive(), "not all of its connections were used"


def test_an_idle_connection_that_ended_costs_a_client_without_patience_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "IDLE_S", 0.0)
    with answering(1, 2, 1) as url, Client(url, patience_s=0) as client:
        for _ in range(4):
            assert client.models() == []


def test_a_connection_that_breaks_while_it_is_used_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "IDLE_S", 60.0)
    with answering(1) as url, Client(url, patience_s=0) as client:
        assert client.models() == []
        with pytest.raises(ConnectionError):
            client.models()


def test_a_new_connection_that_breaks_and_the_start_of_a_job_are_not_asked_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "IDLE_S", 0.0)
    with answering(1, 0) as url, Client(url, patience_s=0) as client:
        assert client.models() == []
        with pytest.raises(ConnectionError):
            client.models()
    with answering(1) as url, Client(url, patience_s=20) as client:
        assert client.models() == []
        with pytest.raises(ConnectionError):
            client.start_job(5)


def test_a_quota_is_for_all_connections_of_a_key(tmp_path: Path) -> None:
    made = []
    with opened(args(tmp_path), key_book=book(images_per_day=20)) as (port, tokens):

        def ask() -> None:
            with Client(f"http://127.0.0.1:{port}", tokens["maker"], patience_s=0) as client:
                for index in range(10):
                    try:
                        made.extend(client.generate(start=index))
                    except Refused as refused:
                        assert refused.code == "quota_exceeded"

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(made) == 20
