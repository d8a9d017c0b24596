"""Batches by images, across callers: nobody waits longer than a window for company.

A batch is filled in turns from the callers that wait, so that one who wants thousands of images
does not keep out one who wants a single one.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
Run = Callable[[list[T]], list[R]] | Callable[[list[T]], Awaitable[list[R]]]


class Full(Exception):
    """More items wait than may; `waiting` of them do."""

    def __init__(self, waiting: int, limit: int) -> None:
        super().__init__(f"{waiting} images wait already, {limit} may")
        self.waiting = waiting


class _Caller(Generic[T, R]):
    """One submission: its items, how many are taken, the results so far."""

    def __init__(self, items: Sequence[T], future: asyncio.Future[list[R]], since_s: float) -> None:
        self.items, self.future, self.since_s = items, future, since_s
        self.taken = 0
        self.results: list[R | None] = [None] * len(items)
        self.missing = len(items)

    @property
    def left(self) -> int:
        return 0 if self.future.done() else len(self.items) - self.taken

    def answered(self, start: int, results: Sequence[R]) -> None:
        self.results[start : start + len(results)] = results
        self.missing -= len(results)
        if self.missing == 0 and not self.future.done():
            self.future.set_result(self.results)  # type: ignore[arg-type]

    def failed(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


# How much the newest batch counts in what a batch usually takes.
NEWEST = 0.2

Share = tuple[_Caller[T, R], int, int]


class Batcher(Generic[T, R]):
    """Runs what callers submit in batches of at most `size` items, `lanes` of them at once.

    Where fewer than that are computed at once (`workers`), the others being queued there, a batch
    that is not full is begun when a worker is free, or has waited as long as a batch usually takes.

    `run` takes a list of items and gives as many results: a coroutine function, or a plain one that
    is run in a thread. Submissions are refused (Full) while more than `limit` items wait; one that
    comes when nothing waits is taken whatever its size. A batch that fails is tried again for each
    caller alone, unless `separate` says of its error that this would not help.
    """

    def __init__(
        self,
        run: Run[T, R],
        size: int,
        window_s: float,
        limit: int,
        *,
        lanes: int = 1,
        workers: int | None = None,
        observe: Callable[[int, float], None] | None = None,
        separate: Callable[[BaseException], bool] = lambda error: True,
    ) -> None:
        self.size, self.window_s, self.limit, self.lanes = size, window_s, limit, lanes
        self.workers = workers or lanes
        self._usual_s = 0.0
        self._run = run
        self._threads: Executor | None = None
        if not inspect.iscoroutinefunction(run):
            self._threads = ThreadPoolExecutor(lanes, thread_name_prefix="batch")
        self._observe, self._separate = observe, separate
        self._callers: deque[_Caller[T, R]] = deque()
        self.waiting = 0
        self._running = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, items: Sequence[T]) -> list[R]:
        """The results of items, in their order; Full where too many wait already."""
        if not items:
            return []
        if self.waiting and self.waiting + len(items) > self.limit:
            self._drop_gone()
            if self.waiting and self.waiting + len(items) > self.limit:
                raise Full(self.waiting, self.limit)
        loop = asyncio.get_running_loop()
        caller: _Caller[T, R] = _Caller(items, loop.create_future(), loop.time())
        self._callers.append(caller)
        self.waiting += len(items)
        self._fill()
        try:
            return await caller.future
        finally:
            # A caller that gave up: what of it was not begun never will be.
            if caller.missing and caller in self._callers:
                self._callers.remove(caller)
                self.waiting -= len(caller.items) - caller.taken

    def _drop_gone(self) -> None:
        kept = [caller for caller in self._callers if caller.left]
        self.waiting = sum(caller.left for caller in kept)
        self._callers = deque(kept)

    def _fill(self) -> None:
        """Starts batches that are full or have waited long enough, as lanes are free."""
        while self._callers and self._running < self.lanes:
            loop = asyncio.get_running_loop()
            wait_s = self.window_s
            if self._running >= self.workers:
                # It would be queued anyway: meanwhile it may fill. Not for ever: a worker may hang.
                wait_s += self._usual_s
            due_s = min(caller.since_s for caller in self._callers) + wait_s
            if self.waiting < self.size and loop.time() < due_s:
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = loop.call_at(due_s, self._on_time)
                return
            if batch := self._next():
                self._running += 1
                task = loop.create_task(self._work(batch))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _on_time(self) -> None:
        self._timer = None
        self._fill()

    def _next(self) -> list[Share[T, R]]:
        """Items of the waiting callers in turns, up to a batch."""
        batch: list[Share[T, R]] = []
        space = self.size
        while space and self._callers:
            caller = self._callers.popleft()
            if not caller.left:
                self.waiting -= len(caller.items) - caller.taken
                continue
            turn = max(1, space // (len(self._callers) + 1))
            count = min(caller.left, turn)
            batch.append((caller, caller.taken, count))
            caller.taken += count
            self.waiting -= count
            space -= count
            if caller.left:
                self._callers.append(caller)
        return batch

    async def _work(self, batch: list[Share[T, R]]) -> None:
        try:
            await self._tried(batch)
        finally:
            self._running -= 1
            self._fill()

    async def _tried(self, batch: list[Share[T, R]]) -> None:
        """Runs a batch; where it fails, each caller's part alone: one fails only its own."""
        items = [item for c, start, count in batch for item in c.items[start : start + count]]
        try:
            results = await self._results(items)
        except Exception as error:
            callers = {id(caller) for caller, _, _ in batch}
            if len(callers) == 1 or not self._separate(error):
                for share in batch:
                    share[0].failed(error)
                return
            for share in batch:
                if not share[0].future.done():
                    await self._tried([share])
            return
        place = 0
        for caller, start, count in batch:
            caller.answered(start, results[place : place + count])
            place += count

    async def _results(self, items: list[T]) -> list[R]:
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        if self._threads is None:
            results: list[R] = await self._run(items)  # type: ignore[misc]
        else:
            results = await loop.run_in_executor(self._threads, self._run, items)  # type: ignore[arg-type]
        if len(results) != len(items):
            raise AssertionError(f"{len(items)} items gave {len(results)} results")
        took_s = loop.time() - begun_s
        self._usual_s += (took_s - self._usual_s) * (NEWEST if self._usual_s else 1.0)
        if self._observe:
            self._observe(len(items), took_s)
        return results

    async def close(self) -> None:
        """Waits for the batches under way; what waits is run first."""
        while self._callers or self._tasks:
            if self._tasks:
                await asyncio.wait(list(self._tasks))
            else:
                await asyncio.sleep(self.window_s or 0.001)
        if self._threads is not None:
            self._threads.shutdown(wait=False)
