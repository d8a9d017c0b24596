"""What stands beside the shards: rejected.csv, (near_)duplicates.csv, summary.json, contact.png."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from medray.images import encode_png, to_bits
from medray.pack.clips import empty_findings
from medray.pack.geometry import fit
from medray.pack.near import Near
from medray.pack.plan import Plan
from medray.pack.sources import Rejected
from medray.pack.worker import Result
from medray.records import CLIPS, SPLITS, ShardIndex
from medray.shards import open_shard
from medray.store import Store

REJECTED, DUPLICATES, SUMMARY, CONTACT = (
    "rejected.csv",
    "duplicates.csv",
    "summary.json",
    "contact.png",
)
NOTES, NEAR = "findings.csv", "near_duplicates.csv"
NOTE_TEXTS = {
    "MR-D214": "clips with frames missing",
    "MR-D215": "clips whose frames were out of order and are in order now",
    "MR-D216": "clips with several frames at one place",
}
PER_ROW, THUMB_PX, NAME_PX, MOST_ROWS = 8, 96, 120, 24

Array = npt.NDArray[Any]


def all_rejected(plan: Plan, results: Sequence[Result]) -> list[Rejected]:
    """Every file left out, in source order: absent ones first."""
    found = list(plan.rejected)
    for shard, result in zip(plan.shards, results, strict=True):
        for number, code, reason in result.rejected:
            entry = shard.entries[number]
            found.append(Rejected(entry.file, code, reason, entry.where))
    return sorted(found, key=lambda rejected: rejected.file)


def rejected_csv(rejected: Sequence[Rejected]) -> bytes:
    """The table of files left out. It names source files: it is for who packs, not for who gets."""
    rows = [(r.file, r.code, r.reason, r.where) for r in rejected]
    return _csv(("file", "code", "reason", "where"), rows)


def duplicates(plan: Plan, results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Keys whose packed pixels are equal though they are in different splits, a tuple a picture."""
    keys: dict[str, list[str]] = defaultdict(list)
    for shard, result in zip(plan.shards, results, strict=True):
        for number, pixels in result.pixels:
            keys[pixels].append(f"{shard.split}-{shard.first + number:08d}")
    alike = (tuple(same) for same in keys.values() if len(same) > 1)
    return sorted(same for same in alike if len({key.partition("-")[0] for key in same}) > 1)


def duplicates_csv(found: Sequence[tuple[str, ...]]) -> bytes:
    """A row per picture: its keys, joined by |."""
    return _csv(("keys",), [("|".join(keys),) for keys in found])


def near_csv(near: Near) -> bytes:
    """A row per pair: keys, splits and similarity, the likest first."""
    rows = [
        (one, other, one.partition("-")[0], other.partition("-")[0], f"{alike:.4f}")
        for one, other, alike in near.listed
    ]
    return _csv(("key", "other_key", "split", "other_split", "similarity"), rows)


def _csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def summary(
    plan: Plan,
    index: ShardIndex,
    results: Sequence[Result],
    rejected: Sequence[Rejected],
    same: Sequence[tuple[str, ...]],
    near: Near | None,
) -> dict[str, Any]:
    """Counts of everything; the same set gives the same summary."""
    return {
        "schema": "medray.pack/1",
        "images": {split: sum(s.samples for s in index.of_split(split)) for split in SPLITS},
        "classes": {split: _class_counts(index, split) for split in SPLITS},
        "patients": {split: _patients(plan, split) for split in SPLITS},
        "size_px": index.size_px,
        "channels": index.channels,
        "bits": index.bits,
        "encoding": index.encoding,
        "bytes": sum(shard.bytes for shard in index.shards),
        "rejected": dict(sorted(Counter(r.code for r in rejected).items())),
        "burned_in_flagged": sum(result.flagged for result in results),
        **_brightest(index, results),
        "duplicates_across_splits": len(same),
        **({} if near is None else {"near_duplicates": near.summary()}),
        **(_of_clips(plan, results) if index.kind == CLIPS else {}),
    }


def _of_clips(plan: Plan, results: Sequence[Result]) -> dict[str, Any]:
    """What a set of clips has besides: frames, blank ones, findings known, what is odd."""
    frames = [count for result in results for count in result.frames]
    entries = [entry for shard in plan.shards for entry in shard.entries]
    known = {
        name: Counter(str(dict(entry.findings).get(name)) for entry in entries)
        for name in plan.rules.classes
    }
    words = {"present": "1", "absent": "0", "unknown": "None"}
    return {
        "kind": CLIPS,
        "frames": {
            "all": sum(frames),
            "least": min(frames, default=0),
            "median": float(np.median(frames)) if frames else 0.0,
            "most": max(frames, default=0),
            "blank": sum(result.blank for result in results),
        },
        "findings": {
            name: {word: counts[value] for word, value in words.items()}
            for name, counts in known.items()
        },
        "findings_never_known": empty_findings(entries, plan.rules.classes),
        "notes": dict(sorted(Counter(c for r in results for _, c, _ in r.notes).items())),
    }


def notes_csv(plan: Plan, results: Sequence[Result]) -> bytes:
    """What is odd about which clip, by key."""
    rows = [
        (f"{shard.split}-{shard.first + number:08d}", code, text)
        for shard, result in zip(plan.shards, results, strict=True)
        for number, code, text in result.notes
    ]
    return _csv(("key", "code", "finding"), rows)


def _brightest(index: ShardIndex, results: Sequence[Result]) -> dict[str, int]:
    """The highest level of a 16-bit set: 12-bit values in 16-bit files would be a black set."""
    levels = [result.brightest for result in results]
    return {"brightest_level": max(levels)} if index.bits == 16 else {}


def _class_counts(index: ShardIndex, split: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for shard in index.of_split(split):
        counts.update(shard.class_counts)
    return {name: counts[name] for name in index.classes}


def _patients(plan: Plan, split: str) -> int:
    entries = (entry for shard in plan.shards if shard.split == split for entry in shard.entries)
    return len({entry.patient for entry in entries if entry.patient})


def table(facts: dict[str, Any]) -> str:
    """The counts per split and class as a plain table."""
    names = sorted({name for counts in facts["classes"].values() for name in counts})
    rows = [["", *SPLITS]]
    rows += [
        [name, *(f"{facts['classes'][split].get(name, 0):,}" for split in SPLITS)] for name in names
    ]
    noun = facts.get("kind", "images")
    rows += [[noun, *(f"{facts['images'][split]:,}" for split in SPLITS)]]
    rows += [["patients", *(f"{facts['patients'][split]:,}" for split in SPLITS)]]
    first = max(len(row[0]) for row in rows)
    widths = [max(len(row[column]) for row in rows) for column in range(1, len(rows[0]))]
    return "\n".join(
        row[0].ljust(first)
        + "".join("  " + cell.rjust(width) for cell, width in zip(row[1:], widths, strict=True))
        for row in rows
    )


def summary_json(facts: dict[str, Any]) -> bytes:
    """`summary.json`."""
    return json.dumps(facts, indent=1, sort_keys=True).encode() + b"\n"


# --- contact sheet ----------------------------------------------------------------------------


def contact_sheet(store: Store, index: ShardIndex) -> bytes:
    """A PNG with a row per class (its first images), for a look before any training.

    Of clips a row is one clip, its frames evenly spread: the first of each class, and of none.
    """
    if index.kind == CLIPS:
        clips = [(name, _strip(store, index, name)) for name in (*index.classes[:MOST_ROWS], None)]
        strips = [_row(name or "no finding", frames) for name, frames in clips if frames]
        return encode_png(np.concatenate(strips or [_row("", [])]))
    rows = {name: _first_of(store, index, name) for name in index.classes[:MOST_ROWS]}
    if not any(rows.values()):
        rows = {"": _first_of(store, index, None)}
    return encode_png(np.concatenate([_row(name, images) for name, images in rows.items()]))


def _strip(store: Store, index: ShardIndex, label: str | None) -> list[Array]:
    """Frames of the first clip with this label, evenly spread over it; none where there is none."""
    for shard in index.shards:
        reader = open_shard(store, shard)
        for number, row in enumerate(reader.rows):
            if row["label"] == label:
                frames = reader.sample(number).image
                places = np.linspace(0, len(frames) - 1, min(PER_ROW, len(frames)))
                return [frames[round(place)] for place in places.tolist()]
    return []


def _first_of(store: Store, index: ShardIndex, label: str | None) -> list[Array]:
    images: list[Array] = []
    for shard in index.shards:
        if label is not None and not shard.class_counts.get(label):
            continue
        reader = open_shard(store, shard)
        for number, row in enumerate(reader.rows):
            if label is None or row["label"] == label:
                images.append(reader.sample(number).image)
            if len(images) == PER_ROW:
                return images
    return images


def _row(name: str, images: Sequence[Array]) -> Array:
    strip = np.full((THUMB_PX + 4, NAME_PX + PER_ROW * (THUMB_PX + 4), 3), 24, np.uint8)
    middle = (4, THUMB_PX // 2 + 4)
    cv2.putText(
        strip, name[:18], middle, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (230, 230, 230), 1, cv2.LINE_AA
    )
    for place, image in enumerate(images):
        thumb = fit(to_bits(image, 8), THUMB_PX)
        left = NAME_PX + place * (THUMB_PX + 4) + 2
        strip[2 : 2 + THUMB_PX, left : left + THUMB_PX] = (
            thumb if thumb.ndim == 3 else thumb[..., None]
        )
    return strip
