"""Batches of puzzles, made ahead of the network: puzzle i is a function of (seed, i) and frames.

Shape letters: N puzzles of this rank, S = 9 places, C channels, p pixels of a view, P permutations.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from medray import rng
from medray.errors import UsageError
from medray.records import Batch
from medray.stream.frames import Frames
from medray.stream.views import Views

AHEAD = 4
CLIPS, FRAME, ORDER = "jigsaw.clips", "jigsaw.frame", "jigsaw.order"

Numbers = npt.NDArray[np.int64]


class PuzzleBatches:
    """Puzzles for `medray.train.loop.Fit`: each epoch shows one frame of each clip.

    A batch's images are the views `(N, 9 C, p, p)` float32, its labels the permutations' numbers.
    The position is all the state there is.
    """

    def __init__(
        self,
        frames: Frames,
        views: Views,
        permutations: Sequence[str],
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        threads: int = 1,
    ) -> None:
        self._frames, self._views, self._seed = frames, views, seed
        self._rank, self._world = rank, world
        self._orders_PS = orders_of(permutations)
        self._digest = frames.digest()
        self._clips = lru_cache(maxsize=4)(self._epoch)
        self._images = 0
        self._pending: deque[tuple[int, int, Future[Batch]]] = deque()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="medray-views")

    def next(self, batch_images: int) -> Batch:
        """This rank's part of the next `batch_images` puzzles."""
        if batch_images < 1 or batch_images % self._world:
            raise UsageError(
                f"a batch of {batch_images} frames cannot be shared by {self._world} ranks evenly"
            )
        if self._pending and self._pending[0][:2] != (self._images, batch_images):
            self._drop()
        self._ahead(batch_images, 1)
        batch = self._pending.popleft()[2].result()
        self._images += batch_images
        self._ahead(batch_images, AHEAD)
        return batch

    def _ahead(self, batch_images: int, batches: int) -> None:
        part = batch_images // self._world
        while len(self._pending) < batches:
            images = self._images + len(self._pending) * batch_images
            made = self._pool.submit(self.make, images + self._rank * part, part)
            self._pending.append((images, batch_images, made))

    def make(self, first: int, count: int) -> Batch:
        """Puzzles `first` to `first + count` of the run."""
        numbers_N = np.arange(first, first + count)
        clip_N, frame_N = self._drawn(numbers_N)
        order_N = rng.integers(self._seed, ORDER, numbers_N, 1, 0, len(self._orders_PS))[:, 0]
        views = self._views.make(
            self._frames.frames_FCHW, frame_N, numbers_N, self._orders_PS[order_N]
        )
        return Batch(
            keys=tuple(self._frames.facts[clip].key for clip in clip_N),
            images_NCHW=views.reshape(count, -1, *views.shape[-2:]),
            labels_N=order_N,
            records=(),
            first_index=first,
        )

    def _drawn(self, numbers_N: Numbers) -> tuple[Numbers, Numbers]:
        """The clip and the frame of each puzzle."""
        clips = len(self._frames.facts)
        clip_N = np.array([self._clips(n // clips)[n % clips] for n in numbers_N.tolist()])
        first_N = self._frames.starts[clip_N]
        count_N = self._frames.starts[clip_N + 1] - first_N
        drawn_N = rng.uniforms(self._seed, FRAME, numbers_N, 1)[:, 0].astype(np.float64)
        return clip_N, first_N + (drawn_N * count_N).astype(np.int64)

    def _epoch(self, epoch: int) -> Numbers:
        return rng.permutation(self._seed, CLIPS, epoch, len(self._frames.facts))

    def state(self) -> dict[str, Any]:
        """The position, and what is drawn from."""
        return {"images": self._images, "seed": self._seed, "frames_sha256": self._digest}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to where `state` was taken; UsageError where frames or seed are others."""
        mine = self.state()
        changed = [name for name in mine if name != "images" and mine[name] != state.get(name)]
        if changed:
            raise UsageError(
                f"the frames to go on with are not those that were saved ({', '.join(changed)})",
                hint="give the same data and seed, or start a new run",
            )
        self._drop()
        self._images = int(state["images"])

    def _drop(self) -> None:
        for _, _, made in self._pending:
            made.cancel()
        self._pending.clear()

    def close(self) -> None:
        """Ends the threads."""
        self._drop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> PuzzleBatches:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def orders_of(permutations: Sequence[str]) -> Numbers:
    """Permutations as numbers, (P, S)."""
    return np.array([[int(place) for place in text] for text in permutations], np.int64)
