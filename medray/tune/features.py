"""Trials on cached features: seconds each. A step fits one small head; the last fits are the same.

Shape letters: N rows, D features, K classes, P parts (inner splits).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from medray import rng
from medray.errors import UsageError
from medray.metrics.classification import auroc_by_class, by_class, confusion
from medray.tune import arms
from medray.tune import head as heads
from medray.tune.cells import Cell
from medray.tune.data import Probabilities, Rows, SearchData
from medray.tune.head import HeadConfig, Lesson
from medray.tune.pools import Pools
from medray.tune.spaces import NEEDS_ARCHIVE, SYNTHETIC, Settings

# Parts of one seed have this many addresses between them.
PARTS = 64


@dataclass
class FeatureTrials:
    """What trials on features need: rows by (fraction, fold), seeds, head, where pools lie."""

    data: Mapping[tuple[float, int | None], SearchData]
    seed: int = 0
    seeds: int = 3
    head: HeadConfig = field(default_factory=HeadConfig)
    select: str = "balanced_accuracy"
    ratio_of: str = "minority"
    largest_ratio: float = 8.0
    pools_url: str | None = None
    acgan: Mapping[str, Any] = field(default_factory=dict)
    _judges: dict[Any, heads.Head] = field(default_factory=dict, repr=False)

    def steps(self, cell: Cell) -> int:
        """Fits of one trial: seeds times parts."""
        return self.seeds * len(self._of(cell).parts)

    @heads.one_thread()
    def score(self, cell: Cell, settings: Settings, step: int) -> float:
        """How well the fit of one step does on its validation rows: higher is better."""
        data = self._of(cell)
        part = step % len(data.parts)
        made = self._fit(cell, settings, step // len(data.parts), part)
        val = data.rows.take(data.parts[part].val)
        return score_of(made.probabilities(val.features_ND), val.labels_N, self.select)

    @heads.one_thread()
    def fit(self, cell: Cell, settings: Settings, seed: int) -> bytes:
        """The weights of a seed: the heads of all its parts."""
        parts = range(len(self._of(cell).parts))
        return Heads(tuple(self._fit(cell, settings, seed, part) for part in parts)).to_bytes()

    @heads.one_thread()
    def predict(self, cell: Cell, weights: bytes, rows: Rows) -> Probabilities:
        """What the heads say of rows on average, (N, K)."""
        said = [made.probabilities(rows.features_ND) for made in Heads.from_bytes(weights).heads]
        mean_NK: Probabilities = np.asarray(np.mean(said, axis=0, dtype=np.float64), np.float32)
        return mean_NK

    def _of(self, cell: Cell) -> SearchData:
        return self.data[cell.fraction, cell.fold]

    def _address(self, seed: int, part: int) -> int:
        """The seed of a fit: the same in every arm, so that arms are paired."""
        return int(rng.integers(self.seed, "tune.fit", seed * PARTS + part, 1, 0, 2**31)[0])

    def _fit(self, cell: Cell, settings: Settings, seed: int, part: int) -> heads.Head:
        data, address = self._of(cell), self._address(seed, part)
        train, val = (data.rows.take(side) for side in _sides(data, part))
        standard = heads.standard_of(train.features_ND)
        real = arms.Real(_scaled(train, standard), train.labels_N, len(data.classes), address)
        lessons = self._lessons(cell, settings, data, real, standard)
        config = HeadConfig(
            **{**vars(self.head), **{n: settings[n] for n in ("lr", "weight_decay", "jitter")}}
        )
        return heads.train(
            lessons, (_scaled(val, standard), val.labels_N), standard, real.classes, config, address
        )

    def _lessons(
        self, cell: Cell, settings: Settings, data: SearchData, real: arms.Real, standard: Any
    ) -> list[Lesson]:
        flat_K = np.ones(real.classes)
        plain = Lesson(real.features_ND, real.labels_N, flat_K)
        if cell.arm == "class-weights":
            weights_K = arms.class_weights(real.labels_N, real.classes)
            return [Lesson(real.features_ND, real.labels_N, weights_K)]
        if cell.arm not in SYNTHETIC:
            return [plain]
        judge = self._judge(real, standard) if settings.get("threshold") else None
        source = self._candidates(cell.arm, data, real, standard)
        # Pre-training meets every class: it is to learn what the classes look like.
        of = "all" if cell.arm == "pretrain" else self.ratio_of
        added = arms.add(real, settings, source, judge, of, arms.least_of(cell.arm))
        if not len(added.labels_M):
            return [plain]
        if cell.arm == "pretrain":
            share = settings["share"]
            first = Lesson(added.features_MD, added.labels_M, flat_K, share)
            return [first, Lesson(real.features_ND, real.labels_N, flat_K, 1 - share)]
        both_ND = np.concatenate([real.features_ND, added.features_MD])
        return [Lesson(both_ND, np.concatenate([real.labels_N, added.labels_M]), flat_K)]

    def _candidates(
        self, arm: str, data: SearchData, real: arms.Real, standard: Any
    ) -> arms.Candidates:
        if arm in NEEDS_ARCHIVE:
            if data.synthetic is None:
                raise UsageError(f"arm {arm} needs --synthetic")
            archive = _scaled(data.synthetic, standard), data.synthetic.labels_N
            return arms.of_archive(archive, real.seed)
        draw = arms.fitted(arm, real) if arm != "acgan" else self._pooled(real)
        if arm == "shuffled":
            return lambda labels_M: arms.shuffled(draw(labels_M), real.seed)
        return draw

    def _pooled(self, real: arms.Real) -> arms.Candidates:
        """A GAN's draws, made once for these rows and this seed and then taken from a file."""
        most_K = arms.wanted_of(real.counts_K, self.largest_ratio, self.ratio_of) * arms.SURPLUS
        pools = Pools(self.pools_url, self.acgan)
        return arms.of_archive(pools.get("acgan", real, most_K), real.seed)

    def _judge(self, real: arms.Real, standard: Any) -> arms.Judge:
        """What a head trained on the real rows alone says of standardised rows."""
        key = (real.seed, real.features_ND.shape, real.labels_N.tobytes())
        if key not in self._judges:
            weights_K = arms.class_weights(real.labels_N, real.classes)
            lesson = Lesson(real.features_ND, real.labels_N, weights_K)
            own = (real.features_ND, real.labels_N)
            unit = np.zeros_like(standard[0]), np.ones_like(standard[1])
            self._judges.clear()
            self._judges[key] = heads.train([lesson], own, unit, real.classes, self.head, real.seed)
        judge: arms.Judge = self._judges[key].probabilities
        return judge


def _sides(data: SearchData, part: int) -> tuple[Any, Any]:
    return data.parts[part].train, data.parts[part].val


def _scaled(rows: Rows, standard: Any) -> npt.NDArray[np.float32]:
    mean_D, scale_D = standard
    scaled_ND: npt.NDArray[np.float32] = (rows.features_ND - mean_D) / scale_D
    return scaled_ND


@dataclass(frozen=True)
class Heads:
    """The heads of one seed, one for each part, as one file."""

    heads: tuple[heads.Head, ...]

    def to_bytes(self) -> bytes:
        """Lengths, then each head."""
        parts = [made.to_bytes() for made in self.heads]
        lengths = np.asarray([len(parts), *map(len, parts)], "<i8").tobytes()
        return lengths + b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> Heads:
        """What `to_bytes` gave."""
        count = int(np.frombuffer(data, "<i8", 1)[0])
        ends = np.cumsum([8 * (count + 1), *np.frombuffer(data, "<i8", count, 8).tolist()])
        found = [heads.Head.from_bytes(data[a:b]) for a, b in zip(ends, ends[1:], strict=False)]
        return cls(tuple(found))


def score_of(probabilities_NK: Probabilities, labels_N: npt.NDArray[np.int64], by: str) -> float:
    """A validation score, higher is better, over the classes that are there."""
    classes = probabilities_NK.shape[1]
    if by == "auroc":
        found = [a for a in auroc_by_class(probabilities_NK, labels_N) if a is not None]
        return float(np.mean(found)) if found else 0.5
    if by == "log_loss":
        own_N = np.maximum(probabilities_NK[np.arange(len(labels_N)), labels_N], 1e-12)
        means = [np.log(own_N[labels_N == k]).mean() for k in np.unique(labels_N)]
        return float(np.mean(means))
    said_N = probabilities_NK.argmax(1).astype(np.int64)
    recalls = [c.recall for c in by_class(confusion(said_N, labels_N, classes))]
    return float(np.mean([recall for recall in recalls if recall is not None]))
