"""Long strain: ten thousand requests leave memory as it was, bombs leave others be."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from serve import uploads
from tests.images.test_images_bombs import BOMBS
from tests.memory import resident_mb
from tests.serve.bad_requests import BYTES, CLASSIFY, GENERATE, MODEL, PNG, every
from tests.serve.small_service import Service
from tests.serve.test_bad_requests import sent

pytestmark = pytest.mark.chaos
GROWTH_MB = 100


def posted(service: Service, path: str, **more: Any) -> Any:
    headers = {**service.headers(), **more.pop("headers", {})}
    return service.client.post(path, headers=headers, **more)


async def in_turns(asks: list[Any], at_once: int = 16) -> list[int]:
    """Statuses of requests, so many at once."""
    gate = asyncio.Semaphore(at_once)

    async def one(ask: Any) -> int:
        async with gate:
            return int((await ask()).status_code)

    return list(await asyncio.gather(*map(one, asks)))


def test_ten_thousand_requests_leave_the_memory_as_it_was(service: Service) -> None:
    def made(number: int) -> Any:
        body = {"model": "generator", "class": "clear", "start": number}
        return lambda: posted(service, GENERATE, json=body)

    def judged(_: int) -> Any:
        return lambda: posted(service, CLASSIFY, content=PNG, headers=BYTES, params=MODEL)

    def mixed(first: int, count: int) -> list[Any]:
        return [(made if n % 2 else judged)(n) for n in range(first, first + count)]

    refused = [bad for bad in every() if len(str(bad.request)) < 5000][:100]
    assert set(service.wait(in_turns(mixed(0, 1000)), 300)) == {200}
    for bad in refused:
        sent(service, bad)
    before_mb = resident_mb()
    for part in range(9):
        assert set(service.wait(in_turns(mixed(1000 * (part + 1), 1000)), 300)) == {200}
        for bad in refused:
            sent(service, bad)
    assert resident_mb() - before_mb < GROWTH_MB


def test_bombs_leave_other_callers_their_answers(service: Service) -> None:
    """All bombs after each other, again and again, beside a caller of good files."""
    bombs = itertools.cycle([make() for make, _ in BOMBS.values()])

    async def latencies(seconds: float) -> list[float]:
        found, until = [], time.monotonic() + seconds
        while time.monotonic() < until:
            started = time.perf_counter()
            answer = await posted(service, CLASSIFY, content=PNG, headers=BYTES, params=MODEL)
            assert answer.status_code == 200
            found.append(time.perf_counter() - started)
            await asyncio.sleep(0.01)
        return found

    async def bombing(stop: asyncio.Event) -> None:
        while not stop.is_set():
            await posted(service, CLASSIFY, content=next(bombs), headers=BYTES, params=MODEL)

    async def both() -> tuple[list[float], list[float]]:
        alone, beside, pool = list[float](), list[float](), uploads.shared()
        # In turns: what else this machine does meets both alike.
        for _ in range(10):
            # A successor of a child that a bomb killed starts beside bombs, not beside work.
            while pool._free.qsize() < pool.children:
                await asyncio.sleep(0.01)
            # A process at work beside it is what any upload costs: bombs must cost no more.
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            alone += await latencies(1.5)
            busy.kill()
            busy.wait()
            stop = asyncio.Event()
            task = asyncio.create_task(bombing(stop))
            beside += await latencies(1.5)
            stop.set()
            await task
        return alone, beside

    alone, beside = service.wait(both(), 300)
    slow, fast = (float(np.percentile(found, 99)) for found in (beside, alone))
    print(f"p99 beside work {1e3 * fast:.0f} ms, beside bombs {1e3 * slow:.0f} ms")
    assert slow <= 2 * fast + 0.05
