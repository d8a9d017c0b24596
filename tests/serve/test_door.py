"""The own door: slow and bad sockets end, what was accepted is answered before it closes."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from medray.errors import ResourceError
from serve import door, gate, keys
from serve.__main__ import main
from serve.front import Front
from serve.in_process import InProcess
from serve.problems import Problem
from serve.records import Made, Order
from serve.settings import Args
from tests.archive.made_parts import make_generator
from tests.serve.fakes import GENERATE, Fake, args, book, loads, one, opened

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def connected() -> Iterator[Callable[[int], socket.socket]]:
    """What makes connections, which are closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda port: stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))


Connect = Callable[[int], socket.socket]


def ended(made: socket.socket) -> bool:
    """Whether the other side closed."""
    try:
        while made.recv(65536):
            pass
    except (ConnectionError, TimeoutError) as error:
        return isinstance(error, ConnectionError)
    return True


def asked(port: int, token: str, index: int = 1) -> int:
    """The status of one image."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    connection.request("POST", GENERATE, json.dumps(one(index)), headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def test_slow_heads_and_silent_connections_end_and_others_do_not_notice(
    tmp_path: Path, connected: Connect
) -> None:
    settings = args(tmp_path, header_timeout_s=2, body_timeout_s=2)
    with opened(settings) as (port, tokens):
        silent = [connected(port) for _ in range(20)]
        dripping = [connected(port) for _ in range(20)]
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.1):
                for made in dripping:
                    try:
                        made.send(b"x-a: b\r\n")
                    except OSError:
                        return

        for made in dripping:
            made.send(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n")
        thread = threading.Thread(target=drip)
        thread.start()
        try:
            assert asked(port, tokens["maker"]) == 200
            begun_s = time.monotonic()
            assert all(ended(made) for made in [*silent, *dripping])
            assert time.monotonic() - begun_s < 15
        finally:
            stop.set()
            thread.join()
        assert asked(port, tokens["maker"]) == 200


def test_an_idle_connection_is_kept_for_a_while_between_requests(tmp_path: Path) -> None:
    with opened(args(tmp_path, header_timeout_s=2)) as (port, _):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        for _ in range(2):
            connection.request("GET", "/livez")
            assert connection.getresponse().read() == b'{"state":"live"}'
            kept = connection.sock
            time.sleep(2.5)
        assert kept is connection.sock
        connection.close()


def test_a_head_without_end_is_refused(tmp_path: Path, connected: Connect) -> None:
    with opened(args(tmp_path)) as (port, _):
        made = connected(port)
        made.sendall(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx-long: ")
        try:
            for _ in range(100):
                made.sendall(b"a" * 4096)
            first = made.recv(64)
        except ConnectionError:
            first = b"HTTP/1.1 431"
        assert first.startswith(b"HTTP/1.1 431")


def test_more_connections_than_allowed_are_turned_away(tmp_path: Path, connected: Connect) -> None:
    with opened(args(tmp_path, connections=8)) as (port, tokens):
        held = [connected(port) for _ in range(8)]
        time.sleep(0.1)
        assert ended(connected(port))
        for made in held:
            made.close()
        # The door learns of it a little later.
        until_s, status = time.monotonic() + 20, 0
        while not status and time.monotonic() < until_s:
            time.sleep(0.05)
            with contextlib.suppress(ConnectionError, http.client.HTTPException):
                status = asked(port, tokens["maker"])
        assert status == 200


def test_what_is_not_http_is_answered_and_ended(tmp_path: Path, connected: Connect) -> None:
    with opened(args(tmp_path, header_timeout_s=2)) as (port, _):
        for junk in (
            b"\x16\x03\x01\x02\x00",
            b"GET\r\n\r\n",
            b"\x00" * 100,
            b"PRI * HTTP/2.0\r\n\r\n",
        ):
            made = connected(port)
            made.sendall(junk)
            try:
                first = made.recv(12)
            except ConnectionResetError:
                first = b""
            assert first in (b"HTTP/1.1 400", b"HTTP/1.1 404", b"")
            made.close()


def test_a_port_of_another_service_is_refused_and_one_of_the_same_is_shared(
    tmp_path: Path,
) -> None:
    with opened(args(tmp_path)) as (port, tokens):
        with pytest.raises(ResourceError, match="another service"):
            door.check_port(args(tmp_path / "elsewhere", port=port))
        with opened(args(tmp_path, port=port)) as (shared, _):
            assert shared == port
            door.check_port(args(tmp_path, port=port))
        assert asked(port, tokens["maker"]) == 200
    with socket.create_server(("127.0.0.1", 0)) as other:
        with pytest.raises(ResourceError):
            door.check_port(args(tmp_path, port=other.getsockname()[1]))


def test_a_door_that_still_loads_its_models_gets_no_caller(tmp_path: Path) -> None:
    loading, go_on = threading.Event(), threading.Event()

    def load(*words: Any) -> Any:
        loading.set()
        go_on.wait(30)
        return loads(*words)

    key_book = book()
    with (
        contextlib.ExitStack() as stack,
        opened(args(tmp_path), key_book=key_book) as (port, tokens),
    ):
        sister = opened(args(tmp_path, port=port), load=load, key_book=key_book)
        starting = threading.Thread(target=stack.enter_context, args=(sister,))
        starting.start()
        assert loading.wait(20)
        # Were it dealt out every second caller, one of twenty would come to it and wait.
        begun_s = time.monotonic()
        assert {asked(port, tokens["maker"], n) for n in range(20)} == {200}
        assert time.monotonic() - begun_s < 15 and starting.is_alive()
        go_on.set()
        starting.join()


def test_a_closing_door_answers_what_is_under_way(tmp_path: Path) -> None:
    go_on, settings = threading.Event(), args(tmp_path)
    (tokens, known), statuses, fronts = book(), list[int](), list[Front]()

    class Waiting(Fake):
        def make(self, orders: Sequence[Order], formats: Sequence[str]) -> list[Made]:
            go_on.wait(60)
            return super().make(orders, formats)

    def make_app() -> Front:
        services = InProcess(settings, load=lambda spec, *_: Waiting(spec), keys=known)
        fronts.append(gate.front(services))
        return fronts[0]

    with door.opened(make_app, settings) as port:
        threads = [
            threading.Thread(target=lambda n=n: statuses.append(asked(port, tokens["maker"], n)))
            for n in range(20)
        ]
        for thread in threads:
            thread.start()
        until_s = time.monotonic() + 20
        while fronts[0].running < 20 and time.monotonic() < until_s:
            time.sleep(0.01)
        assert fronts[0].running == 20
        # Answers come while it closes.
        threading.Timer(0.3, go_on.set).start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 20


def _ask_until_refused(port: int, token: str, told: list[Any], stop: threading.Event) -> None:
    """One connection at a time; what was answered, and how the last one ended."""
    while not stop.is_set():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.connect()
        except ConnectionError:
            return
        try:
            headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
            connection.request("POST", GENERATE, json.dumps(one(1)), headers)
            answer = connection.getresponse()
            answer.read()
            told.append(answer.status)
        except (ConnectionError, http.client.HTTPException) as error:
            told.append(type(error).__name__)
        finally:
            connection.close()


def test_sigterm_drains_the_process_and_no_accepted_request_fails(tmp_path: Path) -> None:
    make_generator(tmp_path / "generator")
    token, key = keys.make("maker", ["generate"])
    keys.write(tmp_path / "keys.json", [key])
    words = [f"generator={tmp_path / 'generator'}", f"keys={tmp_path / 'keys.json'}", "port=0"]
    command = [sys.executable, "-m", "serve", *words, f"state_dir={tmp_path / 'state'}"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            _drain(process, token)
        finally:
            process.kill()


def _drain(process: subprocess.Popen[str], token: str) -> None:
    assert process.stderr is not None
    port = int(process.stderr.readline().rpartition(":")[2])
    _wait_ready(port)
    told: list[Any] = []
    stop = threading.Event()
    threads = [
        threading.Thread(target=_ask_until_refused, args=(port, token, told, stop))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    until_s = time.monotonic() + 60
    while len(told) < 24 and time.monotonic() < until_s:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    stop.set()
    for thread in threads:
        thread.join()
    assert len(told) > 8
    # The kernel may have taken a connection that the process never did.
    answered = [what for what in told if isinstance(what, int)]
    assert set(answered) == {200}, told
    assert len(told) - len(answered) <= len(threads)


def _wait_ready(port: int) -> None:
    until_s = time.monotonic() + 120
    while time.monotonic() < until_s:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    raise AssertionError("the service did not become ready")


@pytest.mark.parametrize(
    "word", ["host=0.0.0.0", "hots=127.0.0.1", "port=99999", "keys=/nowhere", "x", "batch=none"]
)
def test_settings_that_cannot_be_end_the_process_with_2(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word, f"state_dir={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert word.partition("=")[0] in said and len(said.splitlines()) < 15


def test_a_model_that_is_not_there_ends_the_process_with_2_and_no_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = tmp_path / "absent"
    words = [f"generator={absent}", f"state_dir={tmp_path}", "port=0"]
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        assert main(words) == 2
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), handlers, strict=True):
            signal.signal(number, handler)
    said = capsys.readouterr().err
    assert f"{absent} holds no generator" in said and "Traceback" not in said


def test_a_door_whose_service_cannot_start_says_so(tmp_path: Path) -> None:
    args = Args(generator=str(tmp_path / "absent"), state_dir=str(tmp_path), port=0)
    with (
        pytest.raises(Problem, match="holds no generator"),
        door.opened(lambda: gate.front(InProcess(args)), args),
    ):
        pass
