"""The failing store itself, and what stands on it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from medray import lease as lease_module
from medray import store as store_module
from medray.checkpoints import Checkpoints
from medray.errors import DataError, ResourceError, StoreOutage
from medray.rundir import RunDir
from medray.store import Store
from tests.faults import publisher, stores

RATES = {"unavailable": 0.05, "reset": 0.05, "short_read": 0.05, "stall": 0.02}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    stores.register()
    monkeypatch.setattr(store_module, "RETRY_DELAYS_S", (0.0,) * 4)
    monkeypatch.setattr(lease_module, "SETTLE_S", 0.0)
    # No thread beats between the seeded draws of a run that takes longer.
    monkeypatch.setattr(lease_module, "BEAT_S", 3600.0)
    yield
    stores.register()


def _read_often(store: Store) -> list[str]:
    """What comes of a hundred reads."""
    found = []
    for _ in range(100):
        try:
            found.append(store._fs.cat_file("/bucket/x").decode())
        except OSError as error:
            found.append(type(error).__name__)
    return found


def test_without_faults_it_is_a_store() -> None:
    store = Store("faulty://bucket")
    store.write_bytes("a/b", b"data")
    assert store.read_bytes("a/b") == b"data" and store.names() == ["a/b"]
    assert store.size("a/b") == 4 and store.exists("a/b") and not store.exists("c")
    store.remove("a/b")
    assert store.names() == []


def test_faults_come_from_the_seed_at_their_rates_and_are_counted() -> None:
    store = Store("faulty://bucket")
    store.write_bytes("x", b"0123456789")
    with stores.faults(seed=1, unavailable=0.2, reset=0.1, short_read=0.1) as faults:
        first = _read_often(store)
    with stores.faults(seed=1, unavailable=0.2, reset=0.1, short_read=0.1):
        assert _read_often(store) == first
    with stores.faults(seed=2, unavailable=0.2, reset=0.1, short_read=0.1):
        assert _read_often(store) != first
    assert 10 <= faults.injected["unavailable"] == first.count("OSError") <= 32
    assert 2 <= faults.injected["reset"] == first.count("ConnectionResetError") <= 20
    short = sum(text.isdigit() and len(text) < 10 or text == "" for text in first)
    assert 2 <= faults.injected["short_read"] == short <= 20
    assert faults.total == faults.injected["unavailable"] + faults.injected["reset"] + short
    assert _read_often(store) == ["0123456789"] * 100, "and end with the context"


def test_a_stall_waits() -> None:
    waits: list[float] = []
    store = Store("faulty://bucket")
    store.write_bytes("x", b"1")
    with stores.faults(stall=1.0, stall_s=2.0, sleep=waits.append):
        store.read_bytes("x")
    assert waits and set(waits) == {2.0}


def test_reads_of_an_open_file_come_short_too_and_are_asked_for_again() -> None:
    store = Store("faulty://bucket")
    store.write_bytes("x", bytes(range(100)))
    with stores.faults(short_read=0.5) as faults:
        for _ in range(20):
            with store.open("x") as file:
                assert file.read(80) + file.read() == bytes(range(100))
    assert faults.injected["short_read"] >= 5
    with stores.faults(short_read=1.0), store.open("x") as file:
        with pytest.raises(StoreOutage, match="arrived"):
            file.read(80)


def _train_remotely(url: str, seed: int, rates: dict[str, float]) -> tuple[dict[str, bytes], int]:
    """A small run on the store in three starts; its files and the faults it met."""
    with stores.faults(seed=seed, sleep=lambda seconds: None, **rates) as faults:
        for stop in (12, 28, 36):
            with RunDir.start(
                url, config_yaml="a: 1\n", config_hash="0", command=["x"], resume=True
            ) as run:
                _some_images(run, stop)
    store = Store(url)
    kept = [n for n in store.names() if "checkpoints/" in n or n == "metrics.jsonl"]
    return {n: store.read_bytes(n) for n in kept if "manifest" not in n}, faults.total


def _some_images(run: RunDir, stop: int) -> None:
    saved = Checkpoints(run.store, run.lease)
    newest = saved.newest()
    images = 0 if newest is None else newest.images
    run.cut_metrics(images)
    while images < stop:
        images += 4
        run.append_metrics({"images": images, "loss": 1 / images})
        if images % 12 == 0:
            saved.save(images, publisher.tensors_at(images), {"data": images})
            saved.prune(2)


@pytest.mark.parametrize("seed", range(5))
def test_a_run_on_a_failing_store_ends_as_on_a_sound_one(seed: int) -> None:
    clean, none = _train_remotely("faulty://clean/run", 0, {})
    found, injected = _train_remotely(f"faulty://bucket/run{seed}", seed, RATES)
    assert none == 0 and injected >= 10
    assert found == clean


def test_control_without_asking_again_the_store_stops_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_module, "RETRY_DELAYS_S", ())
    with pytest.raises(ResourceError, match="failed at|arrived"):
        for seed in range(5):
            _train_remotely(f"faulty://bucket/run{seed}", seed, RATES)


def test_an_outage_is_not_called_damage_and_damage_not_an_outage() -> None:
    store = Store("faulty://bucket")
    saved = Checkpoints(store, publisher.Free())
    saved.save(8, publisher.tensors_at(8), {})
    with stores.faults(unavailable=1.0), pytest.raises(ResourceError, match="503"):
        saved.newest()
    newest = saved.newest()
    assert newest is not None
    np.testing.assert_array_equal(
        saved.load(newest, as_numpy=True)[0]["weights"], publisher.tensors_at(8)["weights"]
    )
    store.write_bytes("checkpoints/0000000008/state.json", b"{}")
    with pytest.raises(DataError, match="no checkpoint"):
        saved.newest()
