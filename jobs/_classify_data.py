"""What jobs/classify.py trains and validates on: records read, the task they make, its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs import _data
from jobs.classify import ClassifyJob
from medray import log
from medray.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from medray.stream import Fact, Roster
    from medray.train.targets import Targets


@dataclass(frozen=True)
class Samples:
    """What a run trains and validates on, the task that makes, and the weights of its classes."""

    train: Roster
    train_facts: list[Fact]
    validation: Roster
    validation_facts: list[Fact]
    targets: Targets
    weights_2K: npt.NDArray[np.float64]
    bias_K: npt.NDArray[np.float64]


def samples_of(config: ClassifyJob) -> Samples:
    """Reads the records of both splits; DataError where they make no task."""
    from medray.stream import Roster
    from medray.train import targets

    sources = sources_of(config)
    train = Roster(sources, config.split, config.cache_dir)
    validation = Roster(sources, config.validation_split, config.cache_dir)
    facts = _of_half(config, train)
    wanted = targets.choose(
        facts, train.classes, labels=config.labels, only=config.classes, where=train.name
    )
    train_facts = [fact for fact in facts if wanted.known(fact)]
    truth_NK = wanted.of(train_facts)
    weights_2K = targets.weights(truth_NK, wanted.multi_label, config.max_weight)
    return Samples(
        train,
        train_facts,
        validation,
        labelled(_of_half(config, validation), wanted, validation),
        wanted,
        weights_2K,
        targets.bias_of(weights_2K, wanted.multi_label),
    )


def sources_of(config: ClassifyJob) -> list[Any]:
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


def _of_half(config: ClassifyJob, roster: Roster) -> list[Fact]:
    from medray.train import targets

    facts = roster.where(lambda fact: targets.in_half(fact, config.patients))
    if not facts:
        raise DataError(
            f"no sample of split {roster.split!r} belongs to patients {config.patients}",
            code="MR-D072",
            where=roster.name,
            hint="give --patients all, or a set with more patients",
        )
    return facts


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
    from medray.train import targets

    counts = targets.counts(found.targets.of(found.train_facts), found.targets.classes)
    kind = "many" if found.targets.multi_label else "one"
    dropped = len(_of_half(config, found.train)) - len(found.train_facts)
    note = f", {dropped:,} without a label left out" if dropped else ""
    log.event(
        "samples",
        f"labels {kind}: {targets.shown(counts)}; {len(found.train_facts):,} to train on, "
        f"{len(found.validation_facts):,} to validate{note}",
        labels=kind,
        counts=counts,
        train=len(found.train_facts),
        validation=len(found.validation_facts),
        unlabelled=dropped,
    )
