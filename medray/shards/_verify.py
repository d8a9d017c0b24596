"""A whole set checked against every digest that it carries."""

from __future__ import annotations

import hashlib

from medray import log
from medray.errors import DataError, ResourceError, StoreOutage
from medray.records import Shard
from medray.shards import _tar
from medray.shards._index import read_index
from medray.shards.reader import Row, open_shard, tar_name
from medray.store import Store


def verify(store: Store) -> list[DataError]:
    """Every damage found in a set, naming shard and member; empty if all is as it was written.

    Reads everything: the digests of idx, tar and samples, and each tar header against the idx.
    """
    try:
        index = read_index(store, None)
    except DataError as error:
        return [error]
    found = [error for shard in index.shards for error in _verify_shard(store, shard)]
    known = {tar_name(shard.name) for shard in index.shards}
    strays = [name for name in _listed(store) if name.endswith(".tar") and name not in known]
    return found + [
        DataError(
            "a shard that index.json does not name", code="MR-D027", where=f"{store.url}/{name}"
        )
        for name in strays
    ]


def _listed(store: Store) -> list[str]:
    """What the store lists; nothing, said so, where it does not: a web server need not."""
    try:
        return store.names()
    except StoreOutage:
        raise
    except ResourceError as error:
        text = "shards that index.json does not name were not looked for"
        log.warn("verify", f"{text}: {error.message}", url=store.url)
        return []


def _verify_shard(store: Store, shard: Shard) -> list[DataError]:
    try:
        reader = open_shard(store, shard)
        data = store.read_bytes(tar_name(shard.name))
    except DataError as error:
        return [error]
    found = []
    for number, row in enumerate(reader.rows):
        try:
            reader.fetch(number)
            _verify_members(memoryview(data), row, shard)
        except DataError as error:
            found.append(error)
    if not found and hashlib.sha256(data).hexdigest() != shard.sha256:
        where = tar_name(shard.name)
        found.append(DataError("the shard's sha256 differs", code="MR-D024", where=where))
    return found


def _verify_members(data: memoryview, row: Row, shard: Shard) -> None:
    """Refuses a sample whose tar headers are not those that its idx line means."""
    body = data[row["offset"] : row["offset"] + row["size"]]
    where = f"{tar_name(shard.name)} key {row['key']}"
    if hashlib.sha256(body).hexdigest() != row["sha256"]:
        raise DataError("the sample's sha256 differs", code="MR-D024", where=where)
    at = row["offset"]
    for extension, offset, size, _ in row["members"]:
        name = f"{row['key']}.{extension}"
        if offset != at + _tar.BLOCK or bytes(data[at:offset]) != _tar.header(name, size):
            raise DataError(
                f"the idx disagrees with the tar header of {name}",
                code="MR-D023",
                where=f"{tar_name(shard.name)} byte {at}",
            )
        at = offset + size + _tar.padding(size)
