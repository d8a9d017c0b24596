"""The clips of a source and what is known of each: a table, or a folder of volumes and of folders.

A clip is one file (NIfTI, DICOM of many frames, NPY) or a folder of pictures in natural order; its
mask alike. In a table every column that is not known otherwise is a finding: 1, 0 or empty.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from medray import log
from medray.errors import DataError, UsageError
from medray.pack.config import PackConfig
from medray.pack.deidentify import Keyed
from medray.pack.sources import (
    Entry,
    Files,
    Listing,
    Rejected,
    check_rows,
    opened_table,
    pictures,
)
from medray.store import Store

TABLE = "clips.csv"
VOLUMES = (".nii", ".nii.gz", ".npy")
_VALUES = {"": None, "0": 0, "1": 1, "0.0": 0, "1.0": 1}
# Names made of UIDs end in numbers that count nothing.
_COUNTED = re.compile(r"^[^.]*?(\d+)$")


def list_clips(config: PackConfig, keyed: Keyed) -> Listing:
    """Every clip of the source; DataError if there is none, UsageError if it is not there."""
    source = config.source
    if source.lower().endswith((".csv", ".tsv")):
        base, _, name = source.rpartition("/")
        return _expanded(read_clips(config, keyed, base, name))
    if "://" not in source and not Path(source).is_dir():
        raise UsageError(f"--source {source}: no such folder or CSV")
    if Store(source).exists(TABLE):
        log.event("layout", f"findings from {TABLE} in the source folder")
        return _expanded(read_clips(config, keyed, source, TABLE))
    return _from_folder(source)


def natural(name: str) -> tuple[tuple[str, int], ...]:
    """The key that sorts 9 before 10."""
    parts = re.split(r"(\d+)", name)
    return tuple(
        (text, int(number or -1))
        for text, number in zip(parts[::2], [*parts[1::2], ""], strict=True)
    )


def frame_numbers(files: Sequence[str]) -> list[int | None]:
    """The number that each file's name ends in, None where it has none."""
    found = [_COUNTED.match(PurePosixPath(name).name.rpartition(".")[0]) for name in files]
    return [int(match[1]) if match else None for match in found]


# --- tables -------------------------------------------------------------------------------------


def read_clips(config: PackConfig, keyed: Keyed, base: str, name: str) -> Listing:
    """The entries of a CSV; DataError if it cannot be read or lacks a column that was asked for."""
    reader = opened_table(config, base, name)
    columns = _finding_columns(config, list(reader.fieldnames or ()), name)
    listing = Listing(base, [], classes=columns)
    for row in reader:
        where = f"{name}:{reader.line_num}"
        if None in row or None in row.values():
            text = "the row has another number of cells than the header"
            listing.findings.append(DataError(text, code="MR-D202", where=where))
            continue
        cell = {column: value.strip() for column, value in row.items()}
        _add_clip(config, keyed, cell, where, listing)
    check_rows(config, listing)
    _warn_of_empty_columns(listing)
    return listing


def _finding_columns(config: PackConfig, columns: list[str], name: str) -> tuple[str, ...]:
    known = {config.file_column, config.patient_column, config.split_column, config.mask_column}
    missing = [column for column in config.classes if column not in columns]
    if missing:
        raise DataError(
            f"no column {missing[0]!r} (--classes); the columns are: {', '.join(columns)}",
            code="MR-D203",
            where=name,
        )
    rest = (column for column in columns if column not in known | set(config.keep_columns))
    return config.classes or tuple(rest)


def _add_clip(
    config: PackConfig, keyed: Keyed, cell: dict[str, str], where: str, listing: Listing
) -> None:
    file = cell[config.file_column].rstrip("/")
    if not file:
        listing.findings.append(DataError("the row names no clip", code="MR-D202", where=where))
        return
    odd = [name for name in listing.classes if cell[name] not in _VALUES]
    if odd:
        listing.findings.append(
            DataError(
                f"the finding {odd[0]!r} is 0, 1 or empty, got {cell[odd[0]]!r}",
                code="MR-D217",
                where=where,
                hint="--classes names the columns that are findings, --keep-columns others to keep",
            )
        )
        return
    found = tuple((name, _VALUES[cell[name]]) for name in listing.classes)
    known = any(value is not None for _, value in found)
    listing.entries.append(
        Entry(
            file=file,
            where=where,
            labels=tuple(name for name, value in found if value) if known else None,
            split=cell.get(config.split_column) or None,
            patient=keyed.patient(cell.get(config.patient_column, "")),
            mask=cell.get(config.mask_column, "").rstrip("/") or None,
            extra={name: cell[name] for name in config.keep_columns},
            findings=found,
        )
    )


def empty_findings(entries: Sequence[Entry], classes: Sequence[str]) -> list[str]:
    """Findings that no clip has a value of."""
    known = {name for entry in entries for name, value in entry.findings if value is not None}
    return [name for name in classes if name not in known]


def _warn_of_empty_columns(listing: Listing) -> None:
    for name in empty_findings(listing.entries, listing.classes):
        log.warn(
            "empty_column",
            f"MR-D221 warning  the finding {name!r} is empty in every row: nothing can be learnt "
            "of it",
            finding=name,
        )


# --- files --------------------------------------------------------------------------------------


def _expanded(listing: Listing) -> Listing:
    """Entries with the files of their clip and mask; absent and empty ones are rejected."""
    files = Files(listing.base or "/")
    kept = []
    for entry in listing.entries:
        found = _files_of(files, listing.base, entry.file)
        masks = _files_of(files, listing.base, entry.mask) if entry.mask else ()
        if found and (masks or not entry.mask):
            kept.append(replace(entry, files=found, mask_files=masks))
            continue
        what, code = ("its mask", "MR-D207") if found else ("the clip", "MR-D206")
        reason = f"{what} is not there, or a folder without frames"
        listing.rejected.append(Rejected(entry.file, code, reason, entry.where))
    listing.entries = kept
    return listing


def _files_of(files: Files, base: str, name: str) -> tuple[str, ...]:
    """A file's own name, or those of the pictures in a folder, in natural order; () for neither."""
    if "://" in base or "://" in name:
        inside = [other for other in Store(base).names() if other.startswith(f"{name}/")]
        children = [other for other in inside if "/" not in other[len(name) + 1 :]]
        if not children:
            return (name,) if files.stamps([name])[0] is not None else ()
    else:
        path = os.path.join(base, name)
        if not os.path.isdir(path):
            return (name,) if files.stamps([name])[0] is not None else ()
        children = [
            f"{name}/{entry.name}"
            for entry in os.scandir(path)
            if entry.is_file() and not entry.name.startswith(".")
        ]
    return tuple(sorted(pictures(files, children), key=natural))


def _from_folder(source: str) -> Listing:
    """Volumes are a clip each; what other pictures lie in one folder are the frames of one."""
    names = [name for name in Store(source).names() if not _hidden(name)]
    clips: dict[str, tuple[str, ...]] = {
        name: (name,) for name in names if name.lower().endswith(VOLUMES)
    }
    folders: dict[str, list[str]] = defaultdict(list)
    for name in pictures(Files(source), [name for name in names if name not in clips]):
        folders[str(PurePosixPath(name).parent)].append(name)
    clips |= {folder: tuple(sorted(some, key=natural)) for folder, some in folders.items()}
    if not clips:
        raise DataError(
            f"no clips among {len(names)} files in the source folder",
            code="MR-D201",
            hint=f"a clip ends in {', '.join(VOLUMES)}, or is a folder of DICOM or pictures",
        )

    log.event("layout", f"{len(clips):,} clips in the folder: volumes, and folders of frames")
    entries = [Entry(name, files=clips[name]) for name in sorted(clips, key=natural)]
    return Listing(source, entries)


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)
