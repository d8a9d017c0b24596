"""Tar headers, made and read, as bytes.

Made: USTAR, regular files, mode 644, owner 0, time 0. Read: what tar programs commonly write
(USTAR, GNU long names, pax); links, devices, absolute names and `..` are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from medray.errors import DataError

BLOCK = 512
END = bytes(2 * BLOCK)
_NAME_BYTES = 100
# The fields of a header around those that differ from member to member.
_MODE_OWNER, _TIME = b"0000644\0" + b"0000000\0" * 2, b"00000000000\0"
_REST = (
    b"0".ljust(_NAME_BYTES + 1, b"\0")
    + b"ustar\x0000".ljust(8 + 64, b"\0")
    + b"0000000\0" * 2
    + bytes(BLOCK - 345)
)
# The checksum is taken with its own field as blanks.
_FIXED_SUM = sum(_MODE_OWNER) + sum(_TIME) + sum(b" " * 8) + sum(_REST)
_SKIPPED_TYPES = (b"5", b"g")  # folders, and defaults for all members that follow


class Member(NamedTuple):
    """One file in an archive: its name, where its headers and its data begin, and its size."""

    name: str
    header: int
    offset: int
    size: int


def padding(size: int) -> int:
    """Zero bytes that follow `size` bytes of data, to the next block."""
    return -size % BLOCK


def header(name: str, size: int) -> bytes:
    """The 512 bytes before a regular file of `size` bytes: USTAR, mode 644, owner 0, time 0."""
    encoded = name.encode()
    assert len(encoded) <= _NAME_BYTES, f"a member's name has at most {_NAME_BYTES} bytes: {name}"
    digits = b"%011o\0" % size
    checksum = b"%06o\0 " % (_FIXED_SUM + sum(encoded) + sum(digits))
    return b"".join(
        (encoded.ljust(_NAME_BYTES, b"\0"), _MODE_OWNER, digits, _TIME, checksum, _REST)
    )


def check_name(name: str, where: str) -> None:
    """Refuses a name that could lead outside the folder an archive is unpacked in."""
    parts = name.split("/")
    control = any(ord(letter) < 32 for letter in name)
    if not name or name.startswith("/") or ".." in parts or "\\" in name or control:
        raise DataError(
            f"the member name {name!r} is refused: it must be relative, without .. or backslashes",
            code="MR-D028",
            where=where,
        )


def walk(data: memoryview, shard: str) -> Iterator[Member]:
    """The regular files of an archive in order; DataError naming the byte where it is broken."""
    at, first, attributes = 0, 0, dict[str, str]()
    while True:
        block = bytes(data[at : at + BLOCK])
        if block == END[:BLOCK]:
            return
        size = _checked_size(block, shard, at)
        kind, body = block[156:157], at + BLOCK
        size = int(attributes.get("size", size)) if kind in (b"0", b"\0") else size
        following = body + size + padding(size)
        if body + size > len(data):
            raise _broken(shard, at, f"a member of {size} bytes ends after the file's last byte")
        if kind == b"x":
            attributes |= _pax(bytes(data[body : body + size]), shard, at)
        elif kind == b"L":
            attributes["path"] = bytes(data[body : body + size]).rstrip(b"\0").decode()
        elif kind in (b"0", b"\0"):
            name = attributes.get("path") or _name(block, shard, at)
            check_name(name, f"{shard} byte {at}")
            yield Member(name, first, body, size)
            first, attributes = following, {}
        elif kind not in _SKIPPED_TYPES:
            raise _broken(shard, at, f"a member of type {kind!r} (link or device) is refused")
        at = following


def _checked_size(block: bytes, shard: str, at: int) -> int:
    """The size field of a header, once its checksum agrees."""
    if len(block) < BLOCK:
        raise _broken(shard, at, "the archive is cut: it has no end marker")
    try:
        if int(block[148:156].rstrip(b"\0 "), 8) != sum(block) - sum(block[148:156]) + 8 * 32:
            raise _broken(shard, at, "a header's checksum does not agree")
        if block[124] & 0x80:
            return int.from_bytes(block[125:136], "big")
        return int(block[124:136].rstrip(b"\0 "), 8)
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise _broken(shard, at, "these bytes are no tar header") from error


def _name(block: bytes, shard: str, at: int) -> str:
    name, prefix = block[:100].split(b"\0")[0], block[345:500].split(b"\0")[0]
    joined = prefix + b"/" + name if prefix and block[257:263] == b"ustar\0" else name
    try:
        return joined.decode()
    except UnicodeDecodeError as error:
        raise _broken(shard, at, "a member's name is not UTF-8") from error


def _pax(body: bytes, shard: str, at: int) -> dict[str, str]:
    """The records of an extended header that matter here, `path` and `size`."""
    found = {}
    while body:
        length_text, _, _ = body.partition(b" ")
        try:
            length = int(length_text)
            key, _, value = body[len(length_text) + 1 : length - 1].decode().partition("=")
        except ValueError as error:
            raise _broken(shard, at, "an extended header cannot be read") from error
        if length <= len(length_text):
            raise _broken(shard, at, "an extended header cannot be read")
        if key in ("path", "size"):
            found[key] = value
        body = body[length:]
    return found


def _broken(shard: str, at: int, what: str) -> DataError:
    return DataError(what, code="MR-D024", where=f"{shard} byte {at}")
