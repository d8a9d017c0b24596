"""One shard written: a deterministic tar and its idx, published whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import google_crc32c as crc32c
import numpy as np

from medray._parts import open_part, part_path, remove_dead
from medray.errors import DataError, ResourceError, UsageError
from medray.records import SPLITS, Sample, Shard
from medray.shards import _members, _tar
from medray.shards.reader import Row, tar_name
from medray.store import Store, make_folder

_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")


class ShardWriter:
    """Writes one shard: `add` samples, then `close`; until then nothing has the final names.

    As a context, what was not closed is thrown away. UsageError for an unknown encoding or split.
    """

    def __init__(self, store: Store, name: str, split: str, encoding: str = "png") -> None:
        _check_choice("encoding", encoding, tuple(_members.IMAGE_MEMBER))
        _check_choice("split", split, SPLITS)
        self._store, self._name, self._split, self._encoding = store, name, split, encoding
        self._part = _part_path(store, name)
        self._file = open_part(self._part)
        self._rows: list[bytes] = []
        self._keys: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._digest = hashlib.sha256()
        self._bytes = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, sample: Sample, encoded: Sequence[tuple[str, bytes]] | None = None) -> None:
        """Appends a sample; DataError for a bad or repeated key, or what the shard cannot hold.

        `encoded` are its members (extension, bytes), sorted, where they were made elsewhere.
        """
        self._check(sample)
        at = self._bytes
        pieces: list[bytes] = []
        members: list[tuple[str, int, int, str]] = []
        for extension, data in encoded or _members.encode(sample, self._encoding):
            pieces += (_tar.header(f"{sample.key}.{extension}", len(data)), data)
            pieces.append(bytes(_tar.padding(len(data))))
            members.append((extension, at + _tar.BLOCK, len(data), f"{crc32c.value(data):08x}"))
            at += _tar.BLOCK + len(data) + len(pieces[-1])
        body = b"".join(pieces)
        row: Row = {
            "key": sample.key,
            "offset": self._bytes,
            "size": len(body),
            "crc32c": f"{crc32c.value(body):08x}",
            "sha256": hashlib.sha256(body).hexdigest(),
            "label": sample.label,
            "members": members,
        }
        self._write(body)
        self._rows.append(json.dumps(row, separators=(",", ":")).encode() + b"\n")
        self._keys.add(sample.key)
        self._counts.update(classes_of(sample))

    def _check(self, sample: Sample) -> None:
        where = f"{self._name} key {sample.key}"
        if not _KEY.fullmatch(sample.key):
            raise DataError(
                f"a key is 1 to 80 letters, digits, - and _, got {sample.key!r}",
                code="MR-D028",
                where=where,
            )
        if sample.key in self._keys:
            raise DataError("the key is in this shard already", code="MR-D027", where=where)
        if sample.split != self._split:
            raise DataError(
                f"a sample of split {sample.split!r} cannot be in a shard of {self._split!r}",
                code="MR-D033",
                where=where,
            )
        if self._encoding == "png" and sample.image.dtype not in (np.uint8, np.uint16):
            raise DataError(
                f"a PNG holds uint8 or uint16, got {sample.image.dtype}: take raw or zstd",
                code="MR-D030",
                where=where,
            )
        if self._encoding == "png" and sample.frames is not None:
            raise DataError("a PNG holds no clip: take raw or zstd", code="MR-D030", where=where)

    def _write(self, body: bytes) -> None:
        try:
            self._file.write(body)
        except OSError as error:
            self.discard()
            raise ResourceError(f"cannot write {self._part}: {error.strerror}") from error
        self._digest.update(body)
        self._bytes += len(body)

    def close(self) -> Shard:
        """Publishes the tar, then its idx; returns the shard's line for `index.json`."""
        self._write(_tar.END)
        try:
            self._file.flush()
        except OSError as error:
            self.discard()
            raise ResourceError(f"cannot write {self._part}: {error.strerror}") from error
        rows = b"".join(self._rows)
        # Open, and so locked, until it has its name.
        self._store.publish(self._part, tar_name(self._name))
        self._file.close()
        self._store.write_bytes(f"{self._name}.idx", rows)
        return Shard(
            name=self._name,
            split=self._split,
            samples=len(self._keys),
            bytes=self._bytes,
            sha256=self._digest.hexdigest(),
            idx_sha256=hashlib.sha256(rows).hexdigest(),
            class_counts=dict(sorted(self._counts.items())),
        )

    def discard(self) -> None:
        """Throws away what was not published."""
        # Closing flushes, which fails again where the disk is full; the file goes anyway.
        with contextlib.suppress(OSError):
            self._file.close()
        self._part.unlink(missing_ok=True)


def _check_choice(what: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise UsageError(f"{what} {given!r} is unknown, allowed: {', '.join(allowed)}")


def _part_path(store: Store, name: str) -> Path:
    """A file for this writer alone: a late writer of the same shard must not write into it.

    What earlier writers of the shard left, dead by now, is removed.
    """
    if store.is_local:
        target = store.path(tar_name(name))
        make_folder(target.parent)
        remove_dead(target.parent, (f"{target.name}.", f"{name}.idx."))
    else:
        target = Path(tempfile.gettempdir(), f"medray-{tar_name(name)}")
        remove_dead(target.parent, (f"{target.name}.",))
    return part_path(target)


def classes_of(sample: Sample) -> set[str]:
    positive = {name for name, value in sample.labels.items() if value == 1}
    return positive if sample.label is None else positive | {sample.label}
