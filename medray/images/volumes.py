"""Frames of one file or of many put together as a clip: in order, turned upright, one window.

Letters: T frames, H and W pixels. Where the files say how the patient lies, frames go towards the
right, the front or the head, and are shown as radiologists see them: the front or the head up, the
patient's right (in sagittal slices the front) on the left.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from medray.errors import DataError
from medray.images.frames import Frames, Vector
from medray.images.pixels import Array, Window, windowed

# What shows through of the darkest and the brightest values of a clip without a window.
PERCENTILES = (0.5, 99.5)
# A way between frames longer than the usual one by this is a gap.
GAP = 1.5
SAME_MM = 0.01
NAMED = 10


class Finding(NamedTuple):
    """What is odd about a clip that was packed all the same; `text` names frames by number."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Volume:
    """Values (T, H, W) in order, with what is known of them; `order` says where each frame was.

    `placed` where the files say how the patient lies: then other files that do fit, voxel by voxel.
    """

    values_THW: Array
    bits: int
    spacing_mm: tuple[float, float] | None
    slice_mm: float | None
    window: tuple[float, float] | None
    burned_in: bool | None
    inverted: bool
    placed: bool
    findings: tuple[Finding, ...]


def assemble(parts: Sequence[Frames], numbers: Sequence[int | None] = ()) -> Volume:
    """One clip of the frames of one file, or of one frame each of many, in natural order.

    `numbers` are those in the files' names. Order is mended and gaps are findings. DataError
    MR-D218 where a frame has another size, MR-D219 where it is of another series or direction.
    """
    if not parts:
        raise DataError("no frames", code="MR-D206")
    if len(parts) == 1:
        return _oriented(_sorted_frames(parts[0]))
    _check_alike(parts)
    return _oriented(_sorted_files(parts, numbers))


def grey_levels_of(
    volume: Volume, window: Window = "auto"
) -> tuple[Array, tuple[float, float] | None]:
    """Grey levels (T, H, W) by one window for all frames, and that window.

    "auto": the files' own where all frames share it; bytes stay as they are; else the clip's
    percentiles 0.5 and 99.5. DataError MR-D114 for values that are not finite.
    """
    values = volume.values_THW
    used: tuple[float, float] | None
    if window == "auto" and volume.window is None and values.dtype == np.uint8:
        levels, used = values, None
    else:
        levels, used = windowed(values, _window(volume, window), volume.bits)
    return (np.bitwise_not(levels) if volume.inverted else levels), used


def _window(volume: Volume, window: Window) -> Window:
    if window != "auto":
        return window
    if volume.window is not None:
        return volume.window
    finite = volume.values_THW[np.isfinite(volume.values_THW)]
    if finite.size == 0:
        return "minmax"
    low, high = (float(value) for value in np.percentile(finite, PERCENTILES))
    # Where nearly all of a clip has one value, the rest is what there is to see.
    return ((low + high) / 2, high - low) if high > low else "minmax"


def blank_frames(values_THW: Array) -> int:
    """Frames of one value throughout."""
    flat = values_THW.reshape(len(values_THW), -1)
    return int((flat.min(axis=1) == flat.max(axis=1)).sum())


# --- order --------------------------------------------------------------------------------------


def _check_alike(parts: Sequence[Frames]) -> None:
    first = parts[0]
    for number, part in enumerate(parts, start=1):
        where = f"frame {number} of {len(parts)}"
        if len(part.values_THW) != 1:
            raise DataError(
                f"{where} is a file of {len(part.values_THW)} frames",
                code="MR-D219",
                hint="a folder is one clip, a frame a file; other files need a row each in a table",
            )
        if part.values_THW.shape != first.values_THW.shape:
            sizes = ["x".join(map(str, which.values_THW.shape[1:])) for which in (part, first)]
            raise DataError(f"{where} is {sizes[0]} px, the first {sizes[1]}", code="MR-D218")
        if part.series != first.series or part.inverted != first.inverted:
            raise DataError(f"{where} is of another series than the first", code="MR-D219")
        if (part.directions is None) != (first.directions is None) or not np.allclose(
            part.directions or (), first.directions or (), atol=0.01
        ):
            raise DataError(f"{where} lies in another direction than the first", code="MR-D219")


def _sorted_frames(part: Frames) -> tuple[Frames, list[Finding]]:
    """One file's frames by their places."""
    if part.places_mm is None:
        return part, []
    numbers = list(range(1, len(part.places_mm) + 1))
    return _by_place(part, numbers, part.places_mm)


def _sorted_files(
    parts: Sequence[Frames], names: Sequence[int | None]
) -> tuple[Frames, list[Finding]]:
    """One frame each of many files: by place, else by their own numbers, else as they come."""
    first, findings = parts[0], list[Finding]()
    told = [part.number for part in parts]
    own = [number for number in told if number is not None]
    if len(set(own)) == len(parts):
        numbers, kept = own, sorted(range(len(parts)), key=own.__getitem__)
        if None not in names and kept != sorted(kept):
            text = "the files' names count otherwise than the frames' own numbers, which were taken"
            findings.append(Finding("MR-D215", text))
    else:
        given = [number for number in names if number is not None]
        numbers = given if len(set(given)) == len(parts) else list(range(1, len(parts) + 1))
        kept = list(range(len(parts)))
    numbers = [numbers[k] for k in kept]
    merged = replace(
        first,
        values_THW=np.concatenate([part.values_THW for part in _same_kind(parts, kept)]),
        bits=max(part.bits for part in parts),
        window=first.window if len({part.window for part in parts}) == 1 else None,
        burned_in=True if any(part.burned_in for part in parts) else first.burned_in,
    )
    places = [place for k in kept for place in parts[k].places_mm or ()]
    if len(places) < len(parts):
        return merged, [*findings, *_gaps_in(numbers)]
    placed, found = _by_place(merged, numbers, places)
    return placed, [*findings, *found]


def _same_kind(parts: Sequence[Frames], kept: Sequence[int]) -> list[Frames]:
    kinds = {part.values_THW.dtype for part in parts}
    found = [parts[k] for k in kept]
    if len(kinds) == 1:
        return found
    return [replace(part, values_THW=part.values_THW.astype(np.float32)) for part in found]


def _by_place(
    frames: Frames, numbers: Sequence[int], places_mm: Sequence[float]
) -> tuple[Frames, list[Finding]]:
    """Frames by their places, one at each; order, duplicates and gaps are findings."""
    order = sorted(range(len(numbers)), key=lambda k: (places_mm[k], k))
    steps = np.diff([numbers[k] for k in order])
    findings = []
    if len(order) > 1 and not ((steps > 0).all() or (steps < 0).all()):
        ways = (order, order[::-1])
        wrong = min(([numbers[k] for k, n in enumerate(way) if k != n] for way in ways), key=len)
        text = f"frames out of order, put in the order of their places: {_some(wrong)}"
        findings.append(Finding("MR-D215", text))
    once: list[int] = []
    twice: list[int] = []
    for k in order:
        same = once and places_mm[k] - places_mm[once[-1]] < SAME_MM
        (twice if same else once).append(k)
    if twice:
        text = f"frames at the place of another, left out: {_some([numbers[k] for k in twice])}"
        findings.append(Finding("MR-D216", text))
    ways_mm = np.diff([places_mm[k] for k in once])
    usual_mm = float(np.median(ways_mm)) if ways_mm.size else frames.slice_mm
    findings += _gaps_at(ways_mm, usual_mm, [numbers[k] for k in once])
    kept = replace(frames, values_THW=frames.values_THW[once], places_mm=None, slice_mm=usual_mm)
    return kept, findings


def _gaps_at(ways_mm: Array, usual_mm: float | None, numbers: Sequence[int]) -> list[Finding]:
    gaps = [
        f"{numbers[k]} and {numbers[k + 1]} ({way:.4g} mm)"
        for k, way in enumerate(ways_mm.tolist())
        if usual_mm and way > GAP * usual_mm
    ]
    if not gaps:
        return []
    text = f"frames are missing, where {usual_mm:.4g} mm are usual, between {_some(gaps)}"
    return [Finding("MR-D214", text)]


def _gaps_in(numbers: Sequence[int]) -> list[Finding]:
    """Numbers that are left out where they else go up by one step."""
    steps = np.diff(numbers)
    if steps.size == 0 or steps.min() < 1:
        return []
    usual = int(steps.min())
    missing = [
        number
        for before, after in itertools.pairwise(numbers)
        for number in range(before + usual, after, usual)
    ]
    return [Finding("MR-D214", f"frames are missing: {_some(missing)}")] if missing else []


def _some(things: Sequence[object]) -> str:
    more = f" and {len(things) - NAMED} more" if len(things) > NAMED else ""
    return ", ".join(map(str, things[:NAMED])) + more


# --- directions ---------------------------------------------------------------------------------


def _oriented(sorted_: tuple[Frames, list[Finding]]) -> Volume:
    frames, findings = sorted_
    values, spacing = frames.values_THW, frames.spacing_mm
    if frames.directions is not None:
        values, swapped = upright(values, frames.directions)
        spacing = (spacing[1], spacing[0]) if spacing and swapped else spacing
    return Volume(
        values_THW=np.ascontiguousarray(values),
        bits=frames.bits,
        spacing_mm=spacing,
        slice_mm=frames.slice_mm if len(values) > 1 or frames.slice_mm else None,
        window=frames.window,
        burned_in=frames.burned_in,
        inverted=frames.inverted,
        placed=frames.directions is not None,
        findings=tuple(findings),
    )


def upright(values_THW: Array, directions: tuple[Vector, Vector, Vector]) -> tuple[Array, bool]:
    """The volume with its axes along the patient's, and whether H and W changed places.

    `directions` are the patient's (right, front, head) of T, H and W; oblique ones count for the
    axis that they are nearest to.
    """
    cosines = np.array(directions)
    axes = max(
        itertools.permutations(range(3)),
        key=lambda order: sum(abs(cosines[k, axis]) for k, axis in enumerate(order)),
    )
    signs = [float(np.sign(cosines[k, axis])) or 1.0 for k, axis in enumerate(axes)]
    # Rows go down from the head, or from the front; columns from the right, or from the front.
    swapped = axes[1] < axes[2]
    if swapped:
        values_THW = values_THW.transpose(0, 2, 1)
        signs = [signs[0], signs[2], signs[1]]
    flips = (signs[0] < 0, signs[1] > 0, signs[2] > 0)
    step_T, step_H, step_W = (-1 if flip else 1 for flip in flips)
    return values_THW[::step_T, ::step_H, ::step_W], swapped
