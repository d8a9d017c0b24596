"""What a pack may be told; imported by the command line, so nothing heavy here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from medray.config import Frozen, Location

# Where and how fast a pack runs, and what it puts up with: none of it changes a byte of a shard.
NOT_IN_PLAN = frozenset(
    "source workers max_rejected secret_file near_duplicates near_similarity".split()
)

CLIP_DEFAULTS = {"file_column": "clip", "encoding": "zstd", "samples_per_shard": 32}
_YES = ("true", "1", "yes", "on", "y", "t")

Text = Annotated[str, BeforeValidator(str)]


class PackConfig(Frozen):
    """A pack: which files, how they are labelled, what becomes of their pixels."""

    source: Location = Field(
        description="CSV, folder per class, or a tree of DICOM, PNG, JPEG, TIFF, NPY",
        json_schema_extra={"metavar": "FOLDER|CSV"},
    )
    clips: bool = Field(
        False,
        description="pack volumes and series as clips: a CSV (clip, patient, split, mask and a "
        "column per finding: 1, 0 or empty) or a folder of NIfTI, NPY and folders of slices",
    )
    size_px: int = Field(ge=4, le=8192, description="side of the square images that are written")
    layout: Literal["auto", "csv", "classes", "tree"] = Field(
        "auto", description="what a folder is: labels.csv in it, a folder per class, or a tree"
    )
    file_column: str = Field("file", description="the CSV's column of file names (clips: clip)")
    label_column: str = Field("label", description="... of labels; several are joined by |")
    split_column: str = Field(
        "split", description="... of train, val, test; absent or empty: drawn"
    )
    mask_column: str = Field("mask", description="... of mask files")
    patient_column: str = Field("patient", description="... of patients")
    box_columns: tuple[str, ...] = Field(
        (),
        description="... of a box (left, top, right, bottom in the file's px), filled in as the "
        "mask where the row names no mask file",
    )
    keep_columns: tuple[str, ...] = Field(
        (), description="more columns to keep as they are; they are not de-identified"
    )
    classes: tuple[str, ...] = Field(
        (), description="the labels allowed, in order (none: those found)"
    )
    channels: int = Field(1, description="1 (colour becomes luminance) or 3")
    bits: Annotated[Literal["auto", "8", "16"], BeforeValidator(str)] = Field(
        "auto", description="bits a pixel; auto: 8 if every file has 8, else 16"
    )
    window: Text = Field(
        "auto",
        description="auto: the file's own window or levels; minmax: each image's range; or "
        "CENTRE,WIDTH",
    )
    encoding: Literal["png", "raw", "zstd"] = Field(
        "png", description="how pixels are stored (clips: raw or zstd, which is their default)"
    )
    samples_per_shard: int = Field(1000, ge=1, description="samples of a shard (clips: 32)")
    val: float = Field(0.15, ge=0, lt=1, description="part of the patients for val, without splits")
    test: float = Field(0.15, ge=0, lt=1, description="part of the patients for test")
    burned_in: Literal["flag", "reject"] = Field(
        "flag", description="what happens to images that may have text burned into their pixels"
    )
    near_duplicates: Literal["report", "refuse", "off"] = Field(
        "report",
        description="pictures nearly the same in different splits or of different patients: listed "
        "in near_duplicates.csv; refuse: exit code 3, no index",
    )
    near_similarity: float = Field(
        0.95, ge=0.5, le=1, description="how alike those are: the correlation of fine structure"
    )
    max_rejected: int = Field(
        0, ge=0, description="files that may be rejected before the job fails (exit code 3)"
    )
    workers: int | None = Field(
        None,
        ge=0,
        description="Ray tasks at a time; 0: in this process (none: as many as Ray has "
        "CPUs where RAY_ADDRESS is set, else 0)",
    )
    name: str | None = Field(None, description="the set's name (none: the last part of --out)")
    origin: str = Field(
        "", description="where the images come from, as it shall stand in the index"
    )
    licence: str = Field("", description="their licence, as it shall stand in the index")
    secret_file: Location | None = Field(
        None,
        description="the project's secret for patient hashes (none: MEDRAY_SECRET_KEY, else "
        "~/.config/medray/secret.key, made at first use)",
    )

    @model_validator(mode="before")
    @classmethod
    def _clips_have_their_own_defaults(cls, given: Any) -> Any:
        if not isinstance(given, dict) or str(given.get("clips", "")).lower() not in _YES:
            return given
        return {**CLIP_DEFAULTS, **given}

    @field_validator("channels")
    @classmethod
    def _one_or_three(cls, channels: int) -> int:
        if channels not in (1, 3):
            raise ValueError("1 or 3 channels are possible")
        return channels

    @field_validator("box_columns")
    @classmethod
    def _four_or_none(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        if columns and len(set(columns)) != 4:
            raise ValueError(f"four columns make a box, got {', '.join(columns)}")
        return columns

    @field_validator("window")
    @classmethod
    def _window_is_one(cls, window: str) -> str:
        parse_window(window)
        return window

    @model_validator(mode="after")
    def _makes_sense(self) -> PackConfig:
        if self.val + self.test >= 1:
            raise ValueError(f"--val {self.val} and --test {self.test} leave nothing for train")
        odd = [name for name in ("box_columns", "label_column") if self._differs(name)]
        if self.clips and (odd or self.channels != 1 or self.encoding == "png"):
            what = odd[0].replace("_", "-") if odd else f"channels {self.channels}"
            what = what if odd or self.channels != 1 else "encoding png"
            raise ValueError(f"--clips does not go with --{what}")
        for column in (self.file_column, self.mask_column, self.patient_column):
            if column in self.keep_columns:
                raise ValueError(f"--keep-columns must not keep {column!r}: it can name a patient")
        return self

    def _differs(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)


def parse_window(text: str) -> Any:
    """ "auto", "minmax" or (centre, width); ValueError for anything else."""
    if text in ("auto", "minmax"):
        return text
    try:
        centre, width = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError("auto, minmax or CENTRE,WIDTH is wanted") from None
    if not (width > 0 and abs(centre) < 1e9 and width < 1e9):
        raise ValueError("the width of a window is above 0")
    return centre, width
