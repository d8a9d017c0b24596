"""What jobs/pggan.py trains on: sets, classes, whose images and labels, batches, what was seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs import _data, _patients
from jobs.pggan import PgganJob
from medray import log
from medray.errors import DataError, UsageError

if TYPE_CHECKING:
    from medray.lineage import Lineage
    from medray.records import Array
    from medray.stream import Fact, Roster
    from medray.stream.loader import Stream
    from medray.stream.roster import Kept


def classified(config: PgganJob) -> PgganJob:
    """`config` with the set's classes and how many images each has; DataError below two classes.

    A dry run makes no phantoms: it takes it that there is one of each class.
    """
    if not config.conditional or config.class_counts:
        return config
    counts = _phantom_classes(config) if config.dry_run else {}
    counts = counts or count_labels_of(config)
    if config.classes and config.classes != tuple(counts):
        raise UsageError(
            f"--classes {' '.join(config.classes)}: the set has {' '.join(counts)}",
            hint="leave --classes out: they are read from the set",
        )
    update = {"classes": tuple(counts), "class_counts": tuple(counts.values())}
    config = config.model_copy(update=update)
    from medray.train import conditioning

    conditioning.check(config, ", ".join(config.data))
    return config


def tell_absent(config: PgganJob) -> None:
    """Warns of classes that the set declares and the split has no image of."""
    absent = [name for name in config.classes if name not in config.class_names]
    if absent:
        log.warn(
            "classes_absent",
            f"split {config.split} has no image of {', '.join(absent)}: not learnt",
            classes=absent,
        )


def _phantom_classes(config: PgganJob) -> dict[str, int]:
    from medray import phantoms

    return {} if config.data else dict.fromkeys(phantoms.CLASSES[config.phantoms], 1)


def count_labels_of(config: PgganJob) -> dict[str, int]:
    """Images by class in the split to train on, in the order of the stream's numbers.

    Only those whose labels are used.
    """
    from medray.stream.labels import count_labels
    from medray.stream.sets import Source

    sources = sources_of(config)
    chosen = chosen_of(config, sources)
    if chosen is None:
        return count_labels([Source(url) for url in sources], config.split, config.cache_dir)
    counts = dict.fromkeys(chosen.roster.classes, 0)
    for fact in chosen.labelled:
        if fact.label in counts:
            counts[fact.label] += 1
    return counts


# --- whose images and labels --------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """The samples that are trained on: those whose labels are used, and the rest without them."""

    roster: Roster
    labelled: list[Fact]
    unlabelled: list[Fact]

    @property
    def kept(self) -> Kept:
        """Where all of them lie, as `Stream` takes it."""
        return self.roster.kept([*self.labelled, *self.unlabelled])


def chosen_of(config: PgganJob, sources: tuple[str, ...]) -> Chosen | None:
    """What --exclude-patients and --fraction leave; None where every sample is trained on."""
    if config.exclude_patients is None and config.fraction == 1:
        return None
    return _choose(config, sources)


def _choose(config: PgganJob, sources: tuple[str, ...]) -> Chosen:
    from medray.stream import Roster, Source

    roster = Roster([Source(url) for url in sources], config.split, config.cache_dir)
    facts = _patients.without(config.exclude_patients, roster, list(roster.facts))
    labelled = _patients.in_fraction(facts, config.fraction, config.fraction_seed)
    within = {fact.place for fact in labelled}
    rest = [fact for fact in facts if fact.place not in within] if config.unlabelled_rest else []
    for name, some in roster.by_source([*labelled, *rest]):
        if not some:
            raise DataError(
                f"split {config.split!r} has no sample of the patients to train on",
                code="MR-D072",
                where=name,
                hint="exclude fewer, or leave the set out of --data",
            )
    return Chosen(roster, labelled, rest)


def seen(config: PgganJob) -> Lineage | None:
    """What the run's weights saw; None where that cannot be told."""
    from medray import lineage
    from medray.train import mixture

    try:
        chosen = _choose(config, sources_of(config))
        parts = [
            mixture.seen_in(chosen.roster, chosen.labelled, labels=config.conditional),
            mixture.seen_in(chosen.roster, chosen.unlabelled, labels=False),
            lineage.united([config.init_from]),
        ]
    except DataError as error:
        # A damaged record, which --on-error skip trained without: no reason to lose the model.
        log.warn("unread", f"what the model saw cannot be read: {error}")
        return None
    found = lineage.Lineage()
    for part in parts:
        if part is None:
            return None
        found |= part
    return found


# --- batches ------------------------------------------------------------------------------------


def sources_of(config: PgganJob) -> tuple[str, ...]:
    """The sets to train on; phantoms are made once, in the cache."""
    return _data.sources_of(
        config.data,
        phantoms=config.phantoms,
        count=config.phantom_images,
        size_px=config.final_px,
        seed=config.seed,
        cache_dir=config.cache_dir,
    )


def stream_of(config: PgganJob, sources: tuple[str, ...], rank: int, world: int) -> Stream:
    """The batches of this rank."""
    from medray.stream.loader import Stream
    from medray.stream.sets import Source

    chosen = chosen_of(config, sources)
    stream = Stream(
        [Source(url) for url in sources],
        split=config.split,
        seed=config.seed,
        rank=rank,
        world=world,
        on_error=config.on_error,
        cache_dir=config.cache_dir,
        threads=config.loader_threads,
        kept=None if chosen is None else chosen.kept,
        unlabelled=None if chosen is None else chosen.roster.kept(chosen.unlabelled),
    )
    if stream.channels != config.channels:
        raise UsageError(
            f"--channels: the set has {stream.channels}, got {config.channels}",
            hint=f"give --channels {stream.channels}",
        )
    if stream.size_px < config.final_px or stream.size_px % config.final_px:
        raise UsageError(
            f"--final-px: images of {stream.size_px} px cannot train {config.final_px} px",
            hint=f"pack the set with --size-px {config.final_px}",
        )
    if config.conditional and stream.classes != config.classes:
        raise DataError(
            f"the set's classes are {list(stream.classes)}, the run's {list(config.classes)}",
            code="MR-D075",
            hint="give the set that the run was started with",
        )
    return stream


def reals(config: PgganJob, sources: tuple[str, ...], count: int) -> tuple[Array, Array]:
    """`count` real images as uint8 at the final resolution, to look at and to score against.

    And their labels, as the stream numbers them.
    """
    import torch

    from medray.models.pixels import to_unit
    from medray.train.pggan import reduced

    with stream_of(config, sources, 0, 1) as stream:
        batch = stream.next(min(count, stream.samples_per_epoch))
    unit_NCHW = reduced(to_unit(torch.from_numpy(batch.images_NCHW)), config.final_px)
    eight: Array = ((unit_NCHW + 1) * 127.5).round().to(torch.uint8).numpy()
    return eight, batch.labels_N
