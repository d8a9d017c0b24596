"""What jobs/classify.py trains and validates on: records read, the task they make, its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs import _data, _patients
from jobs import _encoders as encoders
from jobs.classify import ClassifyJob
from medray import log
from medray.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from medray.stream import Fact, Roster, Source
    from medray.train.mixture import Mixture
    from medray.train.targets import Targets


@dataclass(frozen=True)
class Samples:
    """What a run trains and validates on, the task that makes, and the weights of its classes.

    `mixture` has `train_facts` and, with --synthetic, images of an archive; `first` is what
    pre-training reads, with its own weights.
    """

    train: Roster
    train_facts: list[Fact]
    validation: Roster
    validation_facts: list[Fact]
    targets: Targets
    mixture: Mixture
    weights_2K: npt.NDArray[np.float64]
    bias_K: npt.NDArray[np.float64]
    unlabelled: int = 0
    first: Mixture | None = None
    first_weights_2K: npt.NDArray[np.float64] | None = None


def samples_of(config: ClassifyJob) -> Samples:
    """Reads the records of both splits; DataError where they make no task, or an archive leaks."""
    from medray.stream import Roster
    from medray.train import mixture, targets

    sources = sources_of(config)
    train = Roster(sources, config.split, config.cache_dir)
    usable = _patients.in_fraction(_usable(config, train), config.fraction, config.fraction_seed)
    facts, held = _patients.parted(usable, config.validation_patients, config.seed)
    wanted = targets.choose(
        facts, train.classes, labels=config.labels, only=config.classes, where=train.name
    )
    train_facts = [fact for fact in facts if wanted.known(fact)]
    validation = train
    if config.validation_patients is None:
        validation = Roster(sources, config.validation_split, config.cache_dir)
        held = _usable(config, validation)
    validation_facts = labelled(held, wanted, validation)
    _refuse_leaks(config, train, usable, mixture.names_in(validation, held))
    real = mixture.real(sources, train, train_facts, wanted)
    read = _mixed(config, real, train_facts, wanted)
    weights_2K = targets.weights(read.truth_NK, wanted.multi_label, config.max_weight)
    first = None if config.pretrain is None else _first(config, train, wanted)
    first_weights_2K = None
    if first is not None:
        first_weights_2K = targets.weights(first.truth_NK, wanted.multi_label, config.max_weight)
    return Samples(
        train,
        train_facts,
        validation,
        validation_facts,
        wanted,
        read,
        weights_2K,
        targets.bias_of(weights_2K, wanted.multi_label),
        len(facts) - len(train_facts),
        first,
        first_weights_2K,
    )


def sources_of(config: ClassifyJob) -> list[Source]:
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


# --- whose images -------------------------------------------------------------------------------


def _usable(config: ClassifyJob, roster: Roster) -> list[Fact]:
    """The samples of the patients that --patients and --exclude-patients leave."""
    from medray.train import targets

    facts = roster.where(lambda fact: targets.in_half(fact, config.patients))
    facts = _patients.without(config.exclude_patients, roster, facts)
    if not facts:
        others = " but the excluded ones" if config.exclude_patients else ""
        raise DataError(
            f"no sample of split {roster.split!r} belongs to patients {config.patients}{others}",
            code="MR-D072",
            where=roster.name,
            hint="give --patients all, or a set with more patients",
        )
    return facts


# --- synthetic images ---------------------------------------------------------------------------


def _mixed(config: ClassifyJob, real: Mixture, facts: list[Fact], wanted: Targets) -> Mixture:
    from medray.stream import Roster, Source
    from medray.train import mixture

    if config.synthetic is None:
        return real
    archive = Roster([Source(config.synthetic)], "train", config.cache_dir)
    counts = mixture.synthetic_counts(
        mixture.counts_of(facts, wanted), config.ratio, config.ratio_of
    )
    return mixture.mixed(real, facts, archive, wanted, counts)


def _first(config: ClassifyJob, train: Roster, wanted: Targets) -> Mixture:
    from medray.stream import Roster, Source
    from medray.train import mixture

    sources = [Source(str(config.pretrain))]
    archive = Roster(sources, "train", config.cache_dir)
    if archive.channels != train.channels:
        raise DataError(
            f"--pretrain has images of {archive.channels} channel(s), --data {train.channels}",
            code="MR-D031",
            where=archive.name,
            hint="give an archive of a generator that was trained on this set",
        )
    return mixture.real(sources, archive, labelled(list(archive.facts), wanted, archive), wanted)


def _refuse_leaks(
    config: ClassifyJob, train: Roster, usable: list[Fact], validating: set[str]
) -> None:
    """DataError for an archive that saw a held-out patient or a label outside the fraction.

    Held out are the patients of every other split, those that validate, and the excluded ones;
    records of the test split are read for their patients alone.
    """
    from medray import lineage
    from medray.train import fraction, mixture

    archives = [url for url in (config.pretrain, config.synthetic) if url is not None]
    if not archives and not encoders.trained(config):
        return
    held = validating | _of_other_splits(config)
    if config.exclude_patients is not None:
        held |= fraction.read_patients(config.exclude_patients)
        left = _patients.without(config.exclude_patients, train, list(train.facts))
        places = {fact.place for fact in left}
        excluded = train.where(lambda fact: fact.place not in places)
        held |= mixture.names_in(train, excluded)
    labels = None if config.fraction == 1 else mixture.samples_in(train, usable)
    for url in archives:
        lineage.refuse(url, patients=held, labels=labels)
    if config.encoder is not None and encoders.trained(config):
        encoders.refuse(config.encoder, held, mixture.samples_in(train, train.facts), labels)


def _of_other_splits(config: ClassifyJob) -> set[str]:
    from medray.records import SPLITS
    from medray.stream import Roster
    from medray.train import mixture

    found: set[str] = set()
    for source in sources_of(config):
        for split in set(SPLITS) - {config.split}:
            try:
                roster = Roster([source], split, config.cache_dir)
            except DataError as error:
                # A set need not have every split.
                if error.code != "MR-D033":
                    raise
            else:
                found |= mixture.names_in(roster, roster.facts)
    return found


# --- labels -------------------------------------------------------------------------------------


def labelled(facts: list[Fact], wanted: Targets, roster: Roster) -> list[Fact]:
    """Those of `facts` that say something of the task; warns of classes that none of them has."""
    known = [fact for fact in facts if wanted.known(fact)]
    if not known:
        raise DataError(
            f"no sample of split {roster.split!r} has a label among {', '.join(wanted.classes)}",
            code="MR-D070",
            where=roster.name,
            hint="pack the set with labels in every split, or give another --validation-split",
        )
    present = (wanted.of(known) == 1).any(0)
    absent = [name for name, there in zip(wanted.classes, present, strict=True) if not there]
    if absent:
        log.warn(
            "class_absent",
            f"no sample of split {roster.split} has {', '.join(absent)}: no figures for it there",
            split=roster.split,
            classes=absent,
        )
    return known


def tell(config: ClassifyJob, found: Samples) -> None:
    """Says what is trained on."""
    from medray.train import targets

    counts = targets.counts(found.targets.of(found.train_facts), found.targets.classes)
    kind = "many" if found.targets.multi_label else "one"
    notes = [f"{found.unlabelled:,} without a label left out"] if found.unlabelled else []
    if config.fraction < 1:
        notes.append(f"a fraction of {config.fraction:g} of the patients' labels")
    if found.mixture.synthetic:
        added = targets.shown({n or "no finding": c for n, c in found.mixture.synthetic.items()})
        notes.append(f"synthetic ones added: {added}")
    if found.first is not None:
        notes.append(f"first {config.pretrain_images:,} images of {len(found.first.truth_NK):,}")
    log.event(
        "samples",
        f"labels {kind}: {targets.shown(counts)}; {len(found.train_facts):,} to train on, "
        f"{len(found.validation_facts):,} to validate{''.join(f', {note}' for note in notes)}",
        labels=kind,
        counts=counts,
        train=len(found.train_facts),
        validation=len(found.validation_facts),
        unlabelled=found.unlabelled,
        synthetic=found.mixture.synthetic,
    )


def seen(config: ClassifyJob, found: Samples) -> Any:
    """What the run's weights saw (a Lineage); None where a part of it does not say.

    The test split is judged at the end and moves nothing: it is not among them.
    """
    from medray import lineage
    from medray.train import mixture

    own = [
        mixture.seen_in(found.train, found.train_facts, labels=True),
        mixture.seen_in(found.validation, found.validation_facts, labels=True),
        lineage.united([config.pretrain, config.synthetic, config.init_from]),
        lineage.united([config.encoder if encoders.trained(config) else None]),
    ]
    if any(part is None for part in own):
        return None
    return own[0] | own[1] | own[2] | own[3]  # type: ignore[operator]
