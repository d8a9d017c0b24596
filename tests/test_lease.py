"""Two starts, stale holders, hung writers: one writer at a time, on a folder and on a store."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from medray import lease as module
from medray.checkpoints import Checkpoints
from medray.errors import DataError, ResourceError
from medray.lease import LeaseLost, UrlLease, acquire, join
from medray.store import Store
from tests.faults import kill
from tests.faults.publisher import tensors_at

ROOT = Path(__file__).resolve().parent.parent
HOLDER = """
import os, sys, time
from medray.lease import acquire, join
from medray.store import Store
store = Store(sys.argv[1])
lease = acquire(store) if sys.argv[2] == "driver" else join(store, int(sys.argv[2]), writer=True)
print(lease.epoch, flush=True)
time.sleep(60)
"""


@contextmanager
def holder(folder: Path, role: str = "driver") -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the folder, as its driver or as a worker of an epoch."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), role],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline(), "the holder did not start"
        yield process
    finally:
        kill.kill_group(process)
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_each_start_takes_the_next_epoch(folder: Path) -> None:
    for epoch in (1, 2, 3):
        lease = acquire(Store(folder))
        assert lease.epoch == epoch
        lease.check()
        lease.release()


def test_a_second_start_is_refused_while_the_first_lives_and_told_who_it_is(folder: Path) -> None:
    with holder(folder) as process:
        with pytest.raises(ResourceError, match=f"in use by process {process.pid} on .*0 s"):
            acquire(Store(folder), wait_s=0.3)
        assert module._read(Store(folder))["epoch"] == 1, "a refused start changes nothing"


def test_a_start_goes_on_as_soon_as_a_killed_driver_is_gone(folder: Path) -> None:
    with holder(folder) as process:
        kill.kill_group(process)
        started_s = time.monotonic()
        lease = acquire(Store(folder))
        assert lease.epoch == 2 and time.monotonic() - started_s < 2
        lease.release()


def test_a_start_waits_for_a_holder_that_ends_meanwhile(folder: Path) -> None:
    with holder(folder) as process:
        waits: list[float] = []

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 3:
                kill.kill_group(process)

        lease = acquire(Store(folder), sleep=sleep)
        assert lease.epoch == 2 and len(waits) >= 3
        lease.release()


def test_a_worker_that_outlives_its_driver_still_keeps_others_out(folder: Path) -> None:
    with holder(folder) as driver, holder(folder, "1") as worker:
        kill.kill_group(driver)
        with pytest.raises(ResourceError, match=f"process {worker.pid} on"):
            acquire(Store(folder), wait_s=0.3)
        with kill.frozen(worker.pid), pytest.raises(ResourceError):
            acquire(Store(folder), wait_s=0.3)
        kill.kill_group(worker)
        lease = acquire(Store(folder), wait_s=2)
        assert lease.epoch == 2
        lease.release()


def test_a_driver_alone_keeps_others_out_when_its_workers_have_died(folder: Path) -> None:
    with holder(folder), holder(folder, "1") as worker:
        kill.kill_group(worker)
        with pytest.raises(ResourceError):
            acquire(Store(folder), wait_s=0.3)


def test_control_without_the_members_lock_an_old_worker_would_be_overlooked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holder(folder) as driver, holder(folder, "1"):
        kill.kill_group(driver)
        real = module.FolderLease._lock

        def only_driver(self: module.FolderLease, name: str, *rest: object) -> bool:
            other = "none.lock" if name == "members.lock" else name
            found = real(self, other, *rest)  # type: ignore[arg-type]
            self._files.setdefault(name, os.dup(self._files[other]))
            return found

        monkeypatch.setattr(module.FolderLease, "_lock", only_driver)
        acquire(Store(folder), wait_s=0.3).release()


FORKING = HOLDER.replace("time.sleep(60)", "os.fork() or time.sleep(60)\nos._exit(0)")


@pytest.mark.parametrize("guarded", [True, False])
def test_a_forked_child_does_not_keep_the_folder_after_its_parent(
    guarded: bool, folder: Path
) -> None:
    """Control: with the locks left open in the child, the folder stays taken."""
    script = FORKING
    if not guarded:
        script = script.replace("os.fork()", "module._open.clear() or os.fork()")
    command = [sys.executable, "-c", "from medray import lease as module" + script]
    process = subprocess.Popen(
        [*command, str(folder), "driver"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait()
        if guarded:
            # Until its hook has run the child has the locks, too.
            acquire(Store(folder), wait_s=20).release()
        else:
            with pytest.raises(ResourceError):
                acquire(Store(folder), wait_s=0.3)
    finally:
        kill.kill_group(process)


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(module, "SETTLE_S", 0.0)
    return Store(tmp_path / "run" if request.param == "folder" else f"memory:/{tmp_path}/run")


def test_a_worker_of_an_earlier_epoch_cannot_join(store: Store) -> None:
    acquire(store).release()
    lease = acquire(store)
    with pytest.raises(LeaseLost, match="at epoch 2, this process at 1"):
        join(store, 1)
    join(store, 2).release()
    lease.release()
    acquire(store, wait_s=1).release()


def test_a_newer_writer_fences_the_one_before_and_readers_stay(store: Store) -> None:
    driver = acquire(store)
    reader, first, second = (join(store, 1, writer=w) for w in (False, True, True))
    for lease in (driver, reader, second):
        lease.check()
    with pytest.raises(LeaseLost, match="writer 2 .* has replaced this one"):
        first.check()
    with pytest.raises(LeaseLost):
        Checkpoints(store, first).save(8, tensors_at(8), {})
    assert store.names("checkpoints/") == []
    Checkpoints(store, second).save(8, tensors_at(8), {})
    assert Checkpoints(store, None).complete() == [8]
    for lease in (driver, reader, first, second):
        lease.release()


def test_a_holder_whose_folder_was_removed_and_made_again_has_lost_it(store: Store) -> None:
    lease = acquire(store)
    store.remove_tree()
    with pytest.raises(LeaseLost):
        lease.check()
    other = acquire(store)
    assert other.epoch == lease.epoch == 1
    with pytest.raises(LeaseLost):
        lease.check()
    lease.release()
    other.release()


def test_an_unreadable_or_foreign_record_is_an_error_that_names_it(store: Store) -> None:
    acquire(store).release()
    store.write_bytes(module.RECORD, b"{")
    with pytest.raises(DataError, match=r"epoch\.json"):
        acquire(store)
    store.write_bytes(module.RECORD, b'{"schema": "medray.lease/2", "epoch": 7}')
    with pytest.raises(DataError, match="schema must be 'medray.lease/1', got 'medray.lease/2'"):
        acquire(store)


# --- heartbeats, with a clock that a test moves -----------------------------------------------


class Time:
    """A clock that only sleeping moves; `each` runs at every sleep."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.each: Callable[[], None] = lambda: None

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.each()


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    # The tests beat by hand.
    monkeypatch.setattr(UrlLease, "start", lambda self: None)
    return Store(f"memory:/{tmp_path}/run")


def _acquire(store: Store, time: Time) -> UrlLease:
    lease = acquire(store, clock=time.clock, sleep=time.sleep)
    assert isinstance(lease, UrlLease)
    return lease


def test_a_holder_that_beats_each_5_s_is_refused_after_30_s(url: Store) -> None:
    time = Time()
    first = _acquire(url, time)
    last_s = time.now_s

    def beat() -> None:
        nonlocal last_s
        if time.now_s - last_s >= module.BEAT_S:
            first.beat()
            last_s = time.now_s

    time.each = beat
    started_s = time.now_s
    with pytest.raises(ResourceError, match="in use by process"):
        _acquire(url, time)
    assert time.now_s - started_s == pytest.approx(30, abs=1)
    first.check()


def test_a_holder_that_is_silent_for_20_s_is_taken_over_and_fenced(url: Store) -> None:
    time = Time()
    first = _acquire(url, time)
    started_s = time.now_s
    second = _acquire(url, time)
    assert second.epoch == 2
    assert 20 <= time.now_s - started_s <= 23
    with pytest.raises(LeaseLost):
        first.beat()
    with pytest.raises(LeaseLost):
        Checkpoints(url, first).save(8, tensors_at(8), {})
    assert url.names("checkpoints/") == []
    assert len(url.names(module.MEMBERS)) == 1, "the dead one's heartbeat is gone"


def test_a_holder_that_let_go_is_not_waited_for(url: Store) -> None:
    time = Time()
    _acquire(url, time).release()
    started_s = time.now_s
    assert _acquire(url, time).epoch == 2
    assert time.now_s - started_s <= module.SETTLE_S


def test_a_silent_worker_is_waited_for_too(url: Store) -> None:
    time = Time()
    driver = _acquire(url, time)
    worker = join(url, 1, writer=True)
    driver.release()
    started_s = time.now_s
    _acquire(url, time)
    assert 20 <= time.now_s - started_s <= 23
    with pytest.raises(LeaseLost):
        worker.check()


def test_of_two_starts_at_the_same_instant_one_goes_on(url: Store) -> None:
    time, leases = Time(), []

    def other_start() -> None:
        time.each = lambda: None
        url.remove_tree(module.FOLDER + "/members")
        leases.append(_acquire(url, time))

    time.each = other_start
    with pytest.raises(ResourceError, match="in use"):
        _acquire(url, time)
    leases[0].check()
    assert len(url.names(module.MEMBERS)) == 1


def test_the_heartbeat_thread_beats_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.02)
    monkeypatch.setattr(module, "SETTLE_S", 0.0)
    lease = acquire(Store(f"memory:/{tmp_path}/run"))
    assert isinstance(lease, UrlLease)
    first = lease._beats
    kill.wait_for(lambda: lease._beats > first + 2)
    lease.release()
    last = lease._beats
    time.sleep(0.06)
    assert lease._beats == last and lease.store.names(module.MEMBERS) == []
