"""What a study begins with: a published set unpacked, and a CSV of just what the study is about."""

from __future__ import annotations

import csv
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from medray import log
from medray.errors import UsageError

Row = dict[str, str]
DONE = "unpacked"


@dataclass(frozen=True)
class Table:
    """A CSV made of a set's rows: its name and which rows with which columns it has."""

    name: str
    rows: Callable[[Path], Iterator[Row]]
    # Of each image the middle, so many pixels a side (None: all of it).
    centre_px: int | None = None


@dataclass(frozen=True)
class Published:
    """A published set: the tar's name, and the CSVs that the study takes of it."""

    tar: str
    tables: tuple[Table, ...]


def unpacked(published: Published, sets: Path, where: Path) -> Path:
    """The set's folder below `where`, unpacked and with its CSVs; UsageError where there is none.

    Done again from the start where it was interrupted.
    """
    folder = where / published.tar
    if (where / DONE).exists():
        return folder
    tar = sets / f"{published.tar}.tar"
    if not tar.is_file():
        raise UsageError(
            f"--sets {sets} has no {tar.name}",
            hint="the README says where the published sets come from",
        )
    log.event("unpack", f"{tar.name} -> {where}")
    where.mkdir(parents=True, exist_ok=True)
    with tarfile.open(tar) as file:
        file.extractall(where, filter="data")
    for table in published.tables:
        rows = list(table.rows(folder))
        if table.centre_px:
            rows = [_cut(folder, row, table.name, table.centre_px) for row in rows]
        write_rows(folder / f"{table.name}.csv", rows)
    (where / DONE).touch()
    return folder


def _cut(folder: Path, row: Row, name: str, px: int) -> Row:
    """Writes the middle of a row's image into a folder called `name`; the row of what it wrote."""
    import cv2

    image = cv2.imread(str(folder / row["file"]), cv2.IMREAD_UNCHANGED)
    assert image is not None, f"the published set holds {row['file']}"
    top, left = ((side - px) // 2 for side in image.shape[:2])
    file = f"{name}/{Path(row['file']).name}"
    (folder / name).mkdir(exist_ok=True)
    cv2.imwrite(str(folder / file), image[top : top + px, left : left + px])
    return {**row, "file": file, "mask": ""}


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[Row]) -> None:
    """Writes rows that all have the columns of the first."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


# --- which rows -------------------------------------------------------------------------------


def all_rows(folder: Path) -> Iterator[Row]:
    """The set as it is."""
    yield from read_rows(folder / "labels.csv")


def without_no_tumor(folder: Path) -> Iterator[Row]:
    """Tumours alone: images without one come from another source, which is easy to tell."""
    yield from (row for row in all_rows(folder) if row["label"] != "no_tumor")


def without_a_test(folder: Path) -> Iterator[Row]:
    """Every slice; test patients train too, for the study has outer folds of its own."""
    for row in all_rows(folder):
        yield {**row, "split": "train" if row["split"] == "test" else row["split"]}


def grades(folder: Path) -> Iterator[Row]:
    """Slices that show tumour, with the patient's grade; patients without a grade left out."""
    column = "neoplasm_histologic_grade"
    grade = {r["patient"]: r[column] for r in read_rows(folder / "patients.csv") if r[column]}
    names = {"1": "grade_2", "2": "grade_3"}
    for row in all_rows(folder):
        if row["label"] == "tumor" and row["patient"] in grade:
            yield {**row, "label": names[grade[row["patient"]]]}


PUBLISHED = {
    "brain-grade": Published(
        "brain_lgg_flair", (Table("slices", without_a_test), Table("grades", grades))
    ),
    # Nodules lie in the middle of crops of 128 px and are 9 px wide in the median, 28 at the 95th
    # percentile: of the whole crop at 32 px a network learns nothing.
    "lung-signs": Published("lung_lidc_nodules", (Table("images", all_rows, centre_px=32),)),
    "brain-classes": Published("brain_tumor_classes", (Table("images", without_no_tumor),)),
    "chest": Published("chest_pneumonia_kermany", (Table("images", all_rows),)),
}
# Boxes filled in are the weak masks that segmenters of the grade study are pre-trained on.
BOXES = Published("brain_tumor_classes", (Table("boxes", without_no_tumor),))
