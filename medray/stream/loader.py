"""Shards to batches: the part of each global batch that belongs to this rank.

A position, the number of images that all ranks together have taken, is all the state there is: what
an image number means follows from (seed, number) alone, so batch size and rank count may change.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from medray import log
from medray.errors import DataError, UsageError
from medray.records import Batch
from medray.stream.cache import ShardCache
from medray.stream.decode import Array, Decoder, Records
from medray.stream.mix import Mix
from medray.stream.order import Order, Positions
from medray.stream.sets import OpenSet, Source

SCHEMA = "medray.stream/1"
ON_ERROR = ("raise", "skip")
CACHE_BYTES = 32 << 30


@dataclass(frozen=True, slots=True)
class _Pending:
    """A batch that is being made, and the number of its first image over all ranks."""

    images: int
    batch_images: int
    made: Future[tuple[Batch, int]]


class Stream:
    """Batches of one or several sets of shards, in an order that (seed, epoch) alone decides.

    A damaged sample is a DataError, or with `on_error="skip"` is replaced by the next good one of
    its source's order (which is then seen twice), counted in `skipped` and reported once; all ranks
    go on in step. UsageError for arguments that do not fit, DataError for sets that do not.
    `kept` names, by source and shard, the only samples to give (`Roster.kept`); `unlabelled`, in
    the same form, those whose label is -1 in a batch, whatever their record says.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        split: str = "train",
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        on_error: str = "raise",
        cache_dir: str | Path | None = None,
        cache_bytes: int = CACHE_BYTES,
        threads: int = 2,
        prefetch: int = 4,
        size_px: int | None = None,
        kept: Sequence[Sequence[Positions]] | None = None,
        unlabelled: Sequence[Sequence[Positions]] | None = None,
    ) -> None:
        _check_arguments(sources, rank, world, on_error, threads, prefetch)
        self._seed, self._rank, self._world, self._split = seed, rank, world, split
        self._skip = on_error == "skip"
        self._mix = Mix(seed, [source.weight for source in sources])
        cache = ShardCache(cache_dir, cache_bytes)
        self._sets = [OpenSet(source, split, cache) for source in sources]
        self._orders = [
            Order(
                seed,
                number,
                [shard.samples for shard in opened.shards],
                kept=None if kept is None else kept[number],
            )
            for number, opened in enumerate(self._sets)
        ]
        self._hidden = _places(unlabelled)
        self.channels, self.size_px, self.bits = agreed(self._sets, size_px)
        self.classes = united([opened.index.classes for opened in self._sets])
        self._class_ids = {name: number for number, name in enumerate(self.classes)}
        self._decoder = Decoder(self.channels, self.size_px, self.bits, self._sets[0].name)
        self.samples_per_epoch = sum(order.samples_per_epoch for order in self._orders)
        self.skipped = 0
        self._reported: set[str] = set()
        self._images = 0
        self._prefetch = prefetch
        self._pending: deque[_Pending] = deque()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="medray-stream")

    def next(self, batch_images: int) -> Batch:
        """This rank's consecutive part of the next global batch of `batch_images` images."""
        if batch_images < 1 or batch_images % self._world:
            raise UsageError(
                f"a batch of {batch_images} images cannot be shared by {self._world} ranks evenly"
            )
        self._fill(batch_images, 1)
        try:
            batch, skipped = self._pending[0].made.result()
        except BaseException:
            self._drop_pending()
            raise
        self._pending.popleft()
        self._images += batch_images
        self.skipped += skipped
        self._fill(batch_images, self._prefetch)
        return batch

    def _fill(self, batch_images: int, batches: int) -> None:
        """Sets to work on the next `batches`, taking it that the batch size stays as it is."""
        if self._pending and (self._pending[0].images, self._pending[0].batch_images) != (
            self._images,
            batch_images,
        ):
            self._drop_pending()
        while len(self._pending) < batches:
            images = self._images + len(self._pending) * batch_images
            part = batch_images // self._world
            made = self._pool.submit(self._make, images + self._rank * part, part)
            self._pending.append(_Pending(images, batch_images, made))

    def _drop_pending(self) -> None:
        for pending in self._pending:
            pending.made.cancel()
        self._pending.clear()

    def _make(self, first: int, count: int) -> tuple[Batch, int]:
        """The batch of images `first` to `first + count`, and how many of them are replacements."""
        source_N, number_N = self._mix.draw(first, count)
        shard_N, sample_N = np.empty_like(source_N), np.empty_like(source_N)
        for source in np.unique(source_N).tolist():
            here = source_N == source
            shard_N[here], sample_N[here] = self._orders[source].locate(number_N[here])
        filling = _Filling(count, self._decoder, self._class_ids)
        skipped = 0
        places = zip(source_N, number_N, shard_N, sample_N, strict=True)
        for slot, (source, number, shard, sample) in enumerate(places):
            try:
                self._put(filling, slot, int(source), int(shard), int(sample))
            except DataError as error:
                if not self._skip:
                    raise
                self._report(error)
                self._replace(filling, slot, int(source), int(number))
                skipped += 1
        return filling.batch(first), skipped

    def _put(self, filling: _Filling, slot: int, source: int, shard: int, sample: int) -> None:
        filling.put(slot, self._sets[source], shard, sample)
        if (source, shard, sample) in self._hidden:
            filling.hide_label(slot)

    def _replace(self, filling: _Filling, slot: int, source: int, number: int) -> None:
        """Fills a slot with the next good sample of the order: the same at any rank count."""
        order = self._orders[source]
        for step in range(1, order.samples_per_epoch + 1):
            shard, sample = order.locate(np.asarray([number + step]))
            try:
                return self._put(filling, slot, source, int(shard[0]), int(sample[0]))
            except DataError as error:
                self._report(error)
        raise DataError(
            "no sample of the set can be read", code="MR-D024", where=self._sets[source].name
        )

    def _report(self, error: DataError) -> None:
        if error.where not in self._reported:
            self._reported.add(error.where)
            log.warn("sample_skipped", f"skipped: {error}", where=error.where, code=error.code)

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on from here, at any rank count and batch size; plain JSON."""
        return {
            "schema": SCHEMA,
            "images": self._images,
            "epoch": self._images // self.samples_per_epoch,
            "seed": self._seed,
            "split": self._split,
            "proportions": list(self._mix.counts),
            "samples": [order.samples_per_epoch for order in self._orders],
            "content_sha256": [
                opened.fingerprint + order.kept_digest + self._hidden_digest(number)
                for number, (opened, order) in enumerate(zip(self._sets, self._orders, strict=True))
            ],
        }

    def _hidden_digest(self, source: int) -> str:
        """A digest of the samples of a source whose labels are not used; empty without any."""
        places = sorted(place for place in self._hidden if place[0] == source)
        if not places:
            return ""
        return f" without {hashlib.sha256(json.dumps(places).encode()).hexdigest()}"

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to where `state` was taken; UsageError if seed, split, shares or data differ."""
        mine = self.state()
        fixed = [key for key in mine if key not in ("images", "epoch")]
        changed = [
            f"{key}: {state.get(key)} -> {mine[key]}"
            for key in fixed
            if state.get(key) != mine[key]
        ]
        if changed:
            raise UsageError(
                "the stream to go on with is not the one that was saved: " + "; ".join(changed),
                hint="give the same data, seed and proportions, or start a new run",
            )
        self._drop_pending()
        self._images = int(state["images"])

    def close(self) -> None:
        """Ends the threads."""
        self._drop_pending()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Filling:
    """A batch while its slots are filled."""

    def __init__(self, count: int, decoder: Decoder, class_ids: dict[str, int]) -> None:
        self._decoder, self._class_ids = decoder, class_ids
        self._images_NCHW: Array = np.empty((count, *decoder.shape_CHW), decoder.dtype)
        self._labels = [-1] * count
        self._keys = [""] * count
        self._records = [b""] * count
        self._masks_NHW: Array | None = None

    def put(self, slot: int, opened: OpenSet, shard: int, sample: int) -> None:
        """Fills one slot; DataError leaves it to be filled again."""
        reader, data = opened.fetch(shard, sample)
        row = reader.rows[sample]
        label = row["label"]
        if label is not None and label not in self._class_ids:
            raise DataError(
                f"the label {label!r} is not among the classes {list(self._class_ids)}",
                code="MR-D032",
                where=f"{reader.shard.name} key {row['key']}",
            )
        record, mask = self._decoder.into(self._images_NCHW[slot], reader, sample, data)
        self._labels[slot] = -1 if label is None else self._class_ids[label]
        self._keys[slot] = row["key"]
        # A plain tar may say the label in a member of its own and have no record.
        self._records[slot] = record or json.dumps({"label": label}).encode()
        if mask is not None:
            if self._masks_NHW is None:
                count, _, height, width = self._images_NCHW.shape
                self._masks_NHW = np.zeros((count, height, width), np.uint8)
            self._masks_NHW[slot] = mask

    def hide_label(self, slot: int) -> None:
        """Takes a slot's label away."""
        self._labels[slot] = -1

    def batch(self, first_index: int) -> Batch:
        return Batch(
            keys=tuple(self._keys),
            images_NCHW=self._images_NCHW,
            labels_N=np.asarray(self._labels, np.int64),
            records=Records(self._records),
            first_index=first_index,
            masks_NHW=self._masks_NHW,
        )


def _places(
    samples: Sequence[Sequence[Positions]] | None,
) -> frozenset[tuple[int, int, int]]:
    """(source, shard, sample) of samples by source and shard."""
    return frozenset(
        (source, shard, int(sample))
        for source, shards in enumerate(samples or ())
        for shard, numbers in enumerate(shards)
        for sample in numbers
    )


def _check_arguments(
    sources: Sequence[Source], rank: int, world: int, on_error: str, threads: int, prefetch: int
) -> None:
    faults = {
        "no source is given": not sources,
        f"rank must be 0 to {world - 1}, got {rank}": not 0 <= rank < world,
        f"on_error must be one of {ON_ERROR}, got {on_error!r}": on_error not in ON_ERROR,
        f"threads must be 1 or more, got {threads}": threads < 1,
        f"prefetch must be 0 or more, got {prefetch}": prefetch < 0,
    }
    for text, wrong in faults.items():
        if wrong:
            raise UsageError(text)


def agreed(sets: Sequence[OpenSet], size_px: int | None) -> tuple[int, int, int]:
    """(channels, size_px, bits) of all sets; DataError naming two that differ."""
    forms = [(it.index.channels, it.index.size_px, it.index.bits) for it in sets]
    for other, form in zip(sets, forms, strict=True):
        if form != forms[0]:
            raise DataError(
                "two sources differ in (channels, size_px, bits): "
                f"{sets[0].name} has {forms[0]}, {other.name} has {form}",
                code="MR-D031",
                hint="pack them alike",
            )
    if size_px is not None and forms[0][1] != size_px:
        raise DataError(
            f"images of {size_px} px are wanted, {sets[0].name} has {forms[0][1]}",
            code="MR-D031",
            hint=f"pack with --size-px {size_px}",
        )
    return forms[0]


def united(lists: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """All classes, in the order in which they are first named."""
    return tuple(dict.fromkeys(name for names in lists for name in names))
