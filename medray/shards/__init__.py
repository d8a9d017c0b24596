"""The one on-disk format: tar shards in the WebDataset form, an `.idx` each, `index.json` last.

`NAME.tar` holds samples of one split, each as consecutive members `KEY.json`, `KEY.mask.png` where
there is a mask, and `KEY.png`, `KEY.npy` or `KEY.npy.zst`; times and owners are fixed, so that the
same samples give the same bytes. Clips (`kind` in `index.json`) are (T, H, W) in `KEY.npy` or
`KEY.npy.zst`, and so are their masks in `KEY.mask.npy` or `KEY.mask.npy.zst`.
`NAME.idx` has one JSON line per sample:

    {"key", "offset", "size", "crc32c", "sha256", "label",
     "members": [[extension, offset, size, crc32c], ...]}

`offset` and `size` are the sample's whole range in the tar, headers and padding included, and both
digests cover that range. The ranges follow each other without a gap; after the last come only the
1,024 zero bytes of the end marker. A member's offset is that of its data, from the shard's first
byte. The sha256 of the tar and of the idx stand in `index.json`.

Plain webdataset reads all of it; for `.npy.zst` it needs one line:

    wds.WebDataset(url).decode(wds.handle_extension("npy.zst",
        lambda data: np.load(io.BytesIO(zstandard.decompress(data)))))
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from medray.errors import DataError, UsageError
from medray.records import CLIPS, IMAGES, SPLITS, Sample, Shard, ShardIndex
from medray.shards._index import INDEX, read_index, write_index
from medray.shards._members import encode as encode_members
from medray.shards._verify import verify
from medray.shards.reader import ShardReader, open_shard
from medray.shards.writer import ShardWriter, classes_of
from medray.store import Store

__all__ = [
    "INDEX",
    "ShardReader",
    "ShardWriter",
    "encode_members",
    "open_shard",
    "read_index",
    "verify",
    "write_index",
    "write_set",
]

SAMPLES_PER_SHARD = 1000


def write_set(
    url: str | Path,
    samples: Iterable[Sample],
    *,
    name: str,
    classes: Sequence[str],
    size_px: int,
    encoding: str = "png",
    samples_per_shard: int = SAMPLES_PER_SHARD,
    source: str = "",
    licence: str = "",
    audited: bool = False,
) -> ShardIndex:
    """Writes samples, of any splits, as a whole set; keys become `{split}-{number:08d}` in order.

    DataError where an image differs from the first in channels, bits or kind (image, clip), is not
    `size_px` square, or has a label outside `classes`; UsageError where a finished set stands at
    `url` already.
    """
    store = Store(url)
    if store.exists(INDEX):
        raise UsageError(
            f"{store.url} holds a finished set already: remove it, or take another place"
        )
    with contextlib.ExitStack() as stack:
        splits: dict[str, _Split] = {}
        kind: _Kind | None = None
        for sample in samples:
            if sample.split not in splits:
                splits[sample.split] = stack.enter_context(
                    _Split(store, sample.split, encoding, samples_per_shard)
                )
            kind = _same_kind(sample, kind, classes, size_px)
            splits[sample.split].add(sample)
        shards = [shard for split in SPLITS if split in splits for shard in splits[split].finish()]
    channels, bits, of = kind or (1, 8, IMAGES)
    index = ShardIndex(
        name=name,
        classes=tuple(classes),
        channels=channels,
        size_px=size_px,
        bits=bits,
        encoding=encoding,
        source=source,
        licence=licence,
        audited=audited,
        shards=tuple(shards),
        kind=of,
    )
    write_index(store, index)
    return index


class _Split:
    """The shards of one split, one after the other."""

    def __init__(self, store: Store, split: str, encoding: str, samples_per_shard: int) -> None:
        self._store, self._split, self._encoding = store, split, encoding
        self._per_shard = samples_per_shard
        self._done: list[Shard] = []
        self._count = 0
        self._writer: ShardWriter | None = None

    def __enter__(self) -> _Split:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.discard()

    def add(self, sample: Sample) -> None:
        if self._writer is None:
            shard = f"{self._split}-{len(self._done):06d}"
            self._writer = ShardWriter(self._store, shard, self._split, self._encoding)
        self._writer.add(replace(sample, key=f"{self._split}-{self._count:08d}"))
        self._count += 1
        if len(self._writer) == self._per_shard:
            self.finish()

    def finish(self) -> list[Shard]:
        if self._writer is not None:
            self._done.append(self._writer.close())
            self._writer = None
        return self._done


_Kind = tuple[int, int, str]


def _same_kind(sample: Sample, kind: _Kind | None, classes: Sequence[str], size_px: int) -> _Kind:
    """(channels, bits, kind) of a sample, once they, its size and its label fit the set."""
    image, where, clip = sample.image, f"key {sample.key}", sample.frames is not None
    shape_HW = image.shape[1:] if clip else image.shape[:2]
    found = (
        1 if clip or image.ndim == 2 else 3,
        8 * image.itemsize,
        CLIPS if clip else IMAGES,
    )
    if kind is not None and found != kind:
        what = f"{found[0]} channels of {found[1]} bits, in a set of {kind[0]} of {kind[1]}"
        if found[2] != kind[2]:
            what = f"another kind: {found[2]} among {kind[2]}"
        raise DataError(f"an image has {what}", code="MR-D030", where=where)
    if shape_HW != (size_px, size_px):
        shape = "x".join(map(str, shape_HW))
        raise DataError(f"an image is {shape} px, the set {size_px}", code="MR-D030", where=where)
    unknown = classes_of(sample) - set(classes)
    if unknown:
        what = f"labels {sorted(unknown)} are not among the classes {list(classes)}"
        raise DataError(what, code="MR-D032", where=where)
    return found
