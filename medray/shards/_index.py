"""`index.json`: written last, and believed only where it does not contradict itself."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from medray._parts import remove_dead
from medray.errors import DataError
from medray.records import CLIPS, IMAGES, KINDS, SPLITS, ShardIndex
from medray.shards import _members
from medray.store import Store

INDEX, DIGEST = "index.json", "sha256"
BITS = (8, 16, 32, 64)
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


def write_index(store: Store, index: ShardIndex) -> None:
    """Publishes `index.json`, which makes the set complete; DataError if it cannot be right."""
    _check_index(index, INDEX)
    # Before: what is killed after it finds the set complete, and would never come here again.
    if store.is_local:
        remove_dead(store.path())
    store.write_bytes(INDEX, _sealed(index.to_json()).encode())


def read_index(store: Store, kind: str | None = IMAGES) -> ShardIndex:
    """Reads `index.json`; DataError if it is absent, of a newer schema, or contradicts itself.

    Also where the set is not of this `kind` (None: any).
    """
    where = f"{store.url}/{INDEX}"
    try:
        data = store.read_bytes(INDEX)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            "not a finished set of shards: it has no index.json",
            code="MR-D022",
            where=where,
            hint="give the folder that `medray pack` wrote, or run the same pack command again",
        ) from error
    try:
        index = ShardIndex.from_json(_unsealed(data.decode(), where), where)
    except UnicodeDecodeError as error:
        raise DataError("the index is not text", code="MR-D021", where=where) from error
    _check_index(index, where)
    _check_kind(index, kind or index.kind, where)
    return index


def _check_kind(index: ShardIndex, kind: str, where: str) -> None:
    """Refuses a set of clips where images are wanted, and the other way round."""
    if index.kind != kind:
        raise DataError(
            f"a set of {index.kind}, where one of {kind} is wanted",
            code="MR-D034",
            where=where,
            hint=f"give a set that was packed with{'' if kind == CLIPS else 'out'} --clips",
        )


def _sealed(text: str) -> str:
    """An index with the digest of what it says, so that it vouches for itself."""
    fields = json.loads(text)
    return json.dumps({**fields, DIGEST: _digest(fields)}, indent=1, sort_keys=True) + "\n"


def _unsealed(text: str, where: str) -> str:
    """An index without its digest; DataError where it says something else than was written.

    Older sets have none.
    """
    try:
        fields = json.loads(text)
    except ValueError:
        return text
    if not isinstance(fields, dict) or DIGEST not in fields:
        return text
    if fields.pop(DIGEST) != _digest(fields):
        raise DataError(
            "the index is not what was written (sha256 differs)",
            code="MR-D024",
            where=where,
            hint="copy the index back, or pack the set again",
        )
    return json.dumps(fields)


def _digest(fields: dict[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _check_index(index: ShardIndex, where: str) -> None:
    fault = _contradiction(index)
    if fault:
        raise DataError(f"the index cannot be right: {fault}", code="MR-D023", where=where)


def _contradiction(index: ShardIndex) -> str:
    """What an index says that cannot be; empty if nothing."""
    if index.encoding not in _members.IMAGE_MEMBER:
        return f"encoding {index.encoding!r}, allowed are {', '.join(_members.IMAGE_MEMBER)}"
    if index.kind not in KINDS:
        return f"kind {index.kind!r}, allowed are {', '.join(KINDS)}"
    if index.kind == CLIPS and (index.encoding == "png" or index.channels != 1):
        return f"clips of {index.channels} channels as {index.encoding}, allowed: 1, raw or zstd"
    if index.bits not in BITS:
        return f"{index.bits} bits, allowed are {BITS}"
    if len(set(index.classes)) != len(index.classes):
        return f"a class is named twice in {list(index.classes)}"
    seen: dict[str, str] = {}
    for shard in index.shards:
        if not _NAME.fullmatch(shard.name) or shard.split not in SPLITS or shard.samples < 1:
            return f"shard {shard.name!r} of split {shard.split!r} with {shard.samples} samples"
        for what in (shard.name, shard.sha256):
            if what in seen:
                return f"shards {seen[what]} and {shard.name} are the same one"
            seen[what] = shard.name
        unknown = set(shard.class_counts) - set(index.classes)
        if unknown:
            return (
                f"shard {shard.name} counts classes that the set does not have: {sorted(unknown)}"
            )
    return ""
