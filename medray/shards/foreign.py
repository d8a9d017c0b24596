"""Tars that plain webdataset wrote, read as shards: one scan finds each sample's bytes and label.

A sample is what webdataset takes for one: neighbouring members whose names agree up to the first
dot of the last part. The label is `label` in the `.json`, or the `.cls` or `.txt` member. Digests
are taken at the scan, so that what changes afterwards is found.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
from pathlib import Path

import google_crc32c as crc32c

from medray.errors import DataError
from medray.shards import _members, _tar
from medray.shards.reader import Row


def scan(path: Path, name: str) -> list[Row]:
    """The samples of the tar at `path`, called `name` in messages.

    DataError for a tar that is broken, cut, compressed, has unsafe names, a key twice, or a sample
    without an image.
    """
    if path.stat().st_size < len(_tar.END):
        raise DataError("the archive is cut: it has no end marker", code="MR-D024", where=name)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        with memoryview(mapped) as data:
            members = list(_tar.walk(data, name))
            rows = [
                _row(key, list(group), data, name)
                for key, group in itertools.groupby(members, lambda member: _split(member.name)[0])
            ]
    seen: set[str] = set()
    for row in rows:
        if row["key"] in seen:
            what = "a key stands in two places of the shard"
            raise DataError(what, code="MR-D027", where=f"{name} key {row['key']}")
        seen.add(row["key"])
    return rows


def _split(name: str) -> tuple[str, str]:
    """A member's name as key and extension, at the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension.lower()


def _row(key: str, group: list[_tar.Member], data: memoryview, shard: str) -> Row:
    start, last = group[0].header, group[-1]
    size = last.offset + last.size + _tar.padding(last.size) - start
    bodies = {_split(member.name)[1]: (member.offset, member.size) for member in group}
    where = f"{shard} key {key}"
    if len(bodies) != len(group):
        raise DataError("the sample has a member twice", code="MR-D027", where=where)
    if not set(bodies) & set(_members.IMAGES):
        what = f"no image among the members {sorted(bodies)}, wanted {list(_members.IMAGES)}"
        raise DataError(what, code="MR-D029", where=where)
    whole = bytes(data[start : start + size])
    return {
        "key": key,
        "offset": start,
        "size": size,
        "crc32c": f"{crc32c.value(whole):08x}",
        "sha256": hashlib.sha256(whole).hexdigest(),
        "label": _label(bodies, data, where),
        "members": [
            (extension, at, length, f"{crc32c.value(bytes(data[at : at + length])):08x}")
            for extension, (at, length) in bodies.items()
        ],
    }


def _label(bodies: dict[str, tuple[int, int]], data: memoryview, where: str) -> str | None:
    """The label of a sample, None if it has none."""

    def body(extension: str) -> bytes:
        at, size = bodies[extension]
        return bytes(data[at : at + size])

    if "json" in bodies:
        found = _members.decode_record(body("json"), where).get("label")
        if found is not None:
            return str(found)
    for extension in ("cls", "txt"):
        if extension in bodies:
            try:
                return body(extension).decode().strip()
            except UnicodeDecodeError as error:
                what = f"the .{extension} is not text"
                raise DataError(what, code="MR-D029", where=where) from error
    return None
