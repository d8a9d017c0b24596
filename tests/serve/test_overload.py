"""Three times what it can do: the rest is refused at once, what is accepted comes in time."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from serve.records import Made, ModelSpec, Order
from serve.settings import Args
from tests.serve.fakes import GENERATE, Asking, Fake, args, asking, one, run, slow

BATCH = 4
QUEUE = 2 * BATCH
ROUNDS = 75
# A batch waits for the test this long at most, and the test for what it waits for.
HUNG_S = 60.0


class Stepped(Fake):
    """Makes a batch for each permit: what others wait is counted in batches, not in seconds."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.permits = threading.Semaphore(0)
        self.sizes: list[int] = []
        self.held = 0

    def make(self, orders: Sequence[Order], formats: Sequence[str]) -> list[Made]:
        self.held = len(orders)
        assert self.permits.acquire(timeout=HUNG_S)
        self.held = 0
        self.sizes.append(len(orders))
        return super().make(orders, formats)


def stepped(spec: ModelSpec, name: str, args: Args) -> Stepped:
    return Stepped(spec)


async def until(what: Callable[[], bool]) -> None:
    """Waits for what is soon so."""
    until_s = time.monotonic() + HUNG_S
    while not what():
        assert time.monotonic() < until_s
        await asyncio.sleep(0.001)


async def driven(ask: Asking, rounds: int) -> tuple[list[int], list[int], list[int]]:
    """Three times as many requests as are made, in rounds: each time a batch's worth is made.

    How many batches ended while each accepted request waited, while each refused one did, and how
    many images each batch had.
    """
    (loaded,) = ask.services.pool._loaded.values()
    model: Stepped = loaded.model
    accepted: list[int] = []
    refused: list[int] = []

    async def request(index: int) -> None:
        before = len(model.sizes)
        # Few enough that none is the one that the made-up model fails at.
        answer = await ask("POST", GENERATE, "maker", json=one(index % 500))
        assert answer.status_code in (200, 503), answer.text
        assert answer.status_code == 200 or int(answer.headers["retry-after"]) >= 1
        (accepted if answer.status_code == 200 else refused).append(len(model.sizes) - before)

    def settled(done: int) -> bool:
        """So many batches have ended, the next is begun, and all asked is answered or waits."""
        waiting = sum(batcher.waiting for batcher in loaded._batchers.values())
        known = len(accepted) + len(refused) + waiting + model.held
        return known == asked and len(model.sizes) == done and model.held > 0

    asked = 0
    async with asyncio.TaskGroup() as tasks:
        for number in range(rounds):
            for _ in range(3 * BATCH):
                tasks.create_task(request(asked))
                asked += 1
            await until(functools.partial(settled, number))
            model.permits.release()
            await until(functools.partial(settled, number + 1))
        model.permits.release(3 * BATCH * rounds)
    return sorted(accepted), sorted(refused), model.sizes


def test_what_is_beyond_the_capacity_is_refused_and_the_rest_is_served(tmp_path: Path) -> None:
    async def main() -> None:
        settings = args(tmp_path, batch=BATCH, queue_images=QUEUE, requests=200, timeout_s=600)
        async with asking(settings, load=stepped) as ask:
            accepted, refused, sizes = await driven(ask, ROUNDS)
            # Goodput stays, and nobody waits for longer than the queue and two batches take.
            assert sum(sizes) == len(accepted) and len(sizes) >= ROUNDS
            assert sum(sizes) / len(sizes) >= 0.6 * BATCH, sizes
            assert accepted[-1] <= QUEUE / BATCH + 2, accepted[-5:]
            assert refused[len(refused) // 2] == 0, "refused at once"
            # And it recovers at once.
            begun_s = time.perf_counter()
            assert (await ask("POST", GENERATE, "maker", json=one(1))).status_code == 200
            assert time.perf_counter() - begun_s < 5

    run(main())


def test_without_the_limit_of_the_queue_everybody_would_wait(tmp_path: Path) -> None:
    async def main() -> None:
        settings = args(tmp_path, batch=BATCH, queue_images=10_000, timeout_s=600)
        async with asking(settings, load=stepped) as ask:
            accepted, refused, _ = await driven(ask, ROUNDS // 2)
            assert not refused
            assert accepted[int(0.99 * len(accepted))] > 10

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
