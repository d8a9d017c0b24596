"""Sets on a real web server: read only, by ranges, over https with an authority of one's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from medray import store as store_module
from medray.errors import DataError, ResourceError, StoreOutage, UsageError
from medray.images import encode_png
from medray.pack.config import PackConfig
from medray.pack.pack import Job, pack
from medray.shards import read_index, verify
from medray.store import Store
from tests.chaos_budget import trials
from tests.faults.proxy import RATES, Proxy
from tests.shard_sets import drain, make_set, stream
from tests.stores.web import Web

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 20
# Streams a set and prints its keys.
STREAMS = """
import sys
from tests.shard_sets import drain, stream
with stream(sys.argv[1]) as batches:
    print(*(key for key, _ in drain(batches, int(sys.argv[2]))))
"""


@pytest.fixture
def home(web: Web, tmp_path: Path) -> Path:
    """The folder of a set that the server serves, under the name of the test's own folder."""
    folder = web.root / tmp_path.name
    make_set(folder, IMAGES)
    return folder


@pytest.fixture
def url(web: Web, home: Path) -> str:
    """The set by http."""
    return f"{web.http}/{home.name}"


@pytest.fixture
def proxied(web: Web, home: Path) -> Iterator[tuple[Proxy, str]]:
    """The set behind a proxy that can fail."""
    proxy = Proxy(web.http_port)
    yield proxy, f"{proxy.url}/{home.name}"
    proxy.close()


def test_files_of_a_web_server_are_read_whole_by_range_and_by_their_size(
    web: Web, url: str, home: Path
) -> None:
    store, name = Store(url), "train-000001.tar"
    data = (home / name).read_bytes()
    assert store.read_bytes(name) == data and store.size(name) == len(data)
    assert store.read_range(name, 700, 50) == data[700:750]
    assert store.read_range(name, len(data) - 5, 50) == data[-5:]
    assert store.read_range(name, len(data) + 5, 50) == b""
    with store.open(name) as file:
        assert file.read() == data
    assert store.exists("index.json") and not store.exists("absent")
    with pytest.raises(FileNotFoundError):
        store.read_bytes("absent")
    with pytest.raises(FileNotFoundError):
        store.size("absent")
    assert " 206 " in " ".join(web.requests()), "the ranges were asked for as such"
    slow = Store(f"{web.http}/noranges/{home.name}")
    assert slow.read_range(name, 700, 50) == data[700:750], "a server without ranges sends all"


def test_a_set_streams_from_a_web_server_as_from_a_folder(url: str, home: Path) -> None:
    with stream(home) as batches:
        wanted = drain(batches, 2 * IMAGES)
    with stream(url) as batches:
        assert drain(batches, 2 * IMAGES) == wanted
    assert read_index(Store(url)).name == "small"


def test_over_https_the_authority_comes_from_the_environment(web: Web, home: Path) -> None:
    with stream(home) as batches:
        wanted = [key for key, _ in drain(batches, IMAGES)]
    command = [sys.executable, "-c", STREAMS, f"{web.https}/{home.name}", str(IMAGES)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    known = {**environment, "SSL_CERT_FILE": str(web.authority)}
    done = subprocess.run(command, env=known, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == wanted, done.stderr


def test_a_certificate_of_an_unknown_authority_is_refused_at_once(web: Web, home: Path) -> None:
    with pytest.raises(ResourceError, match="[Cc]ertificate") as caught:
        Store(f"{web.https}/{home.name}").read_bytes("index.json")
    assert not isinstance(caught.value, StoreOutage) and "certificate" in caught.value.hint
    assert [line for line in web.requests() if home.name in line] == []


def test_a_folder_is_listed_where_the_server_lists_it_and_refused_where_not(
    web: Web, url: str, home: Path
) -> None:
    (home / "below").mkdir()
    (home / "below" / "x.txt").write_text("x")
    names = Store(home).names()
    assert Store(f"{web.http}/listed/{home.name}").names() == names and "below/x.txt" in names
    with pytest.raises(ResourceError, match="failed at find: .*403"):
        Store(url).names()


def test_a_set_is_verified_and_a_table_packed_from_a_server_that_lists_nothing(
    web: Web, url: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDRAY_SECRET_KEY", "0123456789abcdef")
    assert verify(Store(url)) == []
    stray = home / "train-000009.tar"
    stray.write_bytes(b"x")
    assert verify(Store(url)) == [], "nobody can see it"
    (found,) = verify(Store(f"{web.http}/listed/{home.name}"))
    assert found.code == "MR-D027"
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 9), np.uint8)
        (home / f"{number}.png").write_bytes(encode_png(pixels))
    (home / "labels.csv").write_text(
        "file,label,split\n"
        + "\n".join(f"{number}.png,{'ab'[number % 2]},train" for number in range(5))
    )
    for place in (url, f"{web.http}/listed/{home.name}"):
        config = PackConfig(
            source=f"{place}/labels.csv", size_px=8, workers=0, max_rejected=1, bits="8", name="s"
        )
        out = tmp_path / str(len(place))
        index = pack(config, Job(str(out)))
        assert index is not None and sum(shard.samples for shard in index.shards) == 4
        assert b"4.png,MR-D206" in (out / "rejected.csv").read_bytes()


def test_nothing_is_written_to_a_web_server(web: Web, url: str, tmp_path: Path) -> None:
    store = Store(url)
    (tmp_path / "x").write_bytes(b"1")
    for write in (
        lambda: store.write_bytes("x", b"1"),
        lambda: store.publish(tmp_path / "x", "x"),
        lambda: store.remove("index.json"),
        lambda: store.remove_tree(),
    ):
        with pytest.raises(UsageError, match="can be read only"):
            write()
    assert not any("PUT" in line or "POST" in line for line in web.requests())
    assert store.exists("index.json") and (tmp_path / "x").exists()


@pytest.mark.parametrize("damage", ["gone", "changed", "cut", "idx"])
def test_a_shard_that_is_gone_or_changed_on_the_server_is_refused_and_named(
    url: str, home: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(store_module, "RETRY_DELAYS_S", (0.0,) * 4)
    tar, idx = home / "train-000001.tar", home / "train-000001.idx"
    data = bytearray(tar.read_bytes())
    data[3000] ^= 4
    if damage == "gone":
        tar.unlink()
    elif damage == "idx":
        idx.write_bytes((home / "train-000000.idx").read_bytes())
    else:
        tar.write_bytes(data if damage == "changed" else data[:4000])
    with stream(url) as batches, pytest.raises(DataError) as caught:
        drain(batches, IMAGES)
    name = idx.name if damage == "idx" else tar.name
    assert name in caught.value.where
    codes = {"gone": "MR-D026", "changed": "MR-D024", "cut": "MR-D024", "idx": "MR-D023"}
    assert caught.value.code == codes[damage]


@pytest.mark.parametrize("seeds", [2, pytest.param(trials(10, 20), marks=pytest.mark.chaos)])
def test_over_a_failing_network_a_set_streams_the_same(
    proxied: tuple[Proxy, str], home: Path, monkeypatch: pytest.MonkeyPatch, seeds: int
) -> None:
    monkeypatch.setattr(store_module, "RETRY_DELAYS_S", (0.0,) * 6)
    proxy, url = proxied
    with stream(home) as batches:
        wanted = drain(batches, 2 * IMAGES)
    for seed in range(seeds):
        with proxy.failing(seed, **{**RATES, "short": 0.2}) as injected:
            for _ in range(3):
                with stream(url, on_error="skip") as batches:
                    assert drain(batches, 2 * IMAGES) == wanted
                    assert batches.skipped == 0
        assert sum(injected.values()) >= 5


def test_an_outage_of_a_web_server_is_never_taken_for_something_absent(
    proxied: tuple[Proxy, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "RETRY_DELAYS_S", (0.0,) * 2)
    proxy, url = proxied
    store = Store(url)
    calls = (
        lambda: store.exists("index.json"),
        lambda: store.size("index.json"),
        lambda: store.read_bytes("index.json"),
        lambda: Store(url.replace(proxy.url, f"{proxy.url}/listed")).names(),
        lambda: stream(url, on_error="skip"),
    )
    for call in calls:
        with proxy.down(), pytest.raises(StoreOutage):
            call()
        with proxy.failing(0, unavailable=1.0), pytest.raises(StoreOutage, match="503"):
            call()
        with proxy.failing(0, refused=1.0), pytest.raises(StoreOutage):
            call()
    assert store.exists("index.json")
