"""All frames of some clips, or all images of a set, in memory: what single frames are drawn from.

Shape letters: F frames, C channels, H = W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medray.errors import DataError, UsageError
from medray.stream.clips import ClipFact, ClipSet, spread
from medray.stream.roster import Fact, Roster

Array = npt.NDArray[Any]
# Of 255 grey levels: what spans fewer shows nothing.
LEAST_CONTRAST = 8


@dataclass(frozen=True)
class Frames:
    """Frames with contrast, clip after clip, and the fact of each clip that has one.

    Clip c has the frames `starts[c]` to `starts[c + 1]`; an image is a clip of one frame. `blank`
    counts frames that were left out because nothing is on them.
    """

    frames_FCHW: Array
    starts: npt.NDArray[np.int64]
    facts: tuple[ClipFact | Fact, ...]
    blank: int

    @property
    def clip_F(self) -> npt.NDArray[np.int64]:
        """The clip of each frame."""
        return np.repeat(np.arange(len(self.facts)), np.diff(self.starts))

    def digest(self) -> str:
        """SHA-256 of frames and borders."""
        found = hashlib.sha256(np.ascontiguousarray(self.frames_FCHW).data)
        found.update(self.starts.tobytes() + str(self.frames_FCHW.shape).encode())
        return found.hexdigest()


def of_clips(
    opened: ClipSet, facts: Sequence[ClipFact], *, per_clip: int | None = None, most_bytes: float
) -> Frames:
    """The frames of clips, at most `per_clip` of each, evenly. Raises as `of_images`."""
    counts = [fact.frames if per_clip is None else min(per_clip, fact.frames) for fact in facts]
    pixel_bytes = opened.bits // 8
    _check_memory(sum(counts) * opened.size_px**2 * pixel_bytes, sum(counts), most_bytes)

    def read() -> Iterator[Array]:
        for fact, count in zip(facts, counts, strict=True):
            frames_THW = opened.read(fact.key).frames_THW
            yield frames_THW[spread(len(frames_THW), count)][:, None]

    return _pooled(read(), facts, opened.url)


def of_images(roster: Roster, facts: Sequence[Fact], *, most_bytes: float) -> Frames:
    """Images as clips of one frame.

    UsageError where they need more than `most_bytes`, DataError where none has contrast.
    """
    pixel_bytes = roster.channels * roster.bits // 8
    _check_memory(len(facts) * roster.size_px**2 * pixel_bytes, len(facts), most_bytes)
    each = (image[None] for batch in roster.images(facts) for image in batch)
    return _pooled(each, facts, roster.name)


def joined(parts: Sequence[Frames]) -> Frames:
    """The frames of several sets as one; DataError where they differ in size, channels or type."""
    forms = {(part.frames_FCHW.shape[1:], str(part.frames_FCHW.dtype)) for part in parts}
    if len(forms) > 1:
        raise DataError(
            f"the sets differ in (shape, type) of their frames: {sorted(map(str, forms))}",
            code="MR-D031",
            hint="pack them alike",
        )
    if len(parts) == 1:
        return parts[0]
    counts = np.concatenate([np.diff(part.starts) for part in parts])
    return Frames(
        np.concatenate([part.frames_FCHW for part in parts]),
        np.concatenate([[0], np.cumsum(counts)]),
        tuple(fact for part in parts for fact in part.facts),
        sum(part.blank for part in parts),
    )


def contrast(frames_FCHW: Array) -> npt.NDArray[np.bool_]:
    """Whether each frame spans `LEAST_CONTRAST` of 255 grey levels or more, (F,)."""
    flat = frames_FCHW.reshape(len(frames_FCHW), -1)
    least = LEAST_CONTRAST * (np.iinfo(frames_FCHW.dtype).max // 255)
    span_F = flat.max(1).astype(np.int64) - flat.min(1)
    found: npt.NDArray[np.bool_] = span_F >= least
    return found


def _pooled(clips: Iterator[Array], facts: Sequence[ClipFact | Fact], where: str) -> Frames:
    kept, counts, named, blank = [], [], [], 0
    for frames_TCHW, fact in zip(clips, facts, strict=True):
        good_T = contrast(frames_TCHW)
        blank += int((~good_T).sum())
        if good_T.any():
            kept.append(frames_TCHW[good_T])
            counts.append(int(good_T.sum()))
            named.append(fact)
    if not kept:
        raise DataError(
            f"none of {blank:,} frames shows anything (each spans fewer than {LEAST_CONTRAST} of "
            "255 grey levels)",
            code="MR-D111",
            where=where,
            hint="look at the set's report, and at the window that it was packed with",
        )
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Frames(np.concatenate(kept), starts, tuple(named), blank)


def _check_memory(needed: int, frames: int, most_bytes: float) -> None:
    if needed > most_bytes:
        raise UsageError(
            f"{frames:,} frames need {needed / 2**30:.2f} GiB of memory, "
            f"allowed are {most_bytes / 2**30:.2f}",
            hint="raise --memory-gib, or lower --frames-per-clip",
        )
