"""One shard of the plan made: read, decode in the limited child, scale, write.

The result of a shard is kept beside it until the set is finished, so that a rerun can skip it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from medray.errors import DataError
from medray.images import Decoded
from medray.images.child import shared
from medray.pack import thumbs
from medray.pack.clips_worker import clip_samples
from medray.pack.deidentify import file_digest
from medray.pack.geometry import as_mask, as_set, box_mask, scaled_spacing_mm
from medray.pack.plan import Rules, ShardPlan
from medray.pack.sources import Entry, Files
from medray.records import CLIPS, Sample, Shard
from medray.shards import ShardWriter
from medray.store import Store

STATE = ".pack"
GROUP_FILES = 64
GROUP_BYTES = 8 << 20


@dataclass(slots=True)
class Result:
    """What came of a shard. Numbers are positions in it: no file is named."""

    plan: str
    shard: Shard | None
    rejected: list[tuple[int, str, str]] = field(default_factory=list)
    pixels: list[tuple[int, str]] = field(default_factory=list)
    brightest: int = 0
    flagged: int = 0
    # Of clips: what is odd about which, the frames of each, and how many of those are blank.
    notes: list[tuple[int, str, str]] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    blank: int = 0
    # The thumbnails of what was packed, in order.
    thumbs: str = ""


def state_name(shard: str) -> str:
    """Where a shard's result is kept until the set is finished."""
    return f"{STATE}/{shard}.json"


def pack_shard(out: str, rules: Rules, shard: ShardPlan, plan_hash: str) -> Result:
    """Writes a shard and its result; the same arguments and files give the same bytes."""
    store = Store(out)
    result = Result(plan_hash, None)
    small = []
    with ShardWriter(store, shard.name, shard.split, rules.encoding) as writer:
        made = clip_samples(rules, shard, result) if rules.kind == CLIPS else _samples(rules, shard)
        for number, sample in made:
            if isinstance(sample, DataError):
                result.rejected.append((number, sample.code, sample.message))
                continue
            writer.add(sample)
            result.pixels.append(
                (number, hashlib.blake2b(sample.image.data, digest_size=12).hexdigest())
            )
            small.append(thumbs.reduced(sample.image, sample.frames))
            if rules.bits == 16:
                result.brightest = max(result.brightest, int(sample.image.max()))
            result.flagged += sample.burned_in is True
        if len(writer):
            result.shard = writer.close()
    result.thumbs = thumbs.packed(thumbs.thumbnails(small, rules.bits))
    store.write_bytes(state_name(shard.name), json.dumps(_state(result)).encode())
    return result


def _state(result: Result) -> dict[str, Any]:
    fields = {name: getattr(result, name) for name in Result.__slots__}
    return {**fields, "shard": None if result.shard is None else asdict(result.shard)}


def finished(out: str, shard: str, plan_hash: str) -> Result | None:
    """The result of a shard that is there and whole, None where it must be made (again)."""
    store = Store(out)
    try:
        fields: dict[str, Any] = json.loads(store.read_bytes(state_name(shard)))
        result = Result(
            **{**fields, "shard": Shard(**fields["shard"]) if fields["shard"] else None}
        )
    except (FileNotFoundError, ValueError, TypeError):
        return None
    # A state that an older version left has no thumbnails: its shard is made again.
    if result.plan != plan_hash or bool(result.pixels) != bool(result.thumbs):
        return None
    if result.shard and not _is_whole(store, result.shard):
        return None
    return result


def _is_whole(store: Store, shard: Shard) -> bool:
    try:
        tar, idx = store.read_bytes(f"{shard.name}.tar"), store.read_bytes(f"{shard.name}.idx")
    except FileNotFoundError:
        return False
    digests = (hashlib.sha256(tar).hexdigest(), hashlib.sha256(idx).hexdigest())
    return digests == (shard.sha256, shard.idx_sha256)


def _samples(rules: Rules, shard: ShardPlan) -> Iterator[tuple[int, Sample | DataError]]:
    """Each entry's sample or reason, in order, decoded a group at a time."""
    files = Files(rules.base or "/")
    number = 0
    for group in _groups(files, shard.entries):
        masks = _masks([read for read in group if read.entry.mask])
        sources = [("", read.image) for read in group if isinstance(read.image, bytes)]
        decoded = shared().decode_many(sources, window=rules.window)
        for read in group:
            answer = next(decoded) if isinstance(read.image, bytes) else read.image
            key = f"{shard.split}-{shard.first + number:08d}"
            try:
                yield number, _sample(rules, key, read, answer, masks)
            except DataError as error:
                yield number, error
            number += 1


@dataclass(frozen=True, slots=True)
class _Read:
    """An entry with the bytes of its files, or why they cannot be had."""

    entry: Entry
    image: bytes | DataError
    mask: bytes | DataError | None


def _groups(files: Files, entries: tuple[Entry, ...]) -> Iterator[list[_Read]]:
    """Entries with their bytes, a few megabytes at a time."""
    group: list[_Read] = []
    size = 0
    for entry in entries:
        read = _Read(
            entry, _read(files, entry.file), _read(files, entry.mask) if entry.mask else None
        )
        group.append(read)
        size += sum(len(data) for data in (read.image, read.mask) if isinstance(data, bytes))
        if len(group) == GROUP_FILES or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _masks(group: list[_Read]) -> dict[str, Decoded | DataError]:
    """The masks of a group by name; they have no window."""
    masks: dict[str, Decoded | DataError] = {}
    readable = [
        (read.entry.mask or "", read.mask) for read in group if isinstance(read.mask, bytes)
    ]
    for (name, _), answer in zip(readable, shared().decode_many(readable), strict=True):
        masks[name] = answer
    masks |= {
        read.entry.mask or "": read.mask for read in group if isinstance(read.mask, DataError)
    }
    return masks


def _read(files: Files, name: str) -> bytes | DataError:
    try:
        return files.read(name)
    except FileNotFoundError:
        return DataError("the file is not there", code="MR-D206")
    except OSError as error:
        return DataError(f"the file cannot be read ({error.strerror})", code="MR-D206")


def _sample(
    rules: Rules,
    key: str,
    read: _Read,
    answer: Decoded | DataError,
    masks: dict[str, Decoded | DataError],
) -> Sample:
    entry, picture = read.entry, _or_raise(answer)
    if picture.burned_in and rules.burned_in == "reject":
        raise DataError("text may be burned into its pixels (--burned-in reject)", code="MR-D112")
    shape = picture.image.shape
    mask = None
    if entry.mask:
        mask = as_mask(_mask_pixels(masks[entry.mask]), shape, rules.size_px)
    elif entry.box:
        mask = box_mask(entry.box, shape, rules.size_px)
    label, labels = _labels(rules, entry.labels)
    assert entry.split is not None, "the plan gives every entry a split"
    assert isinstance(read.image, bytes), "what was decoded was read"
    return Sample(
        key=key,
        image=as_set(picture.image, rules.size_px, rules.channels, rules.bits),
        label=label,
        labels=labels,
        patient=entry.patient,
        split=entry.split,
        mask=mask,
        source_sha256=file_digest(read.image),
        spacing_mm=scaled_spacing_mm(picture.spacing_mm, shape, rules.size_px),
        window=picture.window,
        burned_in=picture.burned_in,
        extra=entry.extra,
    )


def _labels(
    rules: Rules, given: tuple[str, ...] | None
) -> tuple[str | None, dict[str, int | None]]:
    """(the rarest of the labels, 1 or 0 per class); a missing label is None throughout."""
    if given is None:
        return None, dict.fromkeys(rules.classes)
    rarest = min(given, key=rules.rarest_first.index)
    return rarest, {name: int(name in given) for name in rules.classes}


def _mask_pixels(decoded: Decoded | DataError) -> Any:
    if isinstance(decoded, DataError):
        raise DataError(f"its mask: {decoded.message}", code=decoded.code)
    return decoded.image


def _or_raise(decoded: Decoded | DataError) -> Decoded:
    if isinstance(decoded, DataError):
        raise decoded
    return decoded
