"""Clients that ask for images without pause while something is done to the service.

What the row `replica_killed` and tests of faults count: answers by status, wrong bytes, pauses.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

from serve.client import Client, Refused


class Callers:
    """`count` threads, each asking for one image after the other and looking at its bytes.

    `connect` makes a client; `expected` has the bytes of images 0 to N - 1 of seed 3. With
    `reconnect` each request has a connection of its own: the kernel deals them out to all gates.
    """

    SEED = 3

    def __init__(
        self,
        connect: Callable[[], Client],
        count: int,
        expected: Mapping[int, bytes],
        *,
        reconnect: bool = False,
    ) -> None:
        self._connect, self._expected, self._reconnect = connect, expected, reconnect
        # By status, or by the kind of error of a connection that broke.
        self.statuses: Counter[int | str] = Counter()
        self.codes: Counter[str] = Counter()
        self.wrong = 0
        self.good_s = [time.monotonic()]
        self.failed_s: list[float] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(count)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def answers(self) -> int:
        """How many requests were answered, well or not."""
        return self.statuses.total()

    @property
    def failed(self) -> int:
        """How many of them were not answered with an image."""
        return self.answers - self.statuses[200]

    @property
    def pause_s(self) -> float:
        """The longest time without a good answer."""
        times_s = sorted(self.good_s)
        return max((b - a for a, b in zip(times_s, times_s[1:], strict=False)), default=0.0)

    def _ask(self, number: int) -> None:
        while not self._stop.is_set():
            with self._connect() as client:
                while not self._stop.is_set():
                    number = (number + 1) % len(self._expected)
                    self._ask_one(client, number)
                    if self._reconnect:
                        break

    def _ask_one(self, client: Client, number: int) -> None:
        try:
            (image,) = client.generate(seed=self.SEED, start=number)
        except Refused as refused:
            self.codes[refused.code] += 1
            self._failed(refused.status)
        except OSError as error:
            self._failed(type(error).__name__)
        else:
            self.wrong += image.data != self._expected[number]
            self.statuses[200] += 1
            self.good_s.append(time.monotonic())

    def _failed(self, how: int | str) -> None:
        self.statuses[how] += 1
        self.failed_s.append(time.monotonic())
