"""The nouns that cross a border between stages: Sample, Batch, Provenance, Shard, ShardIndex.

Shape letters: N samples, C channels, T frames of a clip, H and W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from medray.errors import DataError

SPLITS = ("train", "val", "test")
SCHEMA = "medray.shards/1"
READABLE_SCHEMAS = ("medray.shards/0", SCHEMA)
IMAGES, CLIPS = "images", "clips"
KINDS = (IMAGES, CLIPS)

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a synthetic image comes from; `address` alone is enough to make it again.

    `nearest` is its likeness to the training images; `audited`, that a gate which catches copies
    compared them.
    """

    address: str
    generator_sha256: str
    latents_sha256: str | None
    seed: int
    index: int
    wanted: dict[str, int]
    probabilities: dict[str, float]
    nearest: float | None
    render: dict[str, Any]
    audited: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One image, or one clip, with what is known of it.

    `image` is (H, W) or (H, W, 3), uint8 or uint16 (features: any shape, floating); `mask` is
    (H, W) uint8 with 0 and 255. `labels` holds 1, 0 or None (unknown) per finding, `label` one
    class or None. A clip says its number of `frames`: both are (T, H, W) then, and `slice_mm` is
    the way from frame to frame.
    """

    key: str
    image: Array
    label: str | None = None
    labels: dict[str, int | None] = field(default_factory=dict)
    patient: str | None = None
    split: str = "train"
    mask: Array | None = None
    source_sha256: str | None = None
    spacing_mm: tuple[float, float] | None = None
    window: tuple[float, float] | None = None
    burned_in: bool | None = None
    provenance: Provenance | None = None
    extra: dict[str, str] = field(default_factory=dict)
    frames: int | None = None
    slice_mm: float | None = None

    def record(self) -> dict[str, Any]:
        """The content of `<key>.json`: everything but the pixels."""
        return {
            "schema": SCHEMA,
            "label": self.label,
            "labels": self.labels,
            "patient": self.patient,
            "split": self.split,
            "mask": self.mask is not None,
            "source_sha256": self.source_sha256,
            "spacing_mm": self.spacing_mm,
            "window": self.window,
            "burned_in": self.burned_in,
            "provenance": None if self.provenance is None else asdict(self.provenance),
            **({"extra": self.extra} if self.extra else {}),
            **self._clip(),
        }

    def _clip(self) -> dict[str, Any]:
        """What the record of a clip says besides; images have none of it."""
        return {} if self.frames is None else {"frames": self.frames, "slice_mm": self.slice_mm}

    @classmethod
    def from_record(
        cls, key: str, record: dict[str, Any], image: Array, mask: Array | None = None
    ) -> Sample:
        """The sample that `record()` described, with its pixels."""
        spacing_mm, window = record.get("spacing_mm"), record.get("window")
        provenance = record.get("provenance")
        return cls(
            key=key,
            image=image,
            mask=mask,
            labels=record.get("labels") or {},
            split=record.get("split") or "train",
            provenance=None if provenance is None else Provenance(**provenance),
            extra=record.get("extra") or {},
            label=record.get("label"),
            patient=record.get("patient"),
            source_sha256=record.get("source_sha256"),
            spacing_mm=None if spacing_mm is None else (spacing_mm[0], spacing_mm[1]),
            window=None if window is None else (window[0], window[1]),
            burned_in=record.get("burned_in"),
            frames=record.get("frames"),
            slice_mm=record.get("slice_mm"),
        )


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar of samples of one split, as `index.json` describes it."""

    name: str
    split: str
    samples: int
    bytes: int
    sha256: str
    idx_sha256: str
    class_counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """A set of shards: `index.json`, written last, so that a set without one is not finished.

    `kind` says whether its samples are images or clips; an index that does not say it is of images.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    size_px: int
    bits: int
    encoding: str
    source: str
    licence: str
    audited: bool
    shards: tuple[Shard, ...]
    kind: str = IMAGES

    def of_split(self, split: str) -> tuple[Shard, ...]:
        """The shards of one split, in order."""
        return tuple(shard for shard in self.shards if shard.split == split)

    def to_json(self) -> str:
        """The text of `index.json`: the same index gives the same bytes."""
        fields = {"schema": SCHEMA, **asdict(self)}
        if self.kind == IMAGES:
            del fields["kind"]  # sets of images are what they were before there were clips
        return json.dumps(fields, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "index.json") -> ShardIndex:
        """Reads this schema and the one before; DataError for any other, and for bad fields."""
        try:
            fields = json.loads(text)
            schema = fields.pop("schema")
            if schema not in READABLE_SCHEMAS:
                allowed = ", ".join(READABLE_SCHEMAS)
                raise DataError(
                    f"schema {schema!r} is not one that this version reads ({allowed})",
                    code="MR-D020",
                    where=where,
                    hint="update medray, or pack the set again",
                )
            shards = tuple(Shard(**shard) for shard in fields.pop("shards"))
            return cls(shards=shards, classes=tuple(fields.pop("classes")), **fields)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"the index cannot be read: {error}", code="MR-D021", where=where
            ) from error


@dataclass(frozen=True, slots=True)
class Batch:
    """This rank's part of a global batch.

    `images_NCHW` is uint8 or uint16 and contiguous; `labels_N` indexes the classes, -1 = missing;
    `first_index` numbers this part's first image over the whole run, counting from 0.
    """

    keys: tuple[str, ...]
    images_NCHW: Array
    labels_N: npt.NDArray[np.int64]
    records: Sequence[dict[str, Any]]
    first_index: int
    masks_NHW: Array | None = None
