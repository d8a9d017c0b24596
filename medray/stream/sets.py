"""One source opened: its index, and its shards, some of them held open.

A source is a set that medray packed, or tars that plain webdataset wrote (a folder of them, one, or
a list), which are scanned once.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medray import log
from medray.errors import DataError
from medray.records import CLIPS, IMAGES, SPLITS, Shard, ShardIndex
from medray.shards import INDEX, _members, foreign, read_index
from medray.shards.reader import (
    Row,
    ShardReader,
    open_scanned,
    open_shard,
    read_rows,
    tar_name,
)
from medray.store import Store
from medray.stream.cache import ShardCache

SHARDS_OPEN = 64


@dataclass(frozen=True)
class Source:
    """A set of shards by folder or URL, or plain tars by their paths; `weight` is its share."""

    url: str | Path | Sequence[str | Path]
    weight: float = 1.0

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return str(self.url if isinstance(self.url, str | Path) else list(map(str, self.url)))


class OpenSet:
    """The shards of one split of a source, by number. Thread-safe.

    DataError for a set that lacks the split, or whose samples are not of this `kind`.
    """

    def __init__(self, source: Source, split: str, cache: ShardCache, kind: str = IMAGES) -> None:
        self.name = source.name
        self._cache = cache
        self._files = (
            _Packed(source, cache, kind)
            if kind == CLIPS or not _is_foreign(source)
            else _Foreign(source, split, cache)
        )
        self.index = self._files.index
        self.shards = self.index.of_split(split)
        if not self.shards:
            present = sorted({shard.split for shard in self.index.shards})
            raise DataError(
                f"the set has no shard of split {split!r}, only of {present}",
                code="MR-D033",
                where=self.name,
            )
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        self._lock = threading.Lock()
        self._opening = [threading.Lock() for _ in self.shards]
        self._refused: dict[int, DataError] = {}
        self._fetched_again: set[int] = set()

    @property
    def fingerprint(self) -> str:
        """A digest of the split's content."""
        text = "".join(shard.sha256 for shard in self.shards)
        return hashlib.sha256(text.encode()).hexdigest()

    def reader(self, number: int) -> ShardReader:
        """Shard `number`, opened; DataError if it is damaged."""
        reader = self._open_reader(number)
        if reader is not None:
            return reader
        with self._opening[number]:
            if number in self._refused:
                raise self._refused[number].with_traceback(None)
            try:
                reader = self._open_reader(number) or self._files.open(self.shards[number])
            except DataError as error:
                self._refused[number] = error
                raise
        with self._lock:
            self._readers[number] = reader
            while len(self._readers) > SHARDS_OPEN:
                self._readers.popitem(last=False)
        return reader

    def labels(self, number: int) -> list[str | None]:
        """Labels of the samples of shard `number`, which is not opened."""
        return [row["label"] for row in self._files.rows(self.shards[number])]

    def _open_reader(self, number: int) -> ShardReader | None:
        with self._lock:
            if number in self._readers:
                self._readers.move_to_end(number)
            return self._readers.get(number)

    def fetch(self, number: int, sample: int) -> tuple[ShardReader, bytes]:
        """A sample's checked bytes, and its reader; a damaged local copy is made once more."""
        reader = self.reader(number)
        try:
            return reader, reader.fetch(sample)
        except DataError:
            if not self._renewed(number, reader):
                raise
        reader = self.reader(number)
        return reader, reader.fetch(sample)

    def _renewed(self, number: int, reader: ShardReader) -> bool:
        """Whether there is another copy of a remote shard than the one that `reader` reads."""
        with self._opening[number], self._lock:
            if self._readers.get(number) is not reader:
                return True
            if number in self._fetched_again or not self._files.forget(self.shards[number]):
                return False
            self._fetched_again.add(number)
            del self._readers[number]
            return True


class _Packed:
    """The files of a set with an index."""

    def __init__(self, source: Source, cache: ShardCache, kind: str) -> None:
        assert isinstance(source.url, str | Path)
        self._store = store = Store(source.url)
        self._cache = cache
        self.index = read_index(store, kind)

    def rows(self, shard: Shard) -> list[Row]:
        return read_rows(self._store, shard)

    def open(self, shard: Shard) -> ShardReader:
        if self._store.is_local:
            return open_shard(self._store, shard)
        name = tar_name(shard.name)
        try:
            copy = self._cache.copy(self._store, name, shard.bytes, shard.sha256)
        except FileNotFoundError:
            # Opened without a copy, the shard is refused with the reason.
            return open_shard(self._store, shard)
        return open_shard(self._store, shard, cached=copy)

    def forget(self, shard: Shard) -> bool:
        """Drops the local copy of a remote shard; False where there is none to drop."""
        if not self._store.is_local:
            self._cache.drop(shard.sha256)
        return not self._store.is_local


def _is_foreign(source: Source) -> bool:
    if not isinstance(source.url, str | Path) or str(source.url).endswith(".tar"):
        return True
    store = Store(source.url)
    return not store.exists(INDEX) and bool(_tars(store))


def _tars(store: Store) -> list[str]:
    return [name for name in store.names() if name.endswith(".tar") and "/" not in name]


class _Foreign:
    """Tars without an index: scanned when the source is opened, once per cache folder."""

    def __init__(self, source: Source, split: str, cache: ShardCache) -> None:
        self._cache = cache
        self._places: dict[str, tuple[Store, str]] = {}
        for url in _tar_urls(source):
            name, place = _place(url)
            if name in self._places:
                what = f"two tars are called {name}.tar: give each a name of its own"
                raise DataError(what, code="MR-D027", where=url)
            self._places[name] = place
        self._rows: dict[str, list[Row]] = {}
        shards = [self._scan(name, split) for name in sorted(self._places)]
        shards = [shard for shard in shards if shard.samples]
        if not shards:
            raise DataError("no samples in these tars", code="MR-D022", where=source.name)
        self.index = self._make_index(source, shards)

    def _scan(self, name: str, split: str) -> Shard:
        path, identity = self._local(name)
        rows = self._rows[name] = self._scanned(path, identity, name)
        named = [known for known in SPLITS if name.startswith(known)]
        return Shard(
            name=name,
            split=named[0] if named else split,
            samples=len(rows),
            bytes=path.stat().st_size,
            sha256=hashlib.sha256("".join(row["sha256"] for row in rows).encode()).hexdigest(),
            idx_sha256="",
            class_counts=dict(Counter(row["label"] for row in rows if row["label"] is not None)),
        )

    def _scanned(self, path: Path, identity: str, name: str) -> list[Row]:
        kept = self._cache.path(f"scan of {identity}", ".json")
        if kept.exists():
            try:
                rows: list[Row] = json.loads(kept.read_bytes())
                return rows
            except ValueError:
                log.warn(
                    "scan_damaged", f"the kept scan {kept} is damaged: {name} is scanned again"
                )
        rows = foreign.scan(path, tar_name(name))
        if self._cache.lasting:
            Store(self._cache.folder).write_bytes(kept.name, json.dumps(rows).encode())
        return rows

    def _local(self, name: str) -> tuple[Path, str]:
        """A path on this machine for a tar, and what identifies the version of it."""
        store, file = self._places[name]
        if store.is_local:
            path = store.path(file)
            if not path.exists():
                raise DataError("there is no such tar", code="MR-D026", where=str(path))
            status = path.stat()
            return path, f"{path} {status.st_size} {status.st_mtime_ns}"
        size = store.size(file)
        identity = f"{store.url}/{file} {size}"
        return self._cache.copy(store, file, size, identity), identity

    def _make_index(self, source: Source, shards: list[Shard]) -> ShardIndex:
        names = {name for shard in shards for name in shard.class_counts}
        image = self.open(shards[0]).sample(0).image
        return ShardIndex(
            name=source.name,
            classes=tuple(
                sorted(names, key=lambda name: (len(name) if name.isdigit() else 0, name))
            ),
            channels=3 if image.ndim == 3 else 1,
            size_px=image.shape[0],
            bits=8 * image.itemsize,
            encoding=_encoding(self._rows[shards[0].name][0]),
            source=source.name,
            licence="",
            audited=False,
            shards=tuple(shards),
        )

    def rows(self, shard: Shard) -> list[Row]:
        return self._rows[shard.name]

    def open(self, shard: Shard) -> ShardReader:
        return open_scanned(self._local(shard.name)[0], shard, self._rows[shard.name])

    def forget(self, shard: Shard) -> bool:
        """Drops the local copy of a remote tar; False where there is none to drop."""
        store, _ = self._places[shard.name]
        if not store.is_local:
            self._cache.drop(self._local(shard.name)[1])
        return not store.is_local


def _encoding(row: Row) -> str:
    present = {member[0] for member in row["members"]}
    return next((name for name, it in _members.IMAGE_MEMBER.items() if it in present), "png")


def _tar_urls(source: Source) -> list[str]:
    if not isinstance(source.url, str | Path):
        return [str(url) for url in source.url]
    if str(source.url).endswith(".tar"):
        return [str(source.url)]
    return [f"{source.url}/{name}" for name in _tars(Store(source.url))]


def _place(url: str) -> tuple[str, tuple[Store, str]]:
    folder, _, file = url.rpartition("/")
    return file.removesuffix(".tar"), (Store(folder or "."), file)
