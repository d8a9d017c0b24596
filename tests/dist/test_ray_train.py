"""The same worker under Ray Train: bits, restarts, errors, stops, a cluster that is too small."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from medray.dist import _failures, context
from medray.errors import DataError, MedrayError, ResourceError, Stopped
from tests.dist import rank_tasks

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    # Ray leaves files and sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(autouse=True)
def _ray(ray_cluster: str) -> None:
    """Ray of two CPUs, one for all tests."""


def launch(task: context.Worker, **config: Any) -> Any:
    return context.launch(
        task, config, backend="ray", workers=2, threads_per_rank=1, max_failures=1
    )


def test_ray_and_torchrun_give_the_same_bits() -> None:
    asked = {"engines": [("torch", 0)], "dtype": "float32"}
    under_torchrun = context.launch(
        rank_tasks.parity, asked, backend="torchrun", workers=2, threads_per_rank=1
    )
    assert launch(rank_tasks.parity, **asked) == under_torchrun


def test_a_killed_worker_is_started_again_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    (tmp_path / "clean").mkdir()
    (tmp_path / "clean" / "killed").touch()
    clean = launch(rank_tasks.killed_once, folder=str(tmp_path / "clean"))
    assert launch(rank_tasks.killed_once, folder=str(tmp_path)) == clean
    assert (tmp_path / "killed").exists()


def test_a_typed_error_of_one_rank_ends_the_run_without_a_retry(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        launch(rank_tasks.fail, folder=str(tmp_path), kind="typed")
    error = caught.value
    assert (error.message, error.code, error.hint) == ("shard is short", "MR-D042", "pack again")
    assert len(list(tmp_path.glob("start-*-1"))) == 1


def test_any_other_error_is_retried_and_then_named(tmp_path: Path) -> None:
    with pytest.raises(MedrayError, match="rank 1 failed 2 times: KeyError: 'surprise'"):
        launch(rank_tasks.fail, folder=str(tmp_path), kind="untyped")
    assert len(list(tmp_path.glob("start-*-1"))) == 2


def test_echoes_of_a_failure_are_neither_named_nor_counted() -> None:
    import ray

    from medray.dist import _ray_train

    board = ray.remote(num_cpus=0)(_ray_train.Board).remote()
    for rank, text in ((0, f"[{_failures.ECHO}] closed"), (1, "KeyError: 'surprise'")) * 2:
        ray.get(board.trace.remote(rank, text))
    ray.get(board.trace.remote(0, f"[{_failures.ECHO}] closed"))
    error = _ray_train._typed(RuntimeError("it failed"), board)
    assert error.message == "worker of rank 1 failed 2 times: KeyError: 'surprise'"


def test_sigterm_of_a_worker_stops_all_ranks(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="SIGTERM"):
        launch(rank_tasks.until_stopped, folder=str(tmp_path), own_sigterm=True)
    assert (tmp_path / "stopped-0").read_text() == (tmp_path / "stopped-1").read_text()


def test_sigterm_of_the_driver_stops_all_ranks(tmp_path: Path) -> None:
    def send() -> None:
        while not (tmp_path / "pid-0").exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(Stopped, match="SIGTERM of the driver"):
        launch(rank_tasks.until_stopped, folder=str(tmp_path))


def test_a_cluster_that_is_too_small_is_an_error_in_time() -> None:
    start_s = time.monotonic()
    with pytest.raises(
        ResourceError, match=r"waiting for 5 CPU, cluster has 2 .*gave up after 3 s"
    ):
        context.launch(rank_tasks.about, {}, backend="ray", workers=5, timeout_s=3)
    assert time.monotonic() - start_s < 30


@pytest.mark.chaos
def test_a_group_that_may_be_smaller_has_the_largest_size_there_is_room_for() -> None:
    told = context.launch(
        rank_tasks.about, {}, backend="ray", workers=8, worlds=(1, 2, 4, 8), threads_per_rank=1
    )
    assert [rank[:2] for rank in told["ranks"]] == [[0, 2], [1, 2]]
