"""Packing on Ray: any number of workers gives the same bytes, and a lost worker costs nothing."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from medray.errors import DataError, UsageError
from medray.images import encode_png
from medray.pack.config import PackConfig
from medray.pack.on_ray import run_tasks
from medray.pack.pack import Job, pack
from medray.store import Store


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
    for k in range(40):
        (source / f"{k:02d}.png").write_bytes(encode_png(rng.integers(0, 256, (9, 9), np.uint8)))
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


def dies_once(flag, number):
    if number == 1 and not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


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
