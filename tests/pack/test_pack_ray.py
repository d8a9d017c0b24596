"""Packing on Ray: any number of workers gives the same bytes, and a lost worker costs nothing."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from medray.errors import DataError, UsageError
from medray.images import encode_png
from medray.pack import pack as pack_module
from medray.pack.config import PackConfig
from medray.pack.on_ray import run_tasks
from medray.pack.pack import Job, pack
from medray.pack.worker import pack_shard
from medray.store import Store
from tests import outcomes
from tests.chaos_budget import trials
from tests.pack import small_pack


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("MEDRAY_SECRET_KEY", "0123456789abcdef")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_memory_urls_do_not_go_with_workers():
    config = PackConfig(source="memory://in/t.csv", size_px=8, workers=2)
    with pytest.raises(UsageError, match="--workers 0"):
        pack(config, Job("memory://out"))


@pytest.mark.ray
def test_workers_change_no_byte(ray_cluster, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 250, (9, 9), np.uint8) for _ in range(20)]
    for k in range(40):
        brighter = np.uint8(k // 20)  # each is there twice, nearly the same
        (source / f"{k:02d}.png").write_bytes(encode_png(pictures[k % 20] + brighter))
    trees = []
    for workers in (0, 1, 2):
        out = tmp_path / f"out{workers}"
        config = PackConfig(
            source=str(source), size_px=8, samples_per_shard=6, workers=workers, name="s"
        )
        pack(config, Job(str(out)))
        trees.append({name: Store(out).read_bytes(name) for name in Store(out).names()})
    assert trees[0] == trees[1] == trees[2]
    assert len([name for name in trees[0] if name.endswith(".tar")]) == 7
    assert len(trees[0]["near_duplicates.csv"].splitlines()) > 1


def dies_once(flag, number):
    if number == 1 and not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def dies_once_packed(out, rules, shard, plan_hash):
    """`pack_shard` whose first worker at a shard dies when it is written and not yet told."""
    made, flag = pack_shard(out, rules, shard, plan_hash), Path(out).parent / "flags" / shard.name
    if not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return made


@pytest.mark.ray
@pytest.mark.chaos
def test_workers_that_die_at_their_shards_cost_no_byte(ray_cluster, tmp_path, monkeypatch):
    """Ray gives a task three more tries: each shard is made twice."""
    shards = trials(6, 20)
    source = small_pack.make_source(tmp_path / "in", images=4 * shards)
    trees, begun_s = [], []
    (tmp_path / "flags").mkdir()
    for number, dies in enumerate((False, True)):
        if dies:
            monkeypatch.setattr(pack_module, "pack_shard", dies_once_packed)
        begun_s.append(time.monotonic())
        config = PackConfig(
            source=str(source / "images"), size_px=8, samples_per_shard=4, workers=2, name="s",
            val=0, test=0,
        )  # fmt: skip
        pack(config, Job(str(tmp_path / f"out{number}")))
        store = Store(str(tmp_path / f"out{number}"))
        trees.append({name: store.read_bytes(name) for name in store.names()})
    took_s = time.monotonic() - begun_s[1]
    assert len(list((tmp_path / "flags").iterdir())) == shards
    assert trees[0] == trees[1]
    outcomes.record(
        part="pack", fault="worker lost or hung", trials=shards, lost=1, unit="shards",
        recovered_s=took_s / shards, wrong=0,
    )  # fmt: skip


def refuses(number):
    raise DataError("no good", code="MR-D102", where=f"row {number}")


@pytest.mark.ray
def test_a_killed_worker_is_replaced_and_an_error_comes_through_as_it_is(ray_cluster, tmp_path):
    tasks = [(str(tmp_path / "flag"), number) for number in range(4)]
    assert dict(run_tasks(dies_once, tasks, 2)) == {0: 0, 1: 1, 2: 4, 3: 9}
    assert (tmp_path / "flag").exists()
    with pytest.raises(DataError) as caught:
        list(run_tasks(refuses, [(7,)], 1))
    assert (caught.value.code, caught.value.where) == ("MR-D102", "row 7")
