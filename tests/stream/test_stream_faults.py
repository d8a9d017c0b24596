"""Damage, outages and caches: what is skipped is the same at any rank count, nothing else is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from medray import log, store
from medray.errors import DataError, ResourceError, UsageError
from medray.store import Store
from medray.stream import Source, Stream
from tests.faults import stores
from tests.faults.damage import cut, drop, flip_bit
from tests.shard_sets import drain, make_set, stream

IMAGES = 20


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """20 samples in shards of 8, 8 and 4."""
    make_set(tmp_path / "set", IMAGES, encoding="raw")
    return tmp_path / "set"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between tries."""
    monkeypatch.setattr(store, "RETRY_DELAYS_S", (0.0,) * 4)


def damage(folder: Path, *numbers: int) -> set[str]:
    """Flips a bit in each of these samples of the first shard; their keys."""
    lines = (folder / "train-000000.idx").read_text().splitlines()
    rows = [json.loads(lines[number]) for number in numbers]
    for row in rows:
        _, offset, size, _ = row["members"][-1]
        flip_bit(folder / "train-000000.tar", at_byte=offset + size // 2)
    return {row["key"] for row in rows}


def keys_of(batches: Stream, images: int, batch: int = 4) -> list[str]:
    return [key for key, _ in drain(batches, images, batch)]


def test_a_damaged_sample_stops_the_stream_and_is_named(small: Path) -> None:
    (bad,) = damage(small, 3)
    with stream(small) as batches:
        with pytest.raises(DataError, match="damaged") as caught:
            drain(batches, IMAGES)
    assert f"train-000000.tar member {bad}.npy, bytes" in caught.value.where


def test_the_stream_stays_where_it_was_when_a_batch_fails(small: Path) -> None:
    with stream(small) as batches:
        clean = keys_of(batches, IMAGES, batch=1)
    (bad,) = damage(small, 3)
    with stream(small, prefetch=4) as batches:
        for key in clean[: clean.index(bad)]:
            assert batches.next(1).keys == (key,)
        before = batches.state()
        for _ in range(2):
            with pytest.raises(DataError):
                batches.next(1)
        assert batches.state() == before


def test_skipped_samples_are_replaced_by_the_next_good_ones_counted_and_reported(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stream(small) as batches:
        clean = keys_of(batches, 2 * IMAGES)
    bad = damage(small, 2, 3, 5)
    warned: list[str] = []
    monkeypatch.setattr(log, "warn", lambda _, text, **fields: warned.append(fields["where"]))
    with stream(small, on_error="skip") as batches:
        found = keys_of(batches, 2 * IMAGES)
        assert batches.skipped == 6
    good = [next(k for k in clean[i:] if k not in bad) for i in range(2 * IMAGES - 4)]
    assert found[: len(good)] == good and not bad & set(found)
    assert len(warned) == 3 and all("member" in where for where in warned)


@pytest.mark.parametrize("fault", ["flips", "a cut shard", "a missing shard", "a missing idx"])
@pytest.mark.parametrize("world", [2, 4])
def test_skipping_keeps_ranks_in_step_and_the_order_the_same(
    small: Path, fault: str, world: int
) -> None:
    if fault == "flips":
        damage(small, 0, 1, 6)
    elif fault == "a cut shard":
        cut(small / "train-000001.tar", to_bytes=5000)
    else:
        drop(small / f"train-000002.{'tar' if fault == 'a missing shard' else 'idx'}")
    with stream(small, on_error="skip") as batches:
        wanted = [batches.next(4).keys for _ in range(15)]
        skipped = batches.skipped
    assert skipped >= 9
    parts, counted = [], 0
    for rank in range(world):
        with stream(small, on_error="skip", rank=rank, world=world) as batches:
            parts.append([batches.next(4).keys for _ in range(15)])
            counted += batches.skipped
    assert [sum(step, ()) for step in zip(*parts, strict=True)] == wanted
    assert counted == skipped


def test_a_set_without_a_good_sample_is_an_error_even_when_skipping(small: Path) -> None:
    for path in small.glob("*.tar"):
        cut(path, to_bytes=100)
    with stream(small, on_error="skip") as batches:
        with pytest.raises(DataError, match="no sample of the set can be read"):
            batches.next(4)


def test_a_shard_cut_while_it_is_open_is_an_error_not_the_end_of_the_process(small: Path) -> None:
    with stream(small, prefetch=0) as batches:
        drain(batches, IMAGES)
        for path in small.glob("*.tar"):
            os.truncate(path, 700)
        with pytest.raises(DataError, match="damaged"):
            drain(batches, IMAGES)


@pytest.fixture
def remote() -> str:
    """20 samples in a store that fails when told to."""
    stores.register()
    make_set("faulty://bucket/set", IMAGES, encoding="png")
    return "faulty://bucket/set"


@pytest.mark.parametrize("seed", range(20))
def test_outages_short_reads_and_resets_change_nothing(remote: str, seed: int) -> None:
    with stream(remote) as batches:
        wanted = drain(batches, 2 * IMAGES)
    rates = {"unavailable": 0.05, "reset": 0.05, "short_read": 0.05, "stall": 0.05}
    with stores.faults(seed=seed, sleep=lambda _: None, **rates) as injected:
        for attempt in range(6):
            with stream(remote) as batches:
                assert drain(batches, 2 * IMAGES) == wanted, attempt
    assert injected.total > 0


def test_an_outage_that_lasts_is_called_one_and_not_damage(remote: str) -> None:
    with stores.faults(unavailable=1.0):
        for policy in ("raise", "skip"):
            with pytest.raises(ResourceError, match="503"):
                stream(remote, on_error=policy)
    with stream(remote, on_error="skip") as batches:
        with stores.faults(unavailable=1.0), pytest.raises(ResourceError, match="503"):
            batches.next(4)
        assert batches.skipped == 0
        assert len(keys_of(batches, IMAGES)) == IMAGES


def test_a_remote_shard_that_is_damaged_at_its_home_is_refused(remote: str) -> None:
    home = Store(remote)
    data = bytearray(home.read_bytes("train-000001.tar"))
    data[3000] ^= 4
    home.write_bytes("train-000001.tar", bytes(data))
    with stream(remote) as batches, pytest.raises(DataError, match="damaged") as caught:
        drain(batches, IMAGES)
    assert "train-000001.tar" in caught.value.where
    with stream(remote, on_error="skip") as batches:
        drain(batches, IMAGES)
        assert batches.skipped == 1


def test_a_second_run_reads_its_shards_from_the_cache(remote: str, tmp_path: Path) -> None:
    with stream(remote, cache_dir=tmp_path) as batches:
        wanted = drain(batches, IMAGES)
    home = Store(remote)
    for name in home.names():
        if name.endswith(".tar"):
            home.remove(name)
    with stream(remote, cache_dir=tmp_path) as batches:
        assert drain(batches, IMAGES) == wanted
    assert len(list(tmp_path.glob("*.tar"))) == 3 and not list(tmp_path.glob("*.part"))


def test_a_damaged_copy_in_the_cache_is_fetched_again(remote: str, tmp_path: Path) -> None:
    with stream(remote, cache_dir=tmp_path) as batches:
        wanted = drain(batches, IMAGES)
    for seed, path in enumerate(sorted(tmp_path.glob("*.tar"))):
        flip_bit(path, seed) if seed else cut(path, seed)
    with stream(remote, cache_dir=tmp_path, threads=3) as batches:
        assert drain(batches, 2 * IMAGES)[:IMAGES] == wanted


def test_the_cache_stays_within_its_limit(remote: str, tmp_path: Path) -> None:
    sizes = [Store(remote).size(f"train-00000{number}.tar") for number in range(3)]
    limit = max(sizes) + min(sizes)
    with stream(remote) as batches:
        wanted = drain(batches, 2 * IMAGES)
    with stream(remote, cache_dir=tmp_path, cache_bytes=limit) as batches:
        assert drain(batches, 2 * IMAGES) == wanted
    assert 0 < sum(path.stat().st_size for path in tmp_path.glob("*.tar")) <= limit


def test_a_temporary_cache_goes_with_its_stream(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with stream(remote) as batches:
        drain(batches, IMAGES)
        assert len(list(tmp_path.iterdir())) == 1
    del batches
    assert list(tmp_path.iterdir()) == []


def test_a_set_packed_again_is_not_read_from_the_old_copies(remote: str, tmp_path: Path) -> None:
    with stream(remote, cache_dir=tmp_path) as batches:
        drain(batches, IMAGES)
    Store(remote).remove_tree()
    make_set(remote, IMAGES, encoding="png", masks=True)
    with stream(remote, cache_dir=tmp_path) as batches:
        assert batches.next(4).masks_NHW is not None


def test_a_url_that_nothing_can_open_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="cannot open nowhere://"):
        Stream([Source("nowhere://bucket/set")])
