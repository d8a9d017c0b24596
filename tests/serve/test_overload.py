"""Three times what it can do: the rest is refused at once, what is accepted comes in time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

from tests.serve.fakes import GENERATE, Asking, args, asking, one, run, slow

# A batch of 4 in 40 ms: a hundred images a second.
WORK_S, BATCH = 0.04, 4
PER_S = BATCH / WORK_S


async def open_loop(
    ask: Asking, per_s: float, seconds: float
) -> tuple[Counter[int], list[float], list[float]]:
    """Requests at a rate, whether answered or not: statuses, seconds of the accepted and others."""
    statuses: Counter[int] = Counter()
    accepted: list[float] = []
    refused: list[float] = []

    async def request(index: int) -> None:
        begun_s = time.perf_counter()
        # Few enough that none is the one that the made-up model fails at.
        answer = await ask("POST", GENERATE, "maker", json=one(index % 500))
        statuses[answer.status_code] += 1
        spent_s = time.perf_counter() - begun_s
        (accepted if answer.status_code == 200 else refused).append(spent_s)
        assert answer.status_code == 200 or int(answer.headers["retry-after"]) >= 1

    loop = asyncio.get_running_loop()
    begun_s, tasks = loop.time(), []
    for index in range(int(per_s * seconds)):
        await asyncio.sleep(max(0.0, begun_s + index / per_s - loop.time()))
        tasks.append(asyncio.create_task(request(index)))
    await asyncio.gather(*tasks)
    return statuses, sorted(accepted), sorted(refused)


def test_ten_times_the_capacity_is_refused_at_once_and_the_rest_is_served(tmp_path: Path) -> None:
    async def main() -> None:
        settings = args(tmp_path, batch=BATCH, queue_images=2 * BATCH, requests=200)
        async with asking(settings, load=slow(WORK_S)) as ask:
            statuses, accepted, refused = await open_loop(ask, 3 * PER_S, 3)
            assert set(statuses) == {200, 503}
            # Goodput stays, and nobody waits for longer than the queue and two batches take.
            assert statuses[200] > 0.6 * PER_S * 3, statuses
            assert accepted[int(0.99 * len(accepted))] < 10 * WORK_S, accepted[-5:]
            assert refused[len(refused) // 2] < 0.1, "refused at once"
            # And it recovers at once.
            begun_s = time.perf_counter()
            assert (await ask("POST", GENERATE, "maker", json=one(1))).status_code == 200
            assert time.perf_counter() - begun_s < 5

    run(main())


def test_without_the_limit_of_the_queue_everybody_would_wait(tmp_path: Path) -> None:
    async def main() -> None:
        settings = args(tmp_path, batch=BATCH, queue_images=10_000)
        async with asking(settings, load=slow(WORK_S)) as ask:
            statuses, accepted, _ = await open_loop(ask, 3 * PER_S, 1.5)
            assert set(statuses) == {200}
            assert accepted[int(0.99 * len(accepted))] > 10 * WORK_S

    run(main())


def test_more_requests_than_a_gate_takes_are_refused(tmp_path: Path) -> None:
    async def main() -> None:
        settings = args(tmp_path, requests=10, queue_images=10_000)
        async with asking(settings, load=slow(0.1)) as ask:
            answers = await asyncio.gather(
                *(ask("POST", GENERATE, "maker", json=one(index)) for index in range(40))
            )
            codes = Counter(a.status_code for a in answers)
            assert codes[200] == 10 and codes[503] == 30
            assert {a.json()["code"] for a in answers if a.status_code == 503} == {"overloaded"}

    run(main())
