"""The pool of workers: results, growth, lost workers, errors as they are, a stop that is heeded."""

import os
import signal
import time
from pathlib import Path

import pytest

from medray.dist import pool
from medray.dist.pool import run_on_actors
from medray.errors import DataError, ResourceError, Stopped, UsageError
from tests.faults.kill import at_load, wait_for


def with_process(base=0):
    return base, os.getpid()


def add(state, number):
    return state[0] + number, state[1]


def dies_once(state, folder, number):
    flag = Path(folder, f"flag{number}")
    if number == 1 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def dies(state, number):
    os.kill(os.getpid(), signal.SIGKILL)


def refuses(state, number):
    raise DataError("no good", code="MR-D102", where=f"row {number}")


def waits(state, folder, number):
    Path(folder, f"started{number}").touch()
    time.sleep(0.3)
    return state[1]


def meets(state, folder, number):
    """Waits until two processes have begun a task; which one this is."""
    Path(folder, f"process{os.getpid()}").touch()
    wait_for(lambda: len(list(Path(folder).glob("process*"))) >= 2, 120)
    return os.getpid()


def terminates(state, number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    return number


def test_without_workers_it_runs_here_with_one_state():
    found = list(run_on_actors(with_process, add, [(1,), (2,)], arguments=(10,)))
    assert found == [(0, (11, os.getpid())), (1, (12, os.getpid()))]


def test_a_sigterm_drops_what_is_in_the_making_and_is_exit_code_75():
    before = signal.getsignal(signal.SIGTERM)
    found, start_s = [], time.monotonic()
    with pytest.raises(Stopped) as caught:
        found += run_on_actors(with_process, terminates, [(1,), (2,), (3,)])
    assert caught.value.exit_code == 75
    assert time.monotonic() - start_s < at_load(5)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("workers", [-1, (0, 2), (3, 2)])
def test_workers_that_cannot_be_are_refused(workers):
    with pytest.raises(UsageError, match="fewest <= most"):
        list(run_on_actors(with_process, add, [(1,)], workers=workers))


@pytest.mark.ray
def test_the_pool_grows_replaces_the_dead_and_hands_errors_on(ray_cluster, tmp_path, monkeypatch):
    tasks = [(str(tmp_path), number) for number in range(12)]
    processes = {found for _, found in run_on_actors(with_process, meets, tasks, workers=2)}
    assert len(processes) == 2
    assert os.getpid() not in processes
    squares = dict(run_on_actors(with_process, dies_once, tasks[:4], workers=(2, 2)))
    assert squares == {0: 0, 1: 1, 2: 4, 3: 9}
    assert (tmp_path / "flag1").exists()
    with pytest.raises(DataError) as caught:
        list(run_on_actors(with_process, refuses, [(7,)], workers=1))
    assert (caught.value.code, caught.value.where) == ("MR-D102", "row 7")
    with pytest.raises(ResourceError, match="2 workers died at task 0"):
        list(run_on_actors(with_process, dies, [(0,)], workers=1, retries=1))
    with pytest.raises(ResourceError, match="waiting for 64 CPU, cluster has 2"):
        list(run_on_actors(with_process, add, [(0,)], workers=(8, 8), cpus=8, timeout_s=0.5))


@pytest.mark.ray
def test_a_stop_lets_tasks_in_flight_end_and_starts_no_more(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "GRACE_S", 60.0)
    tasks = [(str(tmp_path), number) for number in range(50)]
    found = run_on_actors(with_process, waits, tasks, workers=1)
    next(found)
    os.kill(os.getpid(), signal.SIGTERM)
    start_s = time.monotonic()
    with pytest.raises(Stopped, match="SIGTERM"):
        list(found)
    assert time.monotonic() - start_s < 60
    assert len(list(tmp_path.iterdir())) < 10
