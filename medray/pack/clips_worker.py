"""One shard's clips made: read, decoded in the limited child, ordered, one window, scaled.

Shape letters: T frames, H and W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from medray.errors import DataError
from medray.images.child import shared_for_clips
from medray.images.frames import Frames
from medray.images.volumes import Volume, assemble, blank_frames, grey_levels_of
from medray.pack.clips import frame_numbers
from medray.pack.deidentify import file_digest
from medray.pack.geometry import Array, as_set, fit_mask, scaled_spacing_mm
from medray.pack.plan import Rules, ShardPlan
from medray.pack.sources import Entry, Files
from medray.records import Sample

if TYPE_CHECKING:
    from medray.pack.worker import Result


def clip_samples(
    rules: Rules, shard: ShardPlan, result: Result
) -> Iterator[tuple[int, Sample | DataError]]:
    """Each entry's clip or reason, in order; what is odd about a clip goes to `result.notes`."""
    files = Files(rules.base or "/")
    for number, entry in enumerate(shard.entries):
        try:
            sample, volume = _clip(rules, files, f"{shard.split}-{shard.first + number:08d}", entry)
        except DataError as error:
            yield number, error
            continue
        result.notes += [(number, found.code, found.text) for found in volume.findings]
        result.frames.append(len(volume.values_THW))
        result.blank += blank_frames(volume.values_THW)
        yield number, sample


def _clip(rules: Rules, files: Files, key: str, entry: Entry) -> tuple[Sample, Volume]:
    bodies = _read(files, entry.files)
    volume = assemble(_decoded(bodies), frame_numbers(entry.files))
    if volume.burned_in and rules.burned_in == "reject":
        raise DataError("text may be burned into its pixels (--burned-in reject)", code="MR-D112")
    levels, window = grey_levels_of(volume, rules.window)
    shape_HW = levels.shape[1:]
    assert entry.split is not None, "the plan gives every entry a split"
    positive = entry.labels or ()
    sample = Sample(
        key=key,
        image=np.stack([as_set(frame, rules.size_px, 1, rules.bits) for frame in levels]),
        label=min(positive, key=rules.rarest_first.index) if positive else None,
        labels=dict(entry.findings),
        patient=entry.patient,
        split=entry.split,
        mask=_mask(rules, files, entry, volume) if entry.mask_files else None,
        source_sha256=_digest(bodies),
        spacing_mm=scaled_spacing_mm(volume.spacing_mm, shape_HW, rules.size_px),
        window=window,
        burned_in=volume.burned_in,
        extra=entry.extra,
        frames=len(levels),
        slice_mm=volume.slice_mm,
    )
    return sample, volume


def _read(files: Files, names: Sequence[str]) -> list[bytes]:
    try:
        return [files.read(name) for name in names]
    except FileNotFoundError:
        raise DataError("a file of the clip is not there", code="MR-D206") from None
    except OSError as error:
        text = f"a file of the clip cannot be read ({error.strerror})"
        raise DataError(text, code="MR-D206") from error


def _decoded(bodies: Sequence[bytes]) -> list[Frames]:
    """The frames of each file; DataError that names the frame where one cannot be decoded."""
    found = []
    for number, answer in enumerate(
        shared_for_clips().frames_many([("", body) for body in bodies]), start=1
    ):
        if isinstance(answer, DataError):
            which = f"frame {number} of {len(bodies)}: " if len(bodies) > 1 else ""
            raise DataError(f"{which}{answer.message}", code=answer.code)
        found.append(answer)
    return found


def _digest(bodies: Sequence[bytes]) -> str:
    """SHA-256 of a file, or of those of many, in their order."""
    digests = [file_digest(body) for body in bodies]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def _mask(rules: Rules, files: Files, entry: Entry, volume: Volume) -> Array:
    """The mask (T, size, size), 0 and 255; DataError MR-D209 where it does not fit the frames."""
    try:
        parts = _decoded(_read(files, entry.mask_files))
    except DataError as error:
        raise DataError(f"its mask: {error.message}", code=error.code) from error
    mask = assemble(parts, frame_numbers(entry.mask_files))
    wanted, found = volume.values_THW.shape, mask.values_THW.shape
    if wanted != found:
        raise DataError(
            f"its mask is {'x'.join(map(str, found))}, the clip {'x'.join(map(str, wanted))} "
            "(frames, rows, columns)",
            code="MR-D209",
        )
    if mask.placed != volume.placed:
        which = "the clip" if volume.placed else "its mask"
        raise DataError(
            f"{which} alone says how the patient lies, so that frames cannot be matched",
            code="MR-D209",
        )
    _same_numbers(entry)
    values = mask.values_THW
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError("its mask is not finite (NaN or infinity)", code="MR-D114")
    inside = values[values != 0]
    if inside.size and (inside != inside[0]).any():
        raise DataError("its mask has more than two values", code="MR-D209")
    black_white = (values != 0).astype(np.uint8) * np.uint8(255)
    return np.stack([fit_mask(frame, rules.size_px) for frame in black_white])


def _same_numbers(entry: Entry) -> None:
    """Refuses a mask whose files are numbered otherwise than the clip's."""
    pairs = zip(frame_numbers(entry.files), frame_numbers(entry.mask_files), strict=False)
    for mine, other in pairs:
        if len(entry.files) > 1 and None not in (mine, other) and mine != other:
            raise DataError(f"frame {mine} of the clip meets {other} of its mask", code="MR-D209")
