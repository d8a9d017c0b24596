"""The files of a source and what is known of each: a CSV, a folder per class, or a tree.

Patients are hashed while they are read: the raw id never stands in an `Entry`.
"""

from __future__ import annotations

import csv
import difflib
import io
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from medray import log
from medray.errors import DataError, ResourceError, StoreOutage, UsageError
from medray.images import EXTENSIONS, format_of
from medray.pack.config import PackConfig
from medray.pack.deidentify import Keyed
from medray.pack.geometry import Box
from medray.records import SPLITS
from medray.store import Store

TABLE = "labels.csv"
MOST_CLASSES = 100
MOST_PX = 1e6
ASKED_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """One file to be packed; `where` is its line in the table, `file` and `mask` are names."""

    file: str
    where: str = ""
    labels: tuple[str, ...] | None = None
    split: str | None = None
    patient: str | None = None
    mask: str | None = None
    box: Box | None = None
    extra: dict[str, str] = field(default_factory=dict)
    # Of clips alone: 1, 0 or None per finding; the files of the clip, and of its mask.
    findings: tuple[tuple[str, int | None], ...] = ()
    files: tuple[str, ...] = ()
    mask_files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file that is left out, and why."""

    file: str
    code: str
    reason: str
    where: str = ""


@dataclass(slots=True)
class Listing:
    """What a source holds: entries in order, files left out already, and what is wrong with it."""

    base: str
    entries: list[Entry]
    rejected: list[Rejected] = field(default_factory=list)
    findings: list[DataError] = field(default_factory=list)
    classes: tuple[str, ...] = ()


class Files:
    """Reads files of a source by name: relative to its base, absolute, or a URL."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._local = "://" not in base or base.startswith("file://")
        self._folder = base.removeprefix("file://")
        self._store = None if self._local else Store(base)

    def read(self, name: str) -> bytes:
        """All of a file; FileNotFoundError where it is absent."""
        if "://" in name:
            parent, _, last = name.rpartition("/")
            return Store(parent).read_bytes(last)
        if self._store is not None:
            return self._store.read_bytes(name)
        with open(os.path.join(self._folder, name), "rb", buffering=0) as file:
            return file.read()

    def head(self, name: str, length: int) -> bytes:
        """The first bytes of a file."""
        if self._store is not None or "://" in name:
            return self.read(name)[:length]
        with open(os.path.join(self._folder, name), "rb", buffering=0) as file:
            return file.read(length)

    def stamps(self, names: Sequence[str]) -> list[tuple[int, int] | None]:
        """(bytes, time of change) of each, (0, 0) where the store does not say, None if absent."""
        if self._store is None:
            return [_stamp(os.path.join(self._folder, name)) for name in names]
        present = self._present(self._store, names)
        return [(0, 0) if name in present or "://" in name else None for name in names]

    def _present(self, store: Store, names: Sequence[str]) -> set[str]:
        """Which names are there: one by one where the store lists nothing, as a web server may."""
        try:
            return set(store.names())
        except StoreOutage:
            raise
        except ResourceError:
            with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
                found = pool.map(lambda name: "://" not in name and store.exists(name), names)
                return {name for name, there in zip(names, found, strict=True) if there}


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def list_source(config: PackConfig, keyed: Keyed) -> Listing:
    """Everything in the source; DataError if there is nothing, UsageError if it is not there."""
    source = config.source
    if source.lower().endswith((".csv", ".tsv")) or config.layout == "csv":
        base, _, name = source.rpartition("/")
        return _without_absent(read_table(config, keyed, base, name))
    if "://" not in source and not Path(source).is_dir():
        raise UsageError(f"--source {source}: no such folder or CSV")
    store = Store(source)
    if config.layout == "auto" and store.exists(TABLE):
        log.event("layout", f"labels from {TABLE} in the source folder")
        return _without_absent(read_table(config, keyed, source, TABLE))
    names = store.names()
    files = sorted(pictures(Files(source), names))
    if not files:
        raise DataError(
            f"no images among {len(names)} files in the source folder",
            code="MR-D201",
            hint=f"images end in {', '.join(sorted(EXTENSIONS))}, or are DICOM without an ending",
        )
    return Listing(source, list(_from_folders(config, files)))


# --- folders ----------------------------------------------------------------------------------


def pictures(files: Files, names: Iterable[str]) -> Iterator[str]:
    """Names that are images by their ending, or DICOM by content where they have none that says."""
    for name in names:
        path = PurePosixPath(name)
        if any(part.startswith(".") and part != ".." for part in path.parts):
            continue
        ending = path.suffix.lower()
        if ending in EXTENSIONS:
            yield name
        elif not ending or ending[1:].isdigit():  # UIDs as names: 1.2.840.113619
            if format_of(files.head(name, 132)) == "dicom":
                yield name


def _from_folders(config: PackConfig, files: list[str]) -> Iterator[Entry]:
    folders = [PurePosixPath(name).parts[:-1] for name in files]
    split_first = all(parts and parts[0] in SPLITS for parts in folders)
    depth = 2 if split_first else 1
    if config.layout == "tree" or (
        config.layout == "auto" and not _are_classes(files, folders, depth)
    ):
        for name, parts in zip(files, folders, strict=True):
            yield Entry(name, split=parts[0] if split_first else None)
        return
    if any(len(parts) < depth for parts in folders):
        raise UsageError("--layout classes: every image must lie in a folder of its class")
    found = sorted({parts[depth - 1] for parts in folders})
    log.event(
        "layout",
        f"{len(found)} folders taken as classes ({_some(found)}); --layout tree if they are not",
    )
    for name, parts in zip(files, folders, strict=True):
        label = (parts[depth - 1],)
        yield Entry(name, labels=label, split=parts[0] if split_first else None)


def _are_classes(files: list[str], folders: list[tuple[str, ...]], depth: int) -> bool:
    """A folder per class is flat, has few folders and no DICOM, whose folders are patients."""
    if any(len(parts) != depth for parts in folders):
        return False
    if any(PurePosixPath(name).suffix.lower() in ("", ".dcm", ".dicom") for name in files):
        return False
    return 1 < len({parts[-1] for parts in folders}) <= MOST_CLASSES


def _some(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# --- tables -----------------------------------------------------------------------------------


def read_table(config: PackConfig, keyed: Keyed, base: str, name: str) -> Listing:
    """The entries of a CSV; DataError if it cannot be read or lacks a column that was asked for."""
    reader = opened_table(config, base, name)
    listing = Listing(base, [])
    try:
        for row in reader:
            _add_row(config, keyed, row, f"{name}:{reader.line_num}", listing)
    except csv.Error as error:
        listing.findings.append(
            DataError(f"not a CSV: {error}", code="MR-D202", where=f"{name}:{reader.line_num}")
        )
    check_rows(config, listing)
    return listing


def opened_table(config: PackConfig, base: str, name: str) -> csv.DictReader[str]:
    """The rows of a CSV; DataError if it is no text or lacks a column that was asked for."""
    try:
        text = Files(base or "/").read(name).decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"--source: no such CSV: {base}/{name}") from None
    except IsADirectoryError:
        raise UsageError(f"--source: {base}/{name} is a folder, not a CSV") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"not text in UTF-8 (byte {error.start})", code="MR-D202", where=name
        ) from None
    first_line = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first_line.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    _check_columns(config, list(reader.fieldnames or ()), name)
    return reader


def _check_columns(config: PackConfig, columns: list[str], name: str) -> None:
    """The file column must be there, the others where they were named on purpose."""
    fields = ("file_column", "label_column", "split_column", "mask_column", "patient_column")
    wanted = [(flag, getattr(config, flag)) for flag in fields]
    on_purpose = [
        (flag, column)
        for flag, column in wanted
        if flag == "file_column" or column != PackConfig.model_fields[flag].default
    ]
    for flag in ("keep_columns", "box_columns"):
        on_purpose += [(flag, column) for column in getattr(config, flag)]
    missing = [(flag, column) for flag, column in on_purpose if column not in columns]
    if not missing:
        return
    what = "; ".join(_missing(column, flag, columns) for flag, column in missing)
    raise DataError(
        f"{what}; the columns are: {', '.join(columns) or 'none'}", code="MR-D203", where=name
    )


def _missing(column: str, flag: str, columns: list[str]) -> str:
    close = difflib.get_close_matches(column, columns, n=1)
    meant = f" (--{flag.replace('_', '-')} {close[0]}?)" if close else ""
    return f"no column {column!r}{meant}"


def _add_row(
    config: PackConfig, keyed: Keyed, row: dict[str, str], where: str, listing: Listing
) -> None:
    if None in row or None in row.values():
        listing.findings.append(
            DataError(
                "the row has another number of cells than the header", code="MR-D202", where=where
            )
        )
        return
    cell = {name: value.strip() for name, value in row.items()}
    file = cell[config.file_column]
    if not file:
        listing.findings.append(DataError("the row names no file", code="MR-D202", where=where))
        return
    try:
        box = _box([cell[name] for name in config.box_columns])
    except ValueError as error:
        listing.findings.append(DataError(str(error), code="MR-D213", where=where))
        return
    labels = tuple(
        dict.fromkeys(
            filter(None, (p.strip() for p in cell.get(config.label_column, "").split("|")))
        )
    )
    listing.entries.append(
        Entry(
            file=file,
            where=where,
            labels=labels or None,
            split=cell.get(config.split_column) or None,
            patient=keyed.patient(cell.get(config.patient_column, "")),
            mask=cell.get(config.mask_column) or None,
            box=box,
            extra={name: cell[name] for name in config.keep_columns},
        )
    )


def _box(cells: Sequence[str]) -> Box | None:
    """Four cells as a box, None where all are empty; ValueError where they make none."""
    if not any(cells):
        return None
    try:
        left, top, right, bottom = (float(cell) for cell in cells)
    except ValueError:
        raise ValueError(f"a box is four numbers or four empty cells, got {list(cells)}") from None
    if not (abs(left) < right < MOST_PX and abs(top) < bottom < MOST_PX):
        raise ValueError(f"a box is left < right, top < bottom in px, got {list(cells)}")
    return left, top, right, bottom


def check_rows(config: PackConfig, listing: Listing) -> None:
    """Findings of rows against each other, all of them."""
    if not listing.entries and not listing.findings:
        raise DataError("the table has no rows", code="MR-D201", hint="a row per image is wanted")
    listing.findings += [*_bad_splits(listing.entries), *_repeated(listing.entries)]
    if config.classes:
        listing.findings += _bad_labels(config.classes, listing.entries)
    listing.entries.sort(key=lambda entry: entry.file)


def _bad_splits(entries: list[Entry]) -> Iterator[DataError]:
    some = any(entry.split for entry in entries)
    for entry in entries:
        if some and entry.split not in SPLITS:
            said = (
                f"split {entry.split!r}" if entry.split else "no split, where other rows have one,"
            )
            yield DataError(
                f"{said} is not one of {', '.join(SPLITS)}",
                code="MR-D204",
                where=entry.where,
                hint="fill the column in every row, or leave it empty in all",
            )


def _repeated(entries: list[Entry]) -> Iterator[DataError]:
    first: dict[str, str] = {}
    for entry in entries:
        if entry.file in first:
            yield DataError(
                f"the file of {first[entry.file]} again",
                code="MR-D205",
                where=entry.where,
                hint="one row per file; several labels of it are joined by |",
            )
        first.setdefault(entry.file, entry.where)


def _bad_labels(classes: tuple[str, ...], entries: list[Entry]) -> Iterator[DataError]:
    for entry in entries:
        for label in entry.labels or ():
            if label not in classes:
                yield DataError(
                    f"label {label} is not one of {', '.join(classes)}",
                    code="MR-D014",
                    where=entry.where,
                    hint=f"add {label} to --classes, or drop the row",
                )


def _without_absent(listing: Listing) -> Listing:
    """Absent images and masks are rejected here, before anything is computed."""
    files = Files(listing.base or "/")
    stamps = files.stamps([entry.file for entry in listing.entries])
    masked = [entry.mask for entry in listing.entries if entry.mask]
    absent = {
        name for name, stamp in zip(masked, files.stamps(masked), strict=True) if stamp is None
    }
    kept = []
    for entry, stamp in zip(listing.entries, stamps, strict=True):
        if stamp is None:
            reason = Rejected(entry.file, "MR-D206", "the file is not there", entry.where)
        elif entry.mask in absent:
            reason = Rejected(entry.file, "MR-D207", "its mask is not there", entry.where)
        else:
            kept.append(entry)
            continue
        listing.rejected.append(reason)
    listing.entries = kept
    return listing


def label_counts(entries: Iterable[Entry]) -> Counter[str]:
    """How many entries have each label."""
    return Counter(label for entry in entries for label in entry.labels or ())


def with_split(entry: Entry, split: str) -> Entry:
    """The entry in a split."""
    return replace(entry, split=split)
