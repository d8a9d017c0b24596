"""Many images as one answer: parts of multipart/mixed, or the tar that a shard is."""

from __future__ import annotations

import json
import tarfile
from collections.abc import AsyncIterator, Iterable

from serve.records import Made

BLOCK = 512


async def parts(
    batches: AsyncIterator[list[Made]], boundary: str, extension: str
) -> AsyncIterator[bytes]:
    """RFC 2046: each image with its type, length, address and name."""
    async for batch in batches:
        yield b"".join(_part(made, boundary, extension) for made in batch)
    yield f"--{boundary}--\r\n".encode()


def _part(made: Made, boundary: str, extension: str) -> bytes:
    head = (
        f"--{boundary}\r\nContent-Type: {made.media_type}\r\nContent-Length: {len(made.data)}\r\n"
        f"X-Medray-Address: {made.address}\r\n"
        f'Content-Disposition: attachment; filename="{_key(made)}.{extension}"\r\n\r\n'
    )
    return head.encode() + made.data + b"\r\n"


async def tar(batches: AsyncIterator[list[Made]]) -> AsyncIterator[bytes]:
    """A tar in the form of a shard: of each image its record and its PNG."""
    async for batch in batches:
        yield b"".join(_members(batch))
    yield bytes(2 * BLOCK)


def _members(batch: Iterable[Made]) -> Iterable[bytes]:
    for made in batch:
        record = json.dumps(dict(made.facts), sort_keys=True, separators=(",", ":")).encode()
        for extension, data in (("json", record), ("png", made.data)):
            # The same owner, mode and time for ever: the same images give the same bytes.
            member = tarfile.TarInfo(f"{_key(made)}.{extension}")
            member.size, member.mode = len(data), 0o644
            yield member.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK)


def _key(made: Made) -> str:
    return f"train-{int(made.facts['provenance']['index']):08d}"
