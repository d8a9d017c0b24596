"""Batches by images across callers: order, fairness, limits, errors, callers that give up."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from serve.batcher import Batcher, Full


def doubling(batches: list[list[int]], work_s: float = 0.0):  # type: ignore[no-untyped-def]
    def run(items: list[int]) -> list[int]:
        batches.append(list(items))
        time.sleep(work_s)
        if any(item < 0 for item in items):
            raise ValueError("negative")
        return [2 * item for item in items]

    return run


class Held:
    """Doubles, but not before it is let go."""

    def __init__(self, batches: list[list[int]]) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        self.double = doubling(batches)

    def __call__(self, items: list[int]) -> list[int]:
        self.began.set()
        assert self.go_on.wait(10)
        return self.double(items)  # type: ignore[no-any-return]


async def until_waiting(batcher: Batcher[int, int], count: int) -> None:
    async with asyncio.timeout(10):
        while batcher.waiting != count:
            await asyncio.sleep(0)


def test_images_of_many_callers_share_batches_and_come_back_in_order() -> None:
    batches: list[list[int]] = []

    async def main() -> list[list[int]]:
        batcher = Batcher(doubling(batches), 8, 0.5, 1000)
        asked = [list(range(n * 10, n * 10 + n)) for n in range(1, 7)]
        answers = await asyncio.gather(*(batcher.submit(items) for items in asked))
        assert answers == [[2 * item for item in items] for items in asked]
        await batcher.close()
        return answers

    asyncio.run(main())
    assert sum(map(len, batches)) == 21
    assert all(len(batch) <= 8 for batch in batches) and len(batches) == 3


def test_a_lone_caller_waits_no_longer_than_the_window() -> None:
    async def main() -> float:
        batcher = Batcher(doubling([]), 8, 0.05, 1000)
        start = time.perf_counter()
        assert await batcher.submit([1]) == [2]
        return time.perf_counter() - start

    assert 0.04 < asyncio.run(main()) < 10


def test_while_the_only_worker_is_busy_a_batch_may_fill() -> None:
    """Two lanes, one worker behind them: what comes bit by bit is one batch, not one each."""
    batches: list[list[int]] = []

    async def main() -> None:
        worker, go_on = asyncio.Lock(), asyncio.Event()

        async def run(items: list[int]) -> list[int]:
            batches.append(items)
            async with worker:
                await (asyncio.sleep(1) if items == [9] else go_on.wait())
            return items

        batcher: Batcher[int, int] = Batcher(run, 8, 0.0, 1000, lanes=2, workers=1)
        # How long a batch takes is known from the second on.
        await batcher.submit([9])
        asked = [asyncio.create_task(batcher.submit([0]))]
        while len(batches) < 2:
            await asyncio.sleep(0)
        for number in range(1, 9):
            asked.append(asyncio.create_task(batcher.submit([number])))
            await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(*asked)
        await batcher.close()

    asyncio.run(main())
    # Without a window the first goes alone; the other eight, one by one, while it is computed.
    assert batches == [[9], [0], list(range(1, 9))]


def test_a_worker_that_hangs_does_not_keep_what_waits_from_the_others() -> None:
    async def main() -> None:
        hung = asyncio.Event()

        async def run(items: list[int]) -> list[int]:
            if items == [0]:
                await hung.wait()
            await asyncio.sleep(0.05)
            return items

        batcher: Batcher[int, int] = Batcher(run, 8, 0.01, 1000, lanes=2, workers=1)
        assert await batcher.submit([1]) == [1]
        first = asyncio.create_task(batcher.submit([0]))
        await asyncio.sleep(0.03)
        assert await asyncio.wait_for(batcher.submit([2]), 10) == [2]
        hung.set()
        await first

    asyncio.run(main())


def test_a_large_submission_does_not_keep_out_a_small_one() -> None:
    batches: list[list[int]] = []

    async def main() -> None:
        batcher = Batcher(doubling(batches, 0.005), 8, 0.0, 10_000)
        large = asyncio.create_task(batcher.submit(list(range(400))))
        await asyncio.sleep(0.012)
        assert await batcher.submit([1000]) == [2000]
        assert not large.done()
        assert await large == [2 * n for n in range(400)]

    asyncio.run(main())
    place = next(n for n, batch in enumerate(batches) if 1000 in batch)
    assert place < 10, f"the small one was in batch {place}"


def test_more_than_the_limit_is_refused_at_once_and_counted_right_after() -> None:
    async def main() -> None:
        run = Held([])
        batcher = Batcher(run, 4, 0.0, 10)
        first = [asyncio.create_task(batcher.submit([n] * 4)) for n in range(3)]
        await asyncio.to_thread(run.began.wait)
        await until_waiting(batcher, 8)
        with pytest.raises(Full) as refused:
            await batcher.submit([1, 2, 3])
        assert refused.value.waiting == 8
        run.go_on.set()
        await asyncio.gather(*first)
        assert batcher.waiting == 0
        assert await batcher.submit(list(range(50))) == [2 * n for n in range(50)]

    asyncio.run(main())


def test_one_callers_error_fails_only_its_own() -> None:
    async def main() -> None:
        batcher = Batcher(doubling([]), 8, 0.02, 1000)
        good, bad, other = (batcher.submit(items) for items in ([1, 2], [-1], [3]))
        answers = await asyncio.gather(good, bad, other, return_exceptions=True)
        assert answers[0] == [2, 4] and answers[2] == [6]
        assert isinstance(answers[1], ValueError)

    asyncio.run(main())


def test_a_caller_that_gave_up_is_not_computed() -> None:
    batches: list[list[int]] = []

    async def main() -> None:
        run = Held(batches)
        batcher = Batcher(run, 4, 0.0, 1000)
        first = asyncio.create_task(batcher.submit([1, 1, 1, 1]))
        await asyncio.to_thread(run.began.wait)
        gone = asyncio.create_task(batcher.submit([7, 7, 7]))
        stays = asyncio.create_task(batcher.submit([8]))
        await until_waiting(batcher, 4)
        gone.cancel()
        run.go_on.set()
        assert await first == [2] * 4 and await stays == [16]
        assert batcher.waiting == 0

    asyncio.run(main())
    assert not any(7 in batch for batch in batches)


def test_plain_functions_run_in_one_thread_and_coroutines_in_the_loop() -> None:
    seen: set[str] = set()

    def plain(items: list[int]) -> list[int]:
        seen.add(threading.current_thread().name)
        return items

    async def coroutine(items: list[int]) -> list[int]:
        seen.add(threading.current_thread().name)
        return items

    async def main() -> None:
        batcher = Batcher(plain, 1, 0.0, 100)
        await asyncio.gather(*(batcher.submit([n]) for n in range(5)))
        assert len(seen) == 1 and threading.main_thread().name not in seen
        await Batcher(coroutine, 1, 0.0, 100).submit([1])
        assert threading.main_thread().name in seen

    asyncio.run(main())


def test_closing_answers_what_was_submitted() -> None:
    async def main() -> None:
        batcher = Batcher(doubling([], 0.01), 4, 0.5, 1000)
        task = asyncio.create_task(batcher.submit([1, 2]))
        await asyncio.sleep(0)
        await batcher.close()
        assert await task == [2, 4]

    asyncio.run(main())
