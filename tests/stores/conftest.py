"""Real servers on loopback: moto's S3 behind a proxy that can fail, and nginx over https."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from medray import lease as lease_module
from medray import store as store_module
from tests.faults.kill import kill_group
from tests.faults.proxy import Proxy, free_port
from tests.stores.web import NGINX, Web, dies_with_its_parent

START_S = 30.0


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


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes]) -> None:
    until_s = time.monotonic() + START_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).read()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < until_s, f"{url} does not answer"
            time.sleep(0.1)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """moto's server behind a proxy; the environment names it to every client of S3."""
    for module in ("s3fs", "moto", "flask"):
        pytest.importorskip(module, reason=f"{module} is not installed: no S3 to test with")
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=dies_with_its_parent,
    )
    proxy = Proxy(port)
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
            _wait_until_it_answers(f"http://127.0.0.1:{port}/moto-api/", process)
            yield S3(port, proxy)
        finally:
            kill_group(process)
            proxy.close()


@pytest.fixture
def bucket(s3: S3) -> str:
    """The URL of a bucket of the test's own."""
    return s3.make_bucket(f"b-{secrets.token_hex(8)}")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between tries, nor for a lease to settle."""
    monkeypatch.setattr(store_module, "RETRY_DELAYS_S", (0.0,) * 6)
    monkeypatch.setattr(lease_module, "SETTLE_S", 0.0)


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """nginx on loopback over a folder, by http, and by https with an authority of its own."""
    if not Path(NGINX).exists():
        pytest.skip(f"{NGINX} is not here: apt-get install nginx-light")
    with Web(tmp_path_factory.mktemp("web")) as found:
        _wait_until_it_answers(f"http://127.0.0.1:{found.http_port}/", found.process)
        yield found
