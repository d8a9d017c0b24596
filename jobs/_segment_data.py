"""What jobs/segment.py trains and validates on: records read, samples with masks chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs import _data, _patients
from jobs.segment import SegmentJob
from medray import log
from medray.errors import DataError

if TYPE_CHECKING:
    from medray.lineage import Lineage
    from medray.stream import Fact
    from medray.stream.masks import MaskRoster


@dataclass(frozen=True)
class Samples:
    """What a run trains and validates on; `left_out` counts training samples, by why."""

    train: MaskRoster
    train_facts: list[Fact]
    validation: MaskRoster
    validation_facts: list[Fact]
    left_out: dict[str, int]


def samples_of(config: SegmentJob) -> Samples:
    """Reads the records of the splits; DataError where one has no sample with a mask for it."""
    train = roster_of(config, config.split)
    with_masks = masked(train)
    ours = _ours(config, train, with_masks)
    usable = _in_fraction(config, ours)
    facts, held = _parted(config, usable)
    left_out = {
        "without a mask": len(train.facts) - len(with_masks),
        "of other patients": len(with_masks) - len(ours),
        "outside the fraction": len(ours) - len(usable),
    }
    if config.validation_patients is not None:
        return Samples(train, facts, train, held, left_out)
    validation = roster_of(config, config.validation_split)
    chosen = _ours(config, validation, masked(validation))
    return Samples(train, facts, validation, chosen, left_out)


def roster_of(config: SegmentJob, split: str) -> MaskRoster:
    """A split of all sets."""
    from medray.stream.masks import MaskRoster

    return MaskRoster(sources_of(config), split, config.cache_dir)


def sources_of(config: SegmentJob) -> list[Any]:
    """The sets, as streams take them."""
    from medray.stream import Source

    urls = _data.sources_of(
        config.data,
        phantoms=config.phantoms,
        count=config.phantom_images,
        size_px=config.size_px,
        seed=config.seed,
        cache_dir=config.cache_dir,
    )
    return [Source(url) for url in urls]


def masked(roster: MaskRoster) -> list[Fact]:
    """The samples of a split that have masks; DataError where none has one."""
    facts = roster.masked()
    if not facts:
        raise DataError(
            f"no sample of split {roster.split!r} has a mask",
            code="MR-D075",
            where=roster.name,
            hint="pack the set with a mask column, or boxes (medray pack --box-columns)",
        )
    return facts


def _ours(config: SegmentJob, roster: MaskRoster, facts: list[Fact]) -> list[Fact]:
    """Those of the patients that --patients and --exclude-patients leave."""
    from medray.train import targets

    half = [fact for fact in facts if targets.in_half(fact, config.patients)]
    chosen = _patients.without(config.exclude_patients, roster, half)
    if not chosen:
        others = " but the excluded ones" if config.exclude_patients else ""
        raise DataError(
            f"no sample of split {roster.split!r} with a mask belongs to patients "
            f"{config.patients}{others}",
            code="MR-D072",
            where=roster.name,
            hint="give --patients all, or a set with more patients",
        )
    return chosen


def _in_fraction(config: SegmentJob, facts: list[Fact]) -> list[Fact]:
    from medray.train import fraction, targets

    if config.fraction == 1:
        return facts
    patients = fraction.in_fraction(_labels(facts), config.fraction, config.fraction_seed)
    return [fact for fact in facts if targets.patient_of(fact) in patients]


def _parted(config: SegmentJob, facts: list[Fact]) -> tuple[list[Fact], list[Fact]]:
    """Samples to train on, and those of the share of patients who validate instead."""
    from medray.train import fraction, targets

    if config.validation_patients is None:
        return facts, []
    share = config.validation_patients
    patients = fraction.held_for_validation(_labels(facts), share, config.seed)
    if not patients:
        raise DataError(
            f"{len({targets.patient_of(fact) for fact in facts})} patient(s) are too few for "
            f"--validation-patients {share:g}: nobody is left to validate",
            code="MR-D072",
            hint="leave --validation-patients out, or give a set with more patients",
        )
    held = [fact for fact in facts if targets.patient_of(fact) in patients]
    return [fact for fact in facts if targets.patient_of(fact) not in patients], held


def _labels(facts: list[Fact]) -> dict[str, set[str]]:
    """Each patient's labels, by which they are stratified; no label is a class of its own."""
    from medray.train import fraction, targets

    everyone = {targets.patient_of(fact): {fraction.NOTHING} for fact in facts}
    return everyone | fraction.labels_by_patient(facts)


def seen(config: SegmentJob, found: Samples) -> Lineage | None:
    """What the weights saw: all that trained or chose them, and what they began with.

    None where a part does not say. The test split moves nothing: it is not among them.
    """
    from medray import lineage
    from medray.train import mixture

    parts = [
        mixture.seen_in(found.train, found.train_facts, labels=True),
        mixture.seen_in(found.validation, found.validation_facts, labels=True),
        lineage.united([config.init_from]),
    ]
    merged = lineage.Lineage()
    for part in parts:
        if part is None:
            return None
        merged |= part
    return merged


def tell(found: Samples) -> None:
    """Says how many samples of how many patients there are, and what was left out."""
    from medray.train.targets import patient_of

    patients = [
        len({patient_of(fact) for fact in facts})
        for facts in (found.train_facts, found.validation_facts)
    ]
    left = "".join(f", {count:,} {why} left out" for why, count in found.left_out.items() if count)
    log.event(
        "samples",
        f"{len(found.train_facts):,} images with masks of {patients[0]:,} patients to train on, "
        f"{len(found.validation_facts):,} of {patients[1]:,} to validate{left}",
        train=len(found.train_facts),
        validation=len(found.validation_facts),
        patients=patients,
        left_out=found.left_out,
    )
    if patients[1] == 1:
        log.warn("one_patient", "one patient validates: figures by patient have no interval")
