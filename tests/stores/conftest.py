"""Real servers on loopback: moto's S3 behind a proxy that can fail, and nginx over https."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from medray import lease as lease_module
from medray import store as store_module
from tests.faults.kill import kill_group
from tests.faults.proxy import Proxy, free_port
from tests.stores.web import NGINX, Web, dies_with_its_parent

START_S = 120.0
# A port is free when it is chosen; another may take it before the server does.
STARTS = 3


@dataclass(frozen=True)
class S3:
    """An S3 server, and the proxy that medray reaches it through."""

    port: int
    proxy: Proxy

    def make_bucket(self, name: str) -> str:
        """The URL of a new bucket."""
        self.put(name, b"")
        return f"s3://{name}"

    def put(self, path: str, data: bytes) -> None:
        """Writes past medray and the proxy, as another machine would."""
        url = f"http://127.0.0.1:{self.port}/{path}"
        urllib.request.urlopen(urllib.request.Request(url, data, method="PUT")).read()


def _answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Returns when it answers; False where it has ended instead."""
    until_s = time.monotonic() + START_S
    while process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).read()
            return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            assert time.monotonic() < until_s, f"{url} does not answer"
            time.sleep(0.1)
    return False


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """moto's server behind a proxy; the environment names it to every client of S3."""
    for module in ("s3fs", "moto", "flask"):
        pytest.importorskip(module, reason=f"{module} is not installed: no S3 to test with")
    with _moto() as port, _named_to_clients(Proxy(port)) as proxy:
        yield S3(port, proxy)


@contextmanager
def _moto() -> Iterator[int]:
    """The port of moto's server, which runs while the context lasts."""
    for _ in range(STARTS):
        port = free_port()
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=dies_with_its_parent,
        )
        try:
            if _answers(f"http://127.0.0.1:{port}/moto-api/", process):
                yield port
                return
        finally:
            kill_group(process)
    raise AssertionError(f"moto's server ended at each of {STARTS} starts")


@contextmanager
def _named_to_clients(proxy: Proxy) -> Iterator[Proxy]:
    names = {
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        try:
            yield proxy
        finally:
            proxy.close()


@pytest.fixture
def bucket(s3: S3) -> str:
    """The URL of a bucket of the test's own."""
    return s3.make_bucket(f"b-{secrets.token_hex(8)}")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between tries, nor for a lease to settle; no thread beats between the draws."""
    monkeypatch.setattr(store_module, "RETRY_DELAYS_S", (0.0,) * 6)
    monkeypatch.setattr(lease_module, "SETTLE_S", 0.0)
    monkeypatch.setattr(lease_module, "BEAT_S", 3600.0)


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """nginx on loopback over a folder, by http, and by https with an authority of its own."""
    if not Path(NGINX).exists():
        pytest.skip(f"{NGINX} is not here: apt-get install nginx-light")
    for _ in range(STARTS):
        with Web(tmp_path_factory.mktemp("web")) as found:
            if _answers(f"{found.http}/", found.process):
                yield found
                return
    raise AssertionError(f"nginx ended at each of {STARTS} starts")
