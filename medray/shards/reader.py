"""One shard opened for random access: every sample is checked against its digest before it leaves.

A shard on this machine is read by position into private memory, not mapped: what was checked is
what leaves, and a file cut meanwhile is an error here, not a signal that ends the process.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from pathlib import Path
from typing import Any, Protocol, TypedDict

import google_crc32c as crc32c

from medray.errors import DataError, ResourceError
from medray.records import Sample, Shard
from medray.shards import _members, _tar
from medray.store import Store


class Row(TypedDict):
    """One line of an `.idx`; a member is [extension, offset, size, crc32c]."""

    key: str
    offset: int
    size: int
    crc32c: str
    sha256: str
    label: str | None
    members: list[tuple[str, int, int, str]]


class _Bytes(Protocol):
    size: int

    def read(self, offset: int, size: int) -> bytes: ...


class _LocalBytes:
    """A file on this machine; closed when the last reader lets go of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)
        self.size = os.fstat(self._handle).st_size

    def read(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._handle, size, offset)
        except OSError as error:
            raise ResourceError(f"cannot read {self._path}: {error.strerror}") from error


class _RemoteBytes:
    """An object in a store, read by ranges."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self.size = store.size(name)

    def read(self, offset: int, size: int) -> bytes:
        return read_whole(self._store, self._name, offset, size)


def read_whole(store: Store, name: str, offset: int, size: int) -> bytes:
    """`size` bytes of an object; DataError where it is shorter, StoreOutage where they stay out."""
    data = store.read_whole(name, offset, size)
    if len(data) < size:
        raise DataError(
            f"it is cut: it ends before byte {offset + size}, at {offset + len(data)}",
            code="MR-D024",
            where=f"{store.url}/{name}",
            hint="copy it there again",
        )
    return data


def tar_name(name: str) -> str:
    """The object that holds a shard's samples."""
    return f"{name}.tar"


def open_shard(store: Store, shard: Shard, *, cached: Path | None = None) -> ShardReader:
    """Opens a shard: its idx and its size are checked here, each sample when it is read.

    `cached` is a whole copy on this machine. DataError for a shard or idx that is missing, cut or
    not the one that `index.json` means.
    """
    rows = read_rows(store, shard)
    try:
        data = _local_or_remote(store, shard, cached)
    except FileNotFoundError as error:
        raise DataError(
            "the index names a shard that is not there",
            code="MR-D026",
            where=f"{store.url}/{tar_name(shard.name)}",
            hint="copy the shard back, or pack the set again",
        ) from error
    reader = ShardReader(shard, rows, data)
    reader.check_size()
    return reader


def open_scanned(path: Path, shard: Shard, rows: list[Row]) -> ShardReader:
    """Opens a tar on this machine whose rows a scan made; DataError if its size changed."""
    reader = ShardReader(shard, rows, _LocalBytes(path))
    reader.check_size()
    return reader


def _local_or_remote(store: Store, shard: Shard, cached: Path | None) -> _Bytes:
    if cached is not None:
        return _LocalBytes(cached)
    if store.is_local:
        return _LocalBytes(store.path(tar_name(shard.name)))
    return _RemoteBytes(store, tar_name(shard.name))


def read_rows(store: Store, shard: Shard) -> list[Row]:
    """The lines of a shard's idx; DataError where they are not those that `index.json` means."""
    where = f"{store.url}/{shard.name}.idx"
    try:
        data = store.read_bytes(f"{shard.name}.idx")
    except FileNotFoundError as error:
        raise DataError("the shard has no idx", code="MR-D026", where=where) from error
    if hashlib.sha256(data).hexdigest() != shard.idx_sha256:
        raise DataError(
            "the idx is not the one that index.json was written for (sha256 differs)",
            code="MR-D023",
            where=where,
            hint="copy the shard and its idx back, or pack the set again",
        )
    try:
        rows: list[Row] = json.loads(b"[" + data.strip().replace(b"\n", b",") + b"]")
        fault = _disagreement(rows, shard)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the idx cannot be read: {error}", code="MR-D021", where=where) from error
    if fault:
        raise DataError(f"the idx disagrees with its shard: {fault}", code="MR-D023", where=where)
    return rows


def _disagreement(rows: list[Row], shard: Shard) -> str:
    """What in an idx cannot be true of the shard that `index.json` describes; empty if nothing."""
    if len(rows) != shard.samples:
        return f"it has {len(rows)} samples, index.json says {shard.samples}"
    if len({row["key"] for row in rows}) != len(rows):
        return "a key stands in it twice"
    at = 0
    for row in rows:
        end = row["offset"] + row["size"]
        if row["offset"] != at:
            return f"key {row['key']} begins at byte {row['offset']}, not {at}"
        for extension, offset, size, _ in row["members"]:
            if not (at < offset and size >= 0 and offset + size <= end):
                return f"member {row['key']}.{extension} lies outside its sample's bytes"
        at = end
    if at + len(_tar.END) != shard.bytes:
        return (
            f"its samples and the end marker take {at + 1024} bytes, index.json says {shard.bytes}"
        )
    return ""


class ShardReader:
    """The samples of one shard by number. Safe to use from several threads."""

    def __init__(self, shard: Shard, rows: list[Row], data: _Bytes) -> None:
        self.shard = shard
        self.rows = rows
        self._data = data

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def keys(self) -> list[str]:
        """The samples' keys, in order."""
        return [row["key"] for row in self.rows]

    def check_size(self) -> None:
        """Refuses a shard of another size than its index says, or without the end marker."""
        end = self.shard.bytes - len(_tar.END)
        if self._data.size != self.shard.bytes:
            raise self._wrong_size()
        if self._data.read(end, len(_tar.END)) != _tar.END:
            raise self._damaged("the end marker is damaged", f"bytes {end} to {self.shard.bytes}")

    def _wrong_size(self) -> DataError:
        size = self._data.size
        what = f"the shard has {size} bytes, its index says {self.shard.bytes}"
        for row in self.rows:
            for extension, offset, length, _ in row["members"]:
                if offset + length > size:
                    member = f"member {row['key']}.{extension}"
                    return self._damaged(f"{what}: it is cut in or before {member}", f"byte {size}")
        return self._damaged(what, f"byte {min(size, self.shard.bytes)}")

    def fetch(self, number: int) -> bytes:
        """The bytes of sample `number`, headers and all; DataError naming member and bytes."""
        row = self.rows[number]
        data = self._data.read(row["offset"], row["size"])
        if f"{crc32c.value(data):08x}" != row["crc32c"] or len(data) != row["size"]:
            raise self._locate(row, data)
        return data

    def sample(self, number: int) -> Sample:
        """Sample `number` decoded."""
        return self.decode(number, self.fetch(number))

    def decode(self, number: int, fetched: bytes) -> Sample:
        """Sample `number` from the bytes that `fetch` gave."""
        row, data = self.rows[number], memoryview(fetched)
        image = mask = None
        record: dict[str, object] = {"label": row["label"], "split": self.shard.split}
        for extension, offset, size, _ in row["members"]:
            where = self.where(row, extension, offset, size)
            body = data[offset - row["offset"] :][:size]
            if extension == _members.MASK:
                mask = _members.decode_picture("png", body, where)
            elif extension in _members.CLIP_MASKS:
                mask = _members.decode_image(extension.removeprefix("mask."), body, where)
            elif extension == _members.RECORD:
                record |= _members.decode_record(body, where)
            elif extension in _members.IMAGES:
                image = _members.decode_image(extension, body, where)
        if image is None:
            raise DataError("the sample has no image", code="MR-D029", where=f"{row['key']}")
        return Sample.from_record(row["key"], record, image, mask)

    def record(self, number: int) -> dict[str, Any]:
        """What is known of sample `number`, its pixels not read; DataError where damaged."""
        row = self.rows[number]
        for extension, offset, size, checksum in row["members"]:
            if extension == _members.RECORD:
                body = self._data.read(offset, size)
                if f"{crc32c.value(body):08x}" != checksum:
                    raise self._locate(row, self._data.read(row["offset"], row["size"]))
                return _members.decode_record(body, self.where(row, extension, offset, size))
        return {"label": row["label"]}

    def where(self, row: Row, extension: str, offset: int, size: int) -> str:
        """The place of a member, for messages."""
        member = f"{row['key']}.{extension}"
        return f"{tar_name(self.shard.name)} member {member}, bytes {offset} to {offset + size}"

    def _locate(self, row: Row, data: bytes) -> DataError:
        """The error for bytes whose digest differs, naming the first member that does."""
        for extension, offset, size, checksum in row["members"]:
            start = offset - row["offset"]
            body = data[start : start + size]
            if len(body) < size or f"{crc32c.value(body):08x}" != checksum:
                return DataError(
                    "damaged: the bytes are not those that were written (crc32c differs)",
                    code="MR-D024",
                    where=self.where(row, extension, offset, size),
                    hint="copy the shard back or pack it again; --on-error skip goes on without",
                )
        for extension, offset, size, _ in row["members"]:
            start = offset - row["offset"]
            if data[start - _tar.BLOCK : start] != _tar.header(f"{row['key']}.{extension}", size):
                place = f"header of member {row['key']}.{extension}"
                span = f"bytes {offset - _tar.BLOCK} to {offset}"
                return self._damaged("damaged tar header (crc32c differs)", f"{place}, {span}")
        span = f"bytes {row['offset']} to {row['offset'] + row['size']}"
        return self._damaged("damaged padding (crc32c differs)", f"key {row['key']}, {span}")

    def _damaged(self, what: str, place: str) -> DataError:
        return DataError(
            what,
            code="MR-D024",
            where=f"{tar_name(self.shard.name)} {place}",
            hint="copy the shard back or pack it again; --on-error skip goes on without",
        )
