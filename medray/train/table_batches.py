"""Batches from a table in memory: which row image i of a run is, is a function of i and the seed.

Shape letters: N rows of a batch, M rows of the table, K classes, C channels, H and W pixels.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from medray import rng
from medray.errors import UsageError
from medray.records import Batch

STREAM = "train.table"


class TableBatches:
    """Batches of rows (M, C, H, W) with class numbers (M,), for `medray.train.loop.Fit`.

    Each epoch is a permutation of the rows; `balanced`: image i is of class i modulo K, and each
    class has its own epochs. One process; the position is all the state there is.
    """

    def __init__(
        self,
        rows_MCHW: npt.NDArray[np.float32],
        numbers_M: npt.NDArray[np.int64],
        *,
        seed: int,
        balanced: bool,
    ) -> None:
        self._rows, self._numbers, self._seed = rows_MCHW, numbers_M, seed
        classes = range(int(numbers_M.max()) + 1) if balanced else range(1)
        self._pools = [
            np.flatnonzero(numbers_M == c) if balanced else np.arange(len(numbers_M))
            for c in classes
        ]
        if not all(len(pool) for pool in self._pools):
            raise UsageError("a class without a row cannot be drawn as often as the others")
        self._orders: dict[tuple[int, int], npt.NDArray[np.int64]] = {}
        self._images = 0

    def next(self, batch_images: int) -> Batch:
        """The next `batch_images` rows."""
        first, places = self._images, [self._place(self._images + n) for n in range(batch_images)]
        self._images += batch_images
        return Batch(
            keys=tuple(str(place) for place in places),
            images_NCHW=self._rows[places],
            labels_N=self._numbers[places],
            records=(),
            first_index=first,
        )

    def _place(self, image: int) -> int:
        """The row that image number `image` of the run is."""
        turn, pool = divmod(image, len(self._pools))
        epoch, at = divmod(turn, len(self._pools[pool]))
        return int(self._pools[pool][self._order(len(self._pools[pool]), epoch, str(pool))[at]])

    def _order(self, count: int, index: int, what: str) -> npt.NDArray[np.int64]:
        """Permutation `index` of its stream; the last of each stream is kept."""
        stream = f"{STREAM}.{what}"
        key = (rng.stream_id(stream), index)
        if key not in self._orders:
            for old in [k for k in self._orders if k[0] == key[0]]:
                del self._orders[old]
            self._orders[key] = rng.permutation(self._seed, stream, index, count)
        return self._orders[key]

    def state(self) -> dict[str, Any]:
        """The position, and what the rows are."""
        digest = hashlib.sha256(self._rows.tobytes() + self._numbers.tobytes()).hexdigest()
        return {"images": self._images, "rows_sha256": digest, "balanced": len(self._pools) > 1}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to where `state` was taken; UsageError where the rows are others."""
        mine = self.state()
        changed = [name for name in mine if name != "images" and mine[name] != state.get(name)]
        if changed:
            raise UsageError(
                f"the features to go on with are not those that were saved ({', '.join(changed)})",
                hint="give the same features, or start a new run",
            )
        self._images = int(state["images"])
