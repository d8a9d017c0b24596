"""Pure functions over tasks, by an autoscaling pool of Ray actors or in this process.

Each actor makes a state once (a network loaded, say) and then works on one task at a time. A worker
that dies, alone or with its node, or that hangs is replaced and its task done again: so a task must
give the same result each time, and what it writes must be published whole. Results come in the
order in which they are ready.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from medray import log
from medray.dist import _cluster, _metrics, _stop
from medray.errors import MedrayError, ResourceError, Stopped, UsageError, of_machine

R = TypeVar("R")

POLL_S = 0.25
# Where there is room is asked again this long after workers were started, when it is known again.
SETTLE_S = 2.0
# After SIGTERM the tasks in flight may end for this long; then they are dropped.
GRACE_S = 5.0
# A task is thought hung after this long and this many times the longest that was seen.
HUNG_FLOOR_S, HUNG_TIMES = 120.0, 10.0
# Loading a state may take this long where no other worker lives.
START_S = 600.0


@dataclass(frozen=True)
class _Ask:
    """What is wanted: how a state is made, what is done with it, by how many."""

    make_state: Callable[..., Any]
    arguments: tuple[Any, ...]
    work: Callable[..., Any]
    least: int
    most: int
    retries: int
    cpus: float
    gpus: float
    timeout_s: float

    @property
    def bundle(self) -> dict[str, float]:
        """The resources of one worker."""
        return {name: need for name, need in (("CPU", self.cpus), ("GPU", self.gpus)) if need}


def run_on_actors(
    make_state: Callable[..., Any],
    work: Callable[..., R],
    tasks: Iterable[tuple[Any, ...]],
    *,
    arguments: tuple[Any, ...] = (),
    workers: int | tuple[int, int] = 0,
    retries: int = 3,
    cpus: float = 1,
    gpus: float = 0,
    timeout_s: float = 120.0,
) -> Iterator[tuple[int, R]]:
    """(number, `work(state, *task)`) of each task as it ends; `state = make_state(*arguments)`.

    `workers` is (fewest, most) or the most; the pool grows to the most while tasks wait and the
    cluster has room, and shrinks as they run out. 0: here, one after the other, without Ray. Both
    functions are top-level ones; a task is done `retries` times more where its worker dies.

    Errors of medray come through as they are. ResourceError where the cluster cannot hold the
    fewest workers within `timeout_s`, or a task lost all its workers. Stopped after SIGTERM, within
    `GRACE_S`: tasks in flight end or are dropped.
    """
    least, most = (min(workers, 1), workers) if isinstance(workers, int) else workers
    if not 0 <= least <= most or (least == 0 < most):
        raise UsageError(f"workers must be 0, or 1 <= fewest <= most, got {workers}")
    ask = _Ask(make_state, arguments, work, least, most, retries, cpus, gpus, timeout_s)
    _stop.clear()
    yield from _on_ray(ask, tasks) if most else _here(ask, tasks)


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """SIGTERM raises Stopped while it lasts: for what a job does before and after its tasks."""
    restore = _stop.install(_drop)
    try:
        yield
    finally:
        restore()


# --- here -------------------------------------------------------------------------------------


def _here(ask: _Ask, tasks: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
    restore = _stop.install(_drop)
    try:
        state = ask.make_state(*ask.arguments)
        for number, task in enumerate(tasks):
            if _stop.reason():
                raise _stopped()
            yield number, ask.work(state, *task)
    finally:
        restore()


def _drop(number: int, frame: object) -> None:
    # What is in the making is dropped at once: it is published whole or not at all.
    _stop.request("SIGTERM")
    raise _stopped()


def _stopped() -> Stopped:
    text = f"stopped ({_stop.reason()}); what was finished is kept"
    return Stopped(text, hint="the same command goes on")


# --- on Ray -----------------------------------------------------------------------------------


def _on_ray(ask: _Ask, tasks: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
    _cluster.set_environment({})
    with _cluster.connected() as ours:
        _cluster.wait_for([ask.bundle] * ask.least, can_grow=not ours, timeout_s=ask.timeout_s)
        # After Ray, which sets a handler of its own.
        restore = _stop.install()
        pool = _Pool(ask, deque(enumerate(tasks)), ours)
        try:
            yield from pool.run()
        finally:
            pool.close()
            restore()


@functools.cache
def _actor_class() -> Any:
    import ray

    return ray.remote(_Worker)


class _Worker:
    """A process of the pool, with its state."""

    def prepare(self, make_state: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Makes the state."""
        self._state = make_state(*arguments)

    def work(self, work: Callable[..., Any], task: tuple[Any, ...]) -> Any:
        """Does one task."""
        return work(self._state, *task)


@dataclass(eq=False)
class _Member:
    """An actor as the driver sees it; `task` is what it works on, None while it prepares."""

    actor: Any
    since_s: float
    ready: bool = False
    task: tuple[int, tuple[Any, ...]] | None = None


@dataclass
class _Pool:
    """The driver's side: who works on what, who is gone, what waits."""

    ask: _Ask
    waiting: deque[tuple[int, tuple[Any, ...]]]
    ours: bool
    in_flight: dict[Any, _Member] = field(default_factory=dict)
    tries: Counter[int] = field(default_factory=Counter)
    bad_starts: int = 0
    longest_s: float = 0.0
    looked_s: float = float("-inf")
    stop_at_s: float = float("inf")
    dropped: bool = False

    def __post_init__(self) -> None:
        self.lived_s = self.told_s = time.monotonic()
        if not self.ours and self.ask.most > self.ask.least:
            self._ask_for(min(self.ask.most, len(self.waiting)))

    def run(self) -> Iterator[tuple[int, Any]]:
        """(number, result) of each task."""
        import ray

        while self.waiting or any(member.task for member in self.in_flight.values()):
            self._heed_stop()
            self._grow()
            self._watch()
            if not self.in_flight:
                time.sleep(POLL_S)
                continue
            ended, _ = ray.wait(list(self.in_flight), num_returns=1, timeout=POLL_S)
            for reference in ended:
                yield from self._take(reference)
        if self.dropped:
            raise _stopped()

    def close(self) -> None:
        """Ends every worker."""
        for member in self.in_flight.values():
            _end(member)
        self.in_flight = {}
        if not self.ours and self.ask.most > self.ask.least:
            self._ask_for(0)

    def _ask_for(self, workers: int) -> None:
        """Tells the cluster's autoscaler, where there is one, how many workers are wanted."""
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=[self.ask.bundle] * workers)

    def _heed_stop(self) -> None:
        if not _stop.reason():
            return
        now = time.monotonic()
        self.stop_at_s = min(self.stop_at_s, now + GRACE_S)
        self.dropped = self.dropped or bool(self.waiting)
        self.waiting.clear()
        if now >= self.stop_at_s:
            raise _stopped()

    def _grow(self) -> None:
        """Starts as many workers as tasks wait, the cluster has room for and were allowed."""
        lives, now = len(self.in_flight), time.monotonic()
        wanted = min(self.ask.most - lives, len(self.waiting) - self._starting())
        missing = self.ask.least - lives
        if wanted > missing and now - self.looked_s >= SETTLE_S:
            missing = max(missing, self._room() - self._starting())
            self.looked_s = now
        for _ in range(min(wanted, missing)):
            self._start()

    def _starting(self) -> int:
        return sum(not member.ready for member in self.in_flight.values())

    def _room(self) -> int:
        """How many workers fit into what is free."""
        import ray

        free = ray.available_resources()
        return min(int(free.get(name, 0) / need) for name, need in self.ask.bundle.items())

    def _start(self) -> None:
        options = {"num_cpus": self.ask.cpus, "num_gpus": self.ask.gpus, "max_restarts": 0}
        actor = _actor_class().options(**options).remote()
        reference = actor.prepare.remote(self.ask.make_state, self.ask.arguments)
        self.in_flight[reference] = _Member(actor, time.monotonic())

    def _take(self, reference: Any) -> Iterator[tuple[int, Any]]:
        """The result behind a reference that is ready, if any; its worker gets the next task."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        member = self.in_flight.pop(reference)
        try:
            result = ray.get(reference)
        except RayTaskError as error:
            _end(member)
            if isinstance(error.cause, MedrayError):
                raise error.cause from None
            if (known := of_machine(error.cause)) is not None:
                raise known from error
            raise
        except RayError as error:
            self._lost(member, error)
            return
        task = member.task
        if task is None:
            member.ready, self.bad_starts = True, 0
        else:
            self.longest_s = max(self.longest_s, time.monotonic() - member.since_s)
        self._give(member)
        if task is not None:
            _metrics.task(self.ask.work, "done", len(self.waiting))
            yield task[0], result

    def _give(self, member: _Member) -> None:
        """The next task to a worker, or its end."""
        if not self.waiting:
            _end(member)
            return
        member.task, member.since_s = self.waiting.popleft(), time.monotonic()
        self.in_flight[member.actor.work.remote(self.ask.work, member.task[1])] = member

    def _lost(self, member: _Member, error: Exception) -> None:
        """Puts the task of a worker that is gone back in front; ResourceError after too many."""
        _end(member)
        text = (str(error).splitlines() or [type(error).__name__])[0]
        if member.task is None:
            self.bad_starts += 1
            times, what = self.bad_starts, "workers died one after the other while they started"
        else:
            number = member.task[0]
            self.tries[number] += 1
            self.waiting.appendleft(member.task)
            _metrics.task(self.ask.work, "lost", len(self.waiting))
            times, what = self.tries[number], f"workers died at task {number}"
        log.warn("worker_lost", f"a worker was lost and is replaced: {text}", tries=times)
        if times > self.ask.retries:
            raise ResourceError(
                f"{times} {what}: {text}",
                hint="the same command goes on where it stopped; Ray's log folder says why they "
                "died (often memory)",
            )

    def _watch(self) -> None:
        """Ends hung workers; ResourceError where no worker lives for too long."""
        now = time.monotonic()
        limit_s = max(HUNG_FLOOR_S, HUNG_TIMES * self.longest_s)
        for member in self.in_flight.values():
            if member.task and self.longest_s and now - member.since_s > limit_s:
                member.since_s = now
                log.warn("worker_hung", f"task {member.task[0]} hangs: its worker is replaced")
                _end(member)
        if any(member.ready for member in self.in_flight.values()):
            self.lived_s = self.told_s = now
        elif now - self.lived_s >= max(START_S, self.ask.timeout_s):
            what = _cluster.shortage([self.ask.bundle])
            raise ResourceError(f"{what}; no worker started within {now - self.lived_s:.0f} s")
        elif now - self.told_s >= _cluster.NOTICE_S:
            self.told_s = now
            if self._room() < 1:
                log.event("waiting", _cluster.shortage([self.ask.bundle]))


def _end(member: _Member) -> None:
    """Ends a worker's process; nothing where it has ended."""
    import ray
    from ray.exceptions import RayError

    with contextlib.suppress(RayError, ValueError):
        ray.kill(member.actor)
