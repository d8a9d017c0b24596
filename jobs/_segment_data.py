"""What jobs/segment.py trains and validates on: records read, samples with masks chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs import _data
from jobs.segment import SegmentJob
from medray import lineage, log
from medray.errors import DataError
from medray.lineage import Lineage

if TYPE_CHECKING:
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
    """Reads the records of both splits; DataError where none of one has a mask."""
    train = roster_of(config, config.split)
    validation = roster_of(config, config.validation_split)
    with_masks = masked(train)
    ours = _ours(config, train, with_masks)
    facts = _in_fraction(config, ours)
    left_out = {
        "without a mask": len(train.facts) - len(with_masks),
        "of other patients": len(with_masks) - len(ours),
        "outside the fraction": len(ours) - len(facts),
    }
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
    """Those of the patients asked for."""
    from medray.train import fraction, targets

    excluded = (
        fraction.read_patients(config.exclude_patients) if config.exclude_patients else frozenset()
    )
    chosen = [
        fact
        for fact in facts
        if targets.in_half(fact, config.patients) and fact.patient not in excluded
    ]
    if not chosen:
        raise DataError(
            f"no sample of split {roster.split!r} with a mask is left: patients {config.patients}, "
            f"{len(excluded):,} excluded",
            code="MR-D072",
            where=roster.name,
            hint="give --patients all, a shorter --exclude-patients, or a set with more patients",
        )
    return chosen


def _in_fraction(config: SegmentJob, facts: list[Fact]) -> list[Fact]:
    """Those of the share of patients whose masks may be used; no label is a class of its own."""
    from medray.train import fraction, targets

    if config.fraction == 1:
        return facts
    labels = fraction.labels_by_patient(facts)
    labels |= {
        patient: {fraction.NOTHING}
        for patient in map(targets.patient_of, facts)
        if patient not in labels
    }
    chosen = fraction.in_fraction(labels, config.fraction, config.fraction_seed)
    return [fact for fact in facts if targets.patient_of(fact) in chosen]


def lineage_of(config: SegmentJob, found: Samples) -> Lineage:
    """What the weights are a function of: both splits with masks, and what they began with."""
    own = [
        lineage.of_facts(name, facts, labels=True, split=split)
        for roster, of_split, split in (
            (found.train, found.train_facts, "train"),
            (found.validation, found.validation_facts, "val"),
        )
        for name, facts in _by_set(roster, of_split).items()
    ]
    if config.init_from:
        own.append(lineage.read(config.init_from) or Lineage())
    merged = Lineage()
    for one in own:
        merged |= one
    return merged


def _by_set(roster: MaskRoster, facts: list[Fact]) -> dict[str, list[Fact]]:
    found: dict[str, list[Fact]] = {}
    for fact in facts:
        found.setdefault(roster.set_names[fact.place[0]], []).append(fact)
    return found


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
