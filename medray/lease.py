"""Who may write into a run folder: one driver and its workers, fenced by an epoch number.

Every start takes the next epoch. On a folder the holders are kernel locks (`flock`), which a death
of any kind frees: the driver keeps `driver.lock`, every member keeps a share of `members.lock`, and
a start needs both for itself before it may raise the epoch; so no writer of an older epoch is alive
by then. On an object store every holder rewrites its own object each 5 s; one that stays the same
for 20 s, by the clock of who looks, is dead.

`check()` reads the epoch again; who publishes calls it just before, and a stale holder gets
LeaseLost. Workers of one epoch are told apart by a writer number: the newest that joined as the
writer counts, so a hung worker that wakes after its replacement started writes nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from medray import log
from medray.errors import DataError, ResourceError, Stopped
from medray.store import Store, make_folder

FOLDER = ".lease"
RECORD = f"{FOLDER}/epoch.json"
MEMBERS = f"{FOLDER}/members/"
SCHEMA = "medray.lease/1"

WAIT_S = 30.0
BEAT_S = 5.0
EXPIRE_S = 20.0
POLL_S = 0.1
# Two starts at the same instant on an object store: the later record wins, both look after this.
SETTLE_S = 1.0

Clock = Callable[[], float]
Sleep = Callable[[float], None]


class LeaseLost(Stopped):
    """A newer start, or a newer writer of the same start, owns the run folder."""


class Lease(Protocol):
    """What a holder has: its epoch, a check before each publication, and a way to let go."""

    epoch: int

    def check(self) -> None: ...

    def release(self) -> None: ...


def acquire(
    store: Store,
    *,
    wait_s: float = WAIT_S,
    clock: Clock = time.monotonic,
    sleep: Sleep = time.sleep,
) -> Lease:
    """The next epoch of the run folder, as its driver; ResourceError if an older holder lives."""
    if store.is_local:
        return FolderLease.acquire(store, wait_s, clock, sleep)
    return UrlLease.acquire(store, wait_s, clock, sleep)


def join(store: Store, epoch: int, *, writer: bool = False) -> Lease:
    """A share of the driver's epoch; LeaseLost if it is over. `writer` fences earlier writers."""
    kind = FolderLease if store.is_local else UrlLease
    return kind.join(store, epoch, writer)


# --- the record -------------------------------------------------------------------------------


def _identity() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname()}


def _read(store: Store) -> dict[str, Any]:
    """The record of the newest start; epoch 0 before the first."""
    try:
        data = store.read_bytes(RECORD)
    except FileNotFoundError:
        return {"epoch": 0, "owner": "", "writer": 0}
    try:
        record = json.loads(data)
    except ValueError as error:
        raise DataError(
            f"the record of the run folder's holder is not JSON: {error}",
            code="MR-D041",
            where=f"{store.url}/{RECORD}",
            hint=f"when no process uses the run folder, remove {RECORD}",
        ) from None
    if record.get("schema") != SCHEMA:
        raise DataError(
            f"schema must be {SCHEMA!r}, got {record.get('schema')!r}",
            code="MR-D042",
            where=f"{store.url}/{RECORD}",
            hint="this run folder belongs to another version of medray",
        )
    return dict(record)


def _write(store: Store, record: dict[str, Any]) -> None:
    store.write_bytes(RECORD, json.dumps(record, indent=1).encode())


def _next(store: Store) -> dict[str, Any]:
    """Writes and returns the record of a new epoch."""
    record = {
        "schema": SCHEMA,
        "epoch": _read(store)["epoch"] + 1,
        "owner": secrets.token_hex(8),
        "writer": 0,
        "driver": _identity(),
    }
    _write(store, record)
    return record


def _as_writer(store: Store, record: dict[str, Any]) -> int:
    number = int(record["writer"]) + 1
    _write(store, {**record, "writer": number, "writer_process": _identity()})
    return number


def _check(store: Store, epoch: int, owner: str, writer: int | None) -> None:
    record = _read(store)
    if (record["epoch"], record["owner"]) != (epoch, owner):
        raise LeaseLost(
            f"the run folder {store.url} is at epoch {record['epoch']}, this process at {epoch}",
            hint="a newer start goes on with this run; nothing was written",
        )
    if writer is not None and record["writer"] != writer:
        raise LeaseLost(
            f"writer {record['writer']} of {store.url} has replaced this one ({writer})",
            hint="the worker was thought dead; nothing was written",
        )


def _held(store: Store, wait_s: float) -> ResourceError:
    record = _read(store)
    found = [record[name] for name in ("driver", "writer_process") if name in record]
    holders = ", ".join(f"process {f['pid']} on {f['host']}" for f in found) or "another process"
    return ResourceError(
        f"the run folder {store.url} is in use by {holders} (waited {wait_s:.0f} s)",
        hint="wait for it or stop it, or give another --run-dir",
    )


# --- on a folder ------------------------------------------------------------------------------

_open: weakref.WeakSet[FolderLease] = weakref.WeakSet()


def _close_in_child() -> None:
    # A forked child shares the parent's locks and would keep them after the parent's death.
    for lease in list(_open):
        lease.close()


class FolderLease:
    """Kernel locks under `.lease/`, held until `release()` or death."""

    _fork_hook = False

    def __init__(self, store: Store) -> None:
        self.store, self.epoch = store, 0
        self._owner, self._writer = "", None  # type: str, int | None
        try:
            make_folder(store.path(FOLDER))
        except OSError as error:
            raise ResourceError(
                f"cannot make the run folder {store.url}: {error.strerror}",
                hint="give another --run-dir, or the right to write there",
            ) from error
        self._files: dict[str, int] = {}
        _open.add(self)
        if not FolderLease._fork_hook:
            os.register_at_fork(after_in_child=_close_in_child)
            FolderLease._fork_hook = True

    @classmethod
    def acquire(cls, store: Store, wait_s: float, clock: Clock, sleep: Sleep) -> FolderLease:
        """As `acquire`."""
        lease = cls(store)
        try:
            until_s = clock() + wait_s
            for name in ("driver.lock", "members.lock"):
                if not lease._lock(name, fcntl.LOCK_EX, until_s, clock, sleep):
                    raise _held(store, wait_s)
            record = _next(store)
            lease.epoch, lease._owner = record["epoch"], record["owner"]
            lease._unlock("members.lock")
        except BaseException:
            lease.release()
            raise
        return lease

    @classmethod
    def join(cls, store: Store, epoch: int, writer: bool) -> FolderLease:
        """As `join`."""
        lease = cls(store)
        try:
            until_s = time.monotonic() + WAIT_S
            # A start that is looking for survivors holds this lock for an instant.
            if not lease._lock("members.lock", fcntl.LOCK_SH, until_s, time.monotonic, time.sleep):
                raise _held(store, WAIT_S)
            lease._take(epoch, writer)
        except BaseException:
            lease.release()
            raise
        return lease

    def _take(self, epoch: int, writer: bool) -> None:
        record = _read(self.store)
        self.epoch, self._owner = epoch, record["owner"]
        self.check()
        if not writer:
            return
        with self._fence():
            self._writer = _as_writer(self.store, _read(self.store))

    @contextlib.contextmanager
    def _fence(self) -> Iterator[None]:
        until_s = time.monotonic() + WAIT_S
        if not self._lock("writer.lock", fcntl.LOCK_EX, until_s, time.monotonic, time.sleep):
            raise _held(self.store, WAIT_S)
        try:
            yield
        finally:
            self._unlock("writer.lock")

    def _lock(self, name: str, kind: int, until_s: float, clock: Clock, sleep: Sleep) -> bool:
        path = self.store.path(f"{FOLDER}/{name}")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._files[name] = handle
        told = False
        while True:
            try:
                fcntl.flock(handle, kind | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if clock() >= until_s:
                    return False
            except OSError as error:
                raise ResourceError(
                    f"cannot lock {path}: {error.strerror}",
                    hint="the run folder must be on a file system with locks (flock)",
                ) from error
            if not told:
                log.event("waiting", f"waiting for the holder of {self.store.url} to end")
                told = True
            sleep(POLL_S)

    def _unlock(self, name: str) -> None:
        os.close(self._files.pop(name))

    def check(self) -> None:
        """LeaseLost unless this holder's epoch (and writer number) is the newest."""
        _check(self.store, self.epoch, self._owner, self._writer)

    def close(self) -> None:
        """Closes the lock files; the kernel frees what no other process shares."""
        for handle in self._files.values():
            os.close(handle)
        self._files = {}

    def release(self) -> None:
        """Lets the run folder go."""
        self.close()


# --- on an object store -----------------------------------------------------------------------


class UrlLease:
    """A heartbeat object under `.lease/members/`, rewritten each 5 s by a thread."""

    def __init__(self, store: Store, record: dict[str, Any]) -> None:
        self.store, self.epoch = store, int(record["epoch"])
        self._owner, self._writer = str(record["owner"]), None  # type: str, int | None
        self._name = f"{MEMBERS}{secrets.token_hex(8)}.json"
        self._beats = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def acquire(cls, store: Store, wait_s: float, clock: Clock, sleep: Sleep) -> UrlLease:
        """As `acquire`."""
        _wait_for_members(store, wait_s, clock, sleep)
        lease = cls(store, _next(store))
        lease.beat()
        sleep(SETTLE_S)
        try:
            lease.check()
        except LeaseLost:
            lease.release()
            raise _held(store, 0) from None
        lease.start()
        return lease

    @classmethod
    def join(cls, store: Store, epoch: int, writer: bool) -> UrlLease:
        """As `join`."""
        record = _read(store)
        lease = cls(store, {**record, "epoch": epoch})
        lease.check()
        if writer:
            lease._writer = _as_writer(store, record)
        lease.beat()
        lease.start()
        return lease

    def start(self) -> None:
        """Starts the heartbeat."""
        self._thread = threading.Thread(target=self._run, name="medray-lease", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                self.beat()
            except LeaseLost as error:
                log.warn("lease_lost", str(error))
                return
            except ResourceError as error:
                log.warn("heartbeat", f"the heartbeat could not be written: {error.message}")

    def beat(self) -> None:
        """Shows that this holder is alive; LeaseLost where its epoch is over."""
        self.check()
        self._beats += 1
        content = {**_identity(), "epoch": self.epoch, "beats": self._beats}
        self.store.write_bytes(self._name, json.dumps(content).encode())

    def check(self) -> None:
        """LeaseLost unless this holder's epoch (and writer number) is the newest."""
        _check(self.store, self.epoch, self._owner, self._writer)

    def release(self) -> None:
        """Stops the heartbeat and removes its object."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        try:
            self.store.remove(self._name)
        except (FileNotFoundError, ResourceError) as error:
            log.warn("lease_release", f"the heartbeat stays until it expires: {error}")


def _wait_for_members(store: Store, wait_s: float, clock: Clock, sleep: Sleep) -> None:
    """Returns when every older holder has let go or shown no beat for 20 s; removes the dead."""
    seen: dict[str, tuple[bytes, float]] = {}
    until_s, told = clock() + wait_s, False
    while names := store.names(MEMBERS):
        alive = [name for name in names if _is_alive(store, name, seen, clock())]
        for name in set(names) - set(alive):
            store.remove(name)
        if not alive:
            return
        if clock() >= until_s:
            raise _held(store, wait_s)
        if not told:
            log.event("waiting", f"waiting for the holder of {store.url} to end, or its last beat")
            told = True
        sleep(1.0)


def _is_alive(store: Store, name: str, seen: dict[str, tuple[bytes, float]], now_s: float) -> bool:
    """Whether the object was rewritten within 20 s of this process's own clock."""
    try:
        content = store.read_bytes(name)
    except FileNotFoundError:
        return False
    before, since_s = seen.get(name, (b"", now_s))
    if content != before:
        seen[name] = (content, now_s)
        return True
    return now_s - since_s < EXPIRE_S
