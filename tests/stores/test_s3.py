"""Sets, run folders and archives on a real S3 server, behind a network that fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medray import _remote
from medray import store as store_module
from medray.checkpoints import Checkpoints
from medray.errors import DataError, ResourceError, StoreOutage
from medray.images import encode_png
from medray.pack.config import PackConfig
from medray.pack.pack import Job, pack
from medray.rundir import RunDir
from medray.store import Store
from tests import outcomes
from tests.chaos_budget import trials
from tests.faults import publisher
from tests.faults.kill import wait_for
from tests.faults.proxy import RATES
from tests.shard_sets import drain, make_set, stream
from tests.stores.conftest import S3

IMAGES = 20
SEEDS = [1, pytest.param(trials(3, 20), marks=pytest.mark.chaos)]


def cost(part: str, seeds: int, unit: str) -> None:
    """What the faults of that many seeds cost: each test says that the results are the same."""
    outcomes.record(
        part=part,
        fault="storage faults",
        trials=seeds,
        lost=0,
        unit=unit,
        recovered_s=None,
        wrong=0,
        note="S3 server behind a proxy",
    )


def tree(url: str | Path) -> dict[str, bytes]:
    store = Store(url)
    return {name: store.read_bytes(name) for name in store.names()}


# --- the store itself ---------------------------------------------------------------------------


def test_what_is_written_is_read_listed_and_removed(bucket: str, tmp_path: Path) -> None:
    store = Store(f"{bucket}/set")
    store.write_bytes("a/b.txt", b"hello")
    store.write_bytes("c", b"")
    (tmp_path / "finished").write_bytes(bytes(range(256)) * 2_000)
    store.publish(tmp_path / "finished", "deep/big")
    assert not (tmp_path / "finished").exists()
    assert store.read_bytes("a/b.txt") == b"hello" and store.read_bytes("c") == b""
    assert store.read_range("a/b.txt", 1, 3) == b"ell" and store.read_range("a/b.txt", 9, 2) == b""
    assert store.names() == ["a/b.txt", "c", "deep/big"] and store.names("a/") == ["a/b.txt"]
    assert store.size("deep/big") == 512_000 and not store.exists("a/b")
    with store.open("deep/big") as file:
        assert file.seek(255) == 255 and file.read(2) == b"\xff\0"
        assert len(file.read()) == 512_000 - 257
    with pytest.raises(FileNotFoundError):
        store.read_bytes("absent")
    store.remove("c")
    store.remove("c")
    store.remove_tree("deep")
    assert store.names() == ["a/b.txt"]
    store.remove_tree()
    assert store.names() == []


@pytest.mark.parametrize("cached", [False, True])
def test_what_another_machine_writes_is_seen_at_once(
    s3: S3, bucket: str, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    store = Store(f"{bucket}/set")
    monkeypatch.setattr(store._fs.dircache, "use_listings_cache", cached)
    store._fs.invalidate_cache()
    store.write_bytes("x", b"1")
    assert store.names() == ["x"] and not store.exists("other")
    store._fs.ls(store._root)
    s3.put(f"{bucket.removeprefix('s3://')}/set/other", b"2")
    assert store.exists("other") is not cached, "the control keeps listings, and does not see it"


@pytest.mark.parametrize("seeds", SEEDS)
def test_on_a_failing_network_a_store_does_the_same(
    s3: S3, bucket: str, impatient: None, seeds: int
) -> None:
    for seed in range(seeds):
        store = Store(f"{bucket}/{seed}")
        with s3.proxy.failing(seed, **RATES) as injected:
            for number in range(8):
                store.write_bytes(f"x{number:02d}", bytes([number]) * 3000)
                assert store.read_bytes(f"x{number:02d}") == bytes([number]) * 3000
                assert store.read_whole(f"x{number:02d}", 100, 50) == bytes([number]) * 50
            assert len(store.names()) == 8
            store.remove("x00")
            store.remove_tree()
            assert store.names() == []
        assert sum(injected.values()) >= 5


def test_an_object_is_read_in_one_request_and_what_is_cut_is_asked_for_again(
    s3: S3, bucket: str, impatient: None
) -> None:
    store, data = Store(bucket), bytes(range(256)) * 40
    store.write_bytes("x", data)
    before = len(s3.proxy.requests)
    assert store.read_bytes("x") == data
    assert [line.split()[0] for line in s3.proxy.requests[before:]] == ["GET"]
    with s3.proxy.failing(0, short=0.5) as injected:
        assert all(store.read_bytes("x") == data for _ in range(8))
    assert injected["short"] >= 3


def test_control_without_asking_again_the_same_ends_in_an_outage(
    s3: S3, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "RETRY_DELAYS_S", ())
    store = Store(bucket)
    with s3.proxy.failing(0, **RATES), pytest.raises(StoreOutage):
        for _ in range(40):
            store.write_bytes("x", bytes(3000))
            store.read_bytes("x")


def put(store: Store, data: bytes, folder: Path) -> None:
    """Publishes a file with this content as "big"."""
    (folder / "big").write_bytes(data)
    store.publish(folder / "big", "big")


@pytest.mark.chaos
@pytest.mark.parametrize("seeds", [trials(3, 20)])
def test_a_large_object_goes_up_in_parts_that_are_sent_again_one_by_one(
    s3: S3,
    bucket: str,
    tmp_path: Path,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
    seeds: int,
) -> None:
    monkeypatch.setattr(_remote, "PART_BYTES", 5 << 20)
    # So many that none fails them all: the whole object would be sent again.
    monkeypatch.setattr(_remote, "PART_ATTEMPTS", 10)
    store = Store(bucket)
    for seed in range(seeds):
        data = np.random.default_rng(seed).bytes((16 << 20) + seed)
        before = len(s3.proxy.requests)
        with s3.proxy.failing(seed, unavailable=0.2, reset=0.1) as injected:
            put(store, data, tmp_path)
        assert store.read_bytes("big") == data
        sent = [line for line in s3.proxy.requests[before:] if "partNumber=" in line]
        assert 4 <= len(sent) <= 4 + sum(injected.values())
        store.write_bytes("bytes", data)
        assert store.read_bytes("bytes") == data


@pytest.mark.chaos
def test_a_large_object_whose_last_answer_is_lost_is_there_or_sent_again(
    s3: S3, bucket: str, tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_remote, "PART_BYTES", 5 << 20)
    store, data = Store(bucket), np.random.default_rng(0).bytes(11 << 20)
    for content in (data, data[::-1]):
        with s3.proxy.losing("POST", "uploadId=") as lost:
            put(store, content, tmp_path)
        assert lost == [1], "the upload was completed, and nobody heard of it"
        assert store.read_bytes("big") == content


CALLS: dict[str, Callable[[Store], Any]] = {
    "read": lambda store: store.read_bytes("x"),
    "range": lambda store: store.read_range("x", 0, 1),
    "exists": lambda store: store.exists("x"),
    "size": lambda store: store.size("x"),
    "names": lambda store: store.names(),
    "write": lambda store: store.write_bytes("x", b"new"),
    "remove": lambda store: store.remove("x"),
    "remove tree": lambda store: store.remove_tree(),
}


def test_an_outage_that_lasts_is_called_one_by_every_call(
    s3: S3, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "RETRY_DELAYS_S", (0.0,) * 2)
    store = Store(f"{bucket}/set")
    store.write_bytes("x", b"old")
    with s3.proxy.down():
        for call in CALLS.values():
            with pytest.raises(StoreOutage, match="the store s3://.* failed at") as caught:
                call(store)
            assert caught.value.exit_code == 4 and "same command" in caught.value.hint
    for rates in ({"unavailable": 1.0}, {"internal": 1.0}, {"refused": 1.0}, {"lost": 1.0}):
        with s3.proxy.failing(0, **rates), pytest.raises(StoreOutage):
            store.exists("x")
    assert store.read_bytes("x") == b"old"


def test_a_server_that_never_answers_is_an_outage_in_time(
    s3: S3, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "RETRY_DELAYS_S", (0.0,) * 2)
    monkeypatch.setattr(_remote, "READ_TIMEOUT_S", 1.0)
    store = Store(bucket)
    asked = len(s3.proxy.requests)
    with s3.proxy.silent():
        with pytest.raises(StoreOutage, match="[Tt]imeout"):
            store.read_bytes("x")
        # The proxy may read a request after its client has given up.
        wait_for(lambda: len(s3.proxy.requests) - asked >= 3)
    assert len(s3.proxy.requests) - asked == 3, "each try asks once: no retries below ours"


def test_a_short_outage_is_waited_for(s3: S3, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(bucket)
    store.write_bytes("x", b"1")
    waits: list[float] = []

    def pause(delay_s: float, url: str, why: object) -> None:
        waits.append(delay_s)
        if len(waits) == 5:
            down.__exit__(None, None, None)

    monkeypatch.setattr(store_module, "pause", pause)
    down = s3.proxy.down()
    down.__enter__()
    assert store.read_bytes("x") == b"1"
    assert waits == [0.1, 0.3, 0.9, 2.7, 8.1]


def test_a_bucket_that_is_not_there_is_named_when_written_to(s3: S3, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot write to s3://no-such-bucket/x: .*bucket"):
        Store("s3://no-such-bucket/x").write_bytes("a", b"1")
    assert not Store("s3://no-such-bucket/x").exists("a")


# --- sets ---------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """16 images of 8 patients, with a table."""
    monkeypatch.setenv("MEDRAY_SECRET_KEY", "0123456789abcdef")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    folder = tmp_path / "source"
    folder.mkdir()
    rows = ["file,label,patient"]
    for k in range(16):
        pixels = np.random.default_rng(k).integers(0, 256, (20, 20), np.uint8)
        (folder / f"{k}.png").write_bytes(encode_png(pixels))
        rows.append(f"{k}.png,{'ab'[k % 3 == 0]},P{k // 2}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


def pack_to(source: Path, out: str | Path) -> None:
    config = PackConfig(source=str(source), size_px=16, samples_per_shard=16, workers=0, name="set")
    pack(config, Job(str(out)))


def packed(source: Path, out: str | Path) -> dict[str, bytes]:
    pack_to(source, out)
    return tree(out)


@pytest.mark.parametrize("seeds", SEEDS)
def test_a_pack_to_s3_over_a_failing_network_has_the_same_bytes(
    s3: S3, bucket: str, source: Path, tmp_path: Path, impatient: None, seeds: int
) -> None:
    wanted = packed(source, tmp_path / "out")
    for seed in range(seeds):
        with s3.proxy.failing(seed, **RATES) as injected:
            assert packed(source, f"{bucket}/{seed}") == wanted
        assert sum(injected.values()) >= 5
        before = len(s3.proxy.requests)
        pack_to(source, f"{bucket}/{seed}")
        assert not [line for line in s3.proxy.requests[before:] if line.startswith("PUT")]
    cost("pack", seeds, "shards")


@pytest.mark.parametrize("seeds", SEEDS)
def test_a_stream_from_s3_over_a_failing_network_has_the_same_order_and_no_repeats(
    s3: S3, bucket: str, tmp_path: Path, impatient: None, seeds: int
) -> None:
    make_set(tmp_path / "set", IMAGES)
    make_set(f"{bucket}/set", IMAGES)
    with stream(tmp_path / "set") as batches:
        wanted = drain(batches, 2 * IMAGES)
    assert len({key for key, _ in wanted[:IMAGES]}) == IMAGES
    met = 0
    for seed in range(seeds):
        with s3.proxy.failing(seed, **RATES) as injected:
            for _ in range(3):
                with stream(f"{bucket}/set", on_error="skip") as batches:
                    assert drain(batches, 2 * IMAGES) == wanted
                    assert batches.skipped == 0
        assert injected.total() > 0
        met += injected.total()
    assert met >= 3 * seeds
    cost("stream", seeds, "images")


def test_an_outage_while_streaming_is_not_damage_and_the_stream_goes_on(
    s3: S3, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "RETRY_DELAYS_S", ())
    make_set(f"{bucket}/set", IMAGES)
    with stream(f"{bucket}/set", on_error="skip") as batches:
        with s3.proxy.down(), pytest.raises(StoreOutage):
            batches.next(4)
        assert batches.skipped == 0
        assert len({key for key, _ in drain(batches, IMAGES)}) == IMAGES
    with s3.proxy.down(), pytest.raises(StoreOutage):
        stream(f"{bucket}/set", on_error="skip")


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_on_s3_is_refused_and_not_called_an_outage(
    bucket: str, impatient: None, damage: str
) -> None:
    make_set(f"{bucket}/set", IMAGES)
    home, name = Store(f"{bucket}/set"), "train-000001.tar"
    data = bytearray(home.read_bytes(name))
    data[3000] ^= 4
    if damage == "gone":
        home.remove(name)
    else:
        home.write_bytes(name, bytes(data if damage == "flip" else data[:4000]))
    with stream(f"{bucket}/set") as batches, pytest.raises(DataError) as caught:
        drain(batches, IMAGES)
    assert name in caught.value.where
    assert caught.value.code == ("MR-D026" if damage == "gone" else "MR-D024")


# --- run folders --------------------------------------------------------------------------------


def a_run(url: str, stops: tuple[int, ...] = (12, 18)) -> dict[str, bytes]:
    """A small run that is started again after each stop; what it leaves."""
    for stop in stops:
        with RunDir.start(
            url, config_yaml="a: 1\n", config_hash="0", command=["x"], resume=True
        ) as run:
            saved = Checkpoints(run.store, run.lease)
            newest = saved.newest()
            images = 0 if newest is None else newest.images
            run.cut_metrics(images)
            while images < stop:
                images += 6
                run.append_metrics({"images": images, "loss": 1 / images})
                if images % 12 == 0:
                    saved.save(images, publisher.tensors_at(images), {"data": images})
                    saved.prune(1)
    found = tree(url)
    kept = [name for name in found if "checkpoints/" in name or name == "metrics.jsonl"]
    return {name: found[name] for name in kept if "manifest" not in name}


@pytest.mark.parametrize("seeds", SEEDS)
def test_a_run_folder_on_a_failing_s3_ends_as_one_on_disk(
    s3: S3, bucket: str, tmp_path: Path, impatient: None, seeds: int
) -> None:
    wanted = a_run(str(tmp_path / "run"))
    for seed in range(seeds):
        with s3.proxy.failing(seed, **RATES) as injected:
            assert a_run(f"{bucket}/run{seed}") == wanted
        assert sum(injected.values()) >= 5
    cost("train", seeds, "images")


def test_an_outage_ends_a_run_with_exit_code_4_and_the_same_command_goes_on(
    s3: S3, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medray import lease as lease_module

    monkeypatch.setattr(lease_module, "SETTLE_S", 0.0)
    monkeypatch.setattr(store_module, "RETRY_DELAYS_S", ())
    a_run(f"{bucket}/run", (12,))
    saved = Checkpoints(Store(f"{bucket}/run"), None)
    with s3.proxy.down(), pytest.raises(StoreOutage):
        saved.newest()
    newest = saved.newest()
    assert newest is not None and newest.images == 12
