"""What jobs/jigsaw.py trains and validates on: frames of clips or images, by patient, no labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs import _data
from jobs.jigsaw import JigsawJob
from medray import log
from medray.errors import DataError, UsageError

if TYPE_CHECKING:
    from medray.lineage import Lineage
    from medray.stream import Roster
    from medray.stream.clips import ClipSet
    from medray.stream.frames import Frames
    from medray.stream.views import Cut, Views


@dataclass(frozen=True)
class Held:
    """The facts of one set that belong to a split's patients, and where their pixels are."""

    opened: ClipSet | Roster
    name: str
    split: str
    facts: list[Any]


@dataclass(frozen=True)
class Samples:
    """Frames to train on and to validate on, and the facts that they came from."""

    train: Frames
    train_held: list[Held]
    validation: Frames
    validation_held: list[Held]

    @property
    def channels(self) -> int:
        """Channels of a frame."""
        return int(self.train.frames_FCHW.shape[1])


def samples_of(config: JigsawJob) -> Samples:
    """Reads the frames of both splits; DataError where one has none that shows anything."""
    train = held_of(config, config.split)
    if config.validation_patients is None:
        validation = held_of(config, config.validation_split)
    else:
        train, validation = _parted(train, config.validation_patients, config.seed)
    found = Samples(frames_of(config, train), train, frames_of(config, validation), validation)
    shapes = {tuple(part.frames_FCHW.shape[1:]) for part in (found.train, found.validation)}
    assert len(shapes) == 1, f"two splits of a set differ in shape: {shapes}"
    return found


def held_of(config: JigsawJob, split: str) -> list[Held]:
    """What a split has of each set, the patients that are left out left out."""
    from medray import lineage
    from medray.train import fraction, targets

    excluded: frozenset[str] = frozenset()
    if config.exclude_patients is not None:
        excluded = fraction.read_patients(config.exclude_patients)
    found = []
    for opened, name, facts in _opened(config, split):
        kept = [
            fact
            for fact in facts
            if targets.in_half(fact, config.patients)
            and not {targets.patient_of(fact), lineage.patient_of(name, fact)} & excluded
        ]
        found.append(Held(opened, name, split, kept))
    if not any(held.facts for held in found):
        raise DataError(
            f"no sample of split {split!r} belongs to patients {config.patients}"
            f"{' but the excluded ones' if excluded else ''}",
            code="MR-D072",
            hint="give --patients all, or a set with more patients",
        )
    return found


def _opened(config: JigsawJob, split: str) -> list[tuple[Any, str, Sequence[Any]]]:
    """Each set opened as what it is, its name, and all its facts of a split."""
    from medray.records import CLIPS
    from medray.shards import read_index
    from medray.store import Store
    from medray.stream import Roster, Source
    from medray.stream.clips import ClipSet

    found: list[tuple[Any, str, Sequence[Any]]] = []
    for url in sources_of(config):
        if Store(url).exists("index.json") and read_index(Store(url), None).kind == CLIPS:
            clips = ClipSet.open(url, config.cache_dir)
            found.append((clips, clips.index.name, clips.facts(split)))
        else:
            roster = Roster([Source(url)], split, config.cache_dir)
            found.append((roster, roster.set_names[0], roster.facts))
    return found


def sources_of(config: JigsawJob) -> tuple[str, ...]:
    """The sets' URLs; phantoms where none is given."""
    return _data.sources_of(
        config.data,
        phantoms=config.phantoms,
        count=config.phantom_images,
        size_px=config.phantom_px,
        seed=config.seed,
        cache_dir=config.cache_dir,
    )


def _parted(train: list[Held], share: float, seed: int) -> tuple[list[Held], list[Held]]:
    """What trains, and what of the `share` of patients validates instead; labels are not read."""
    from dataclasses import replace

    from medray.train import fraction, targets

    everyone = {
        targets.patient_of(fact): {fraction.NOTHING} for held in train for fact in held.facts
    }
    patients = fraction.held_for_validation(everyone, share, seed)
    if not patients:
        raise DataError(
            f"{len(everyone)} patient(s) are too few for --validation-patients {share:g}",
            code="MR-D072",
            hint="leave --validation-patients out, or give a set with more patients",
        )

    def of(validating: bool) -> list[Held]:
        return [
            replace(
                held,
                facts=[f for f in held.facts if (targets.patient_of(f) in patients) == validating],
            )
            for held in train
        ]

    return of(False), of(True)


def frames_of(config: JigsawJob, parts: list[Held]) -> Frames:
    """The frames of some facts, in memory."""
    from medray.stream import frames
    from medray.stream.clips import ClipSet

    most_bytes = config.memory_gib * 2**30
    found = []
    for held in parts:
        if not held.facts:
            continue
        if isinstance(held.opened, ClipSet):
            per_clip = config.frames_per_clip
            made = frames.of_clips(
                held.opened, held.facts, per_clip=per_clip, most_bytes=most_bytes
            )
        else:
            made = frames.of_images(held.opened, held.facts, most_bytes=most_bytes)
        found.append(made)
    return frames.joined(found)


def views_of(config: JigsawJob, cut: Cut, *, augment: bool) -> Views:
    """The views of training, or with the same cut but for what changes them."""
    from medray.stream.views import Views

    return Views(cut, seed=config.seed, noise=config.noise, augment=augment)


def tell(found: Samples, cut: Cut) -> None:
    """Says what is trained on, and what was left out."""
    from medray.train import targets

    parts = (found.train, found.validation)
    patients = [len({targets.patient_of(fact) for fact in part.facts}) for part in parts]
    frames = [len(part.frames_FCHW) for part in parts]
    log.event(
        "samples",
        f"{frames[0]:,} frames of {len(found.train.facts):,} clips of {patients[0]:,} patients to "
        f"train on, {frames[1]:,} of {patients[1]:,} patients to validate, "
        f"{found.train.blank + found.validation.blank:,} blank ones left out; "
        f"cells of {cut.cell_px} px, patches of {cut.patch_px}, views of {cut.view_px}",
        train=frames[0],
        validation=frames[1],
        clips=len(found.train.facts),
        patients=patients,
        blank=[found.train.blank, found.validation.blank],
    )
    shared = {targets.patient_of(f) for f in found.train.facts} & {
        targets.patient_of(f) for f in found.validation.facts
    }
    if shared:
        raise UsageError(
            f"{len(shared):,} patient(s) are in both splits, so the validation would flatter",
            hint="pack the set by patient, or give --validation-patients 0.2",
        )


def seen(config: JigsawJob, found: Samples) -> Lineage | None:
    """What the weights saw, without labels; None where what they began with does not say."""
    from medray import lineage

    begun = lineage.united([config.init_from])
    if begun is None:
        return None
    for parts, split in ((found.train_held, "train"), (found.validation_held, "val")):
        for held in parts:
            begun |= lineage.of_facts(held.name, held.facts, labels=False, split=split)
    return begun
