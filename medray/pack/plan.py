"""The plan: which file becomes which key in which shard. All that follows is a function of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from medray import log
from medray.config import identity
from medray.errors import DataError
from medray.images import Window
from medray.pack.config import NOT_IN_PLAN, PackConfig, parse_window
from medray.pack.deidentify import Keyed
from medray.pack.probe import Probed, common_bits, with_patients
from medray.pack.sources import Entry, Files, Listing, Rejected, label_counts
from medray.pack.split import drawn_splits, patients_in_two_splits
from medray.records import CLIPS, IMAGES, SPLITS

# A box, and what clips alone have, count where there are any: older sets keep their plans.
_CLIP = ("findings", "files", "mask_files")
_ENTRY = tuple(field.name for field in fields(Entry) if field.name not in ("box", *_CLIP))
# Counts up when the same files would give other bytes.
VERSION = 1


@dataclass(frozen=True, slots=True)
class Rules:
    """What becomes of a file's pixels and labels: the part of the plan that every shard shares."""

    base: str
    size_px: int
    channels: int
    bits: int
    window: Window
    encoding: str
    burned_in: str
    classes: tuple[str, ...]
    rarest_first: tuple[str, ...]
    kind: str = IMAGES


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard: its entries are numbered from `first` within the split."""

    name: str
    split: str
    first: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All shards of a set, and the hash that says whether two plans are the same."""

    rules: Rules
    shards: tuple[ShardPlan, ...]
    rejected: tuple[Rejected, ...]
    hash: str
    facts: dict[str, Any]

    @property
    def files(self) -> int:
        """Files that will be packed or rejected, those found absent included."""
        return sum(len(shard.entries) for shard in self.shards) + len(self.rejected)


def make_plan(
    config: PackConfig, listing: Listing, probed: list[Probed] | None, keyed: Keyed, seed: int
) -> Plan:
    """The plan for what a source holds. Raises every finding at once, as one DataError."""
    entries = listing.entries if probed is None else with_patients(listing.entries, probed)
    if not any(entry.split for entry in entries):
        fractions = {"test": config.test, "val": config.val}
        entries = drawn_splits(entries, keyed, seed, fractions)
        _warn_of_unknown_patients(entries)
    findings = [*listing.findings, *patients_in_two_splits(entries)]
    if findings:
        raise_all(findings)
    rules = _rules(config, listing, entries, probed)
    shards = tuple(_shards(entries, config.samples_per_shard))
    facts = _facts(config, rules, entries, Files(listing.base or "/"), seed)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return Plan(rules, shards, tuple(listing.rejected), digest, facts)


def _warn_of_unknown_patients(entries: list[Entry]) -> None:
    unknown = sum(entry.patient is None for entry in entries)
    if unknown:
        log.warn(
            "patients",
            f"{unknown:,} of {len(entries):,} images have no patient: each is taken for a patient "
            "of its own, so images of one person may be in two splits (--patient-column)",
            images=unknown,
        )


def _rules(
    config: PackConfig, listing: Listing, entries: list[Entry], probed: list[Probed] | None
) -> Rules:
    counts = label_counts(entries)
    bits = common_bits(probed or []) if config.bits == "auto" else int(config.bits)
    if config.bits == "auto":
        log.event("bits", f"{bits} bits a pixel (--bits auto)", bits=bits)
    return Rules(
        base=listing.base,
        size_px=config.size_px,
        channels=config.channels,
        bits=bits,
        window=parse_window(config.window),
        encoding=config.encoding,
        burned_in=config.burned_in,
        classes=config.classes or listing.classes or tuple(sorted(counts)),
        rarest_first=tuple(sorted(counts, key=lambda name: (counts[name], name))),
        kind=CLIPS if config.clips else IMAGES,
    )


def _shards(entries: list[Entry], per_shard: int) -> list[ShardPlan]:
    shards = []
    for split in SPLITS:
        of_split = [entry for entry in entries if entry.split == split]
        for number, first in enumerate(range(0, len(of_split), per_shard)):
            part = tuple(of_split[first : first + per_shard])
            shards.append(ShardPlan(f"{split}-{number:06d}", split, first, part))
    return shards


def _facts(
    config: PackConfig, rules: Rules, entries: list[Entry], files: Files, seed: int
) -> dict[str, Any]:
    """What decides the bytes, without anything that could name a file or a patient."""
    lines = [
        json.dumps(
            [getattr(entry, name) for name in _ENTRY]
            + [entry.box] * bool(entry.box)
            + [getattr(entry, name) for name in _CLIP if entry.files]
            + stamps
        )
        for entry, stamps in zip(entries, _stamps(files, entries), strict=True)
    ]
    return {
        "version": VERSION,
        **identity(config, leave_out=NOT_IN_PLAN | _not_asked_for(config)),
        "bits": rules.bits,
        "seed": seed,
        "classes": list(rules.classes),
        "files": len(entries),
        "files_sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    }


def _stamps(files: Files, entries: list[Entry]) -> Iterator[list[tuple[int, int] | None]]:
    """Size and time of every file of each entry."""
    names = [[*entry.files, *entry.mask_files] or [entry.file] for entry in entries]
    every = iter(files.stamps([name for some in names for name in some]))
    return ([next(every) for _ in some] for some in names)


def _not_asked_for(config: PackConfig) -> frozenset[str]:
    return frozenset(name for name in ("box_columns", "clips") if not getattr(config, name))


def raise_all(findings: Sequence[DataError]) -> None:
    """Reports every finding (five of a kind are shown) and ends with one DataError."""
    by_code: dict[str, list[DataError]] = {}
    for finding in findings:
        by_code.setdefault(finding.code, []).append(finding)
    for code, alike in by_code.items():
        for finding in alike[:5]:
            log.error("data", str(finding), code=code, where=finding.where)
        if len(alike) > 5:
            log.error("data", f"{code} ... and {len(alike) - 5} more like these", code=code)
    raise DataError(
        f"{len(findings)} error(s) in the table; nothing was written",
        code=findings[0].code,
        where=findings[0].where,
        hint="mend the rows named above",
    )
