"""The wiring of jobs/classify.py --clips: clips, encoder, workers, loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs import _data, _patients
from jobs import _encoders as encoders
from jobs import _training as training
from jobs._classify_data import labelled
from jobs._classify_run import VALIDATIONS
from jobs.classify import ClassifyJob
from medray import config as configuration
from medray import log
from medray.dist.context import Context
from medray.errors import DataError, UsageError
from medray.rundir import RunDir

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from medray.models.encoder import Encoder
    from medray.stream import Fact
    from medray.train.clips import ClipTraining
    from medray.train.clips_data import ClipRoster
    from medray.train.targets import Targets

KNEES = "knee"


@dataclass(frozen=True)
class ClipSamples:
    """What a run trains and validates on, the task that makes, its weights, the encoder."""

    train: ClipRoster
    train_facts: list[Fact]
    validation: ClipRoster
    validation_facts: list[Fact]
    targets: Targets
    weights_2K: npt.NDArray[np.float64]
    bias_K: npt.NDArray[np.float64]
    trunk: Encoder


def train(config: ClassifyJob) -> None:
    """Trains from the start or the newest checkpoint to the end."""
    name = f"classify-clips-{_data.source_name(config.data, KNEES)}-{config.pool}"
    training.train(
        training.resolved(training.placed(config, name), _choose),
        worker,
        training.placement(config),
        name="classify",
        farewell=_farewell,
    )


def _farewell(summary: dict[str, Any]) -> str:
    found = summary["validation"]["macro_auroc"]
    said = "undefined" if found is None else f"{found['estimate']:.3f}"
    return (
        f"done: {summary['images']:,} clips in {log.duration(summary['duration_s'])}, "
        f"macro AUC on validation {said}"
    )


def _choose(config: ClassifyJob) -> ClassifyJob:
    chosen = training.cadence(config, VALIDATIONS, workers=config.workers)
    return config.model_copy(update={**chosen, "architecture": "encoder"})


# --- what there is ------------------------------------------------------------------------------


def samples_of(config: ClassifyJob) -> ClipSamples:
    """Reads the records of both splits; DataError where they make no task, or the encoder leaks."""
    from medray.train import mixture, targets

    train = roster_of(config, config.split)
    usable = _patients.in_fraction(_usable(config, train), config.fraction, config.fraction_seed)
    facts, held = _patients.parted(usable, config.validation_patients, config.seed)
    wanted = task_of(config, train, facts)
    validation = train
    if config.validation_patients is None:
        validation = roster_of(config, config.validation_split)
        held = _usable(config, validation)
    train_facts = [fact for fact in facts if wanted.known(fact)]
    _refuse_leaks(config, train, usable, mixture.names_in(validation, held))
    weights_2K = targets.weights(wanted.of(train_facts), wanted.multi_label, config.max_weight)
    return ClipSamples(
        train,
        train_facts,
        validation,
        labelled(held, wanted, validation),
        wanted,
        weights_2K,
        targets.bias_of(weights_2K, wanted.multi_label),
        encoders.trunk_of(config, train.channels),
    )


def roster_of(config: ClassifyJob, split: str) -> ClipRoster:
    """The clips of a split."""
    from medray.stream.clips import ClipSet
    from medray.train.clips_data import ClipRoster

    if len(config.data) > 1:
        raise UsageError(
            f"--clips takes one set, got {len(config.data)}",
            hint="train a classifier for each plane or view, and put them together with "
            "medray ensemble",
        )
    (url,) = _data.sources_of(
        config.data,
        phantoms=KNEES,
        count=config.phantom_images,
        size_px=config.size_px,
        seed=config.seed,
        cache_dir=config.cache_dir,
    )
    return ClipRoster(ClipSet.open(url, config.cache_dir), split, config.frames)


def task_of(config: ClassifyJob, train: ClipRoster, facts: list[Fact]) -> Targets:
    """Findings where there are any, else one class a clip; warns of what no clip says."""
    from medray.train import targets

    findings = {name for f in facts for name, value in f.labels.items() if value is not None}
    kind = config.labels if config.labels != "auto" else "many" if findings else "one"
    if silent := [n for n in train.classes if n not in findings and kind == "many"]:
        log.warn(
            "finding_unknown",
            f"no clip to train on says whether {', '.join(silent)}: left out",
            findings=silent,
        )
    only = config.classes
    return targets.choose(facts, train.classes, labels=kind, only=only, where=train.name)


def _usable(config: ClassifyJob, roster: ClipRoster) -> list[Fact]:
    from medray.train import targets

    facts = roster.where(lambda fact: targets.in_half(fact, config.patients))
    facts = _patients.without(config.exclude_patients, roster, facts)
    if not facts:
        raise DataError(
            f"no clip of split {roster.split!r} belongs to patients {config.patients}",
            code="MR-D072",
            where=roster.name,
            hint="give --patients all, or a set with more patients",
        )
    return facts


def _refuse_leaks(
    config: ClassifyJob, train: ClipRoster, usable: list[Fact], validating: set[str]
) -> None:
    """DataError for an encoder that saw a held-out patient or a label outside the fraction."""
    from medray.train import fraction, mixture

    if config.encoder is None or not encoders.trained(config):
        return
    held = set(validating)
    for split in set(train.clips.splits) - {config.split}:
        other = roster_of(config, split)
        held |= mixture.names_in(other, other.facts)
    if config.exclude_patients is not None:
        held |= fraction.read_patients(config.exclude_patients)
    labels = None if config.fraction == 1 else mixture.samples_in(train, usable)
    encoders.refuse(config.encoder, held, mixture.samples_in(train, train.facts), labels)


def seen(config: ClassifyJob, found: ClipSamples) -> Any:
    """What the run's weights saw (a Lineage); None where the encoder does not say."""
    from medray import lineage
    from medray.train import mixture

    trunk = lineage.united([config.encoder if encoders.trained(config) else None])
    own = mixture.seen_in(found.train, found.train_facts, labels=True)
    held = mixture.seen_in(found.validation, found.validation_facts, labels=True)
    return None if trunk is None or own is None or held is None else own | held | trunk


# --- on a worker --------------------------------------------------------------------------------


def worker(context: Context, task: dict[str, Any]) -> dict[str, Any]:
    """Trains on this rank; rank 0 also validates and writes checkpoints, pictures and the model."""
    return training.work(ClassifyJob, _trained, context, task)


def _trained(config: ClassifyJob, context: Context, run: RunDir) -> dict[str, Any]:
    from jobs._classify_clips_report import leave
    from medray.train.clips_data import ClipBatches
    from medray.train.validation import Validation

    found = samples_of(config)
    algorithm = training_of(config, found, context)
    if context.rank == 0:
        tell(config, found)
    batches = ClipBatches(found.train, found.train_facts, config.seed, context.rank, context.world)
    validation = Validation(algorithm, run, found.validation, found.validation_facts, found.bias_K)
    fit = training.fit(
        config, algorithm, batches, context, run, snapshot=validation, enough=validation.enough
    )
    summary = {**fit.run(), "ended_early": fit.ended_early}
    if context.rank == 0:
        summary |= leave(config, run, algorithm, found, summary)
    context.barrier()
    return summary


def training_of(config: ClassifyJob, found: ClipSamples, context: Context) -> ClipTraining:
    """The training on this rank; with --freeze maps are made of every clip now, once."""
    from medray.train.clips import ClipTraining, encoder_of, standard_of

    encode = encoder_of(found.trunk, config, context)
    if config.freeze:
        found.train.encode_with(encode)
        found.validation.encode_with(encode)
    standard = standard_of(found.train, found.train_facts, encode)
    return ClipTraining(
        config, found.targets, found.trunk, found.weights_2K, context, standard.to(context.device)
    )


def tell(config: ClassifyJob, found: ClipSamples) -> None:
    """Says what is trained on."""
    from medray.train import targets

    counts = targets.counts(found.targets.of(found.train_facts), found.targets.classes)
    how = "frozen" if config.freeze else "fine-tuned"
    log.event(
        "samples",
        f"{targets.shown(counts)}; {len(found.train_facts):,} clips to train on, "
        f"{len(found.validation_facts):,} to validate, {config.frames} frames each; "
        f"encoder {config.encoder}, {how}",
        counts=counts,
        train=len(found.train_facts),
        validation=len(found.validation_facts),
    )


# --- before a run -------------------------------------------------------------------------------


def describe(config: ClassifyJob) -> None:
    """Says what the run would train on and take; writes nothing."""
    from medray.train.clips_data import ClipBatches

    config = training.resolved(config, _choose)
    found = samples_of(config)
    tell(config, found)
    with training.here(config) as context:
        algorithm = training_of(config, found, context)
        batches = ClipBatches(found.train, found.train_facts, config.seed)
        step_s = training.step_s(algorithm, batches, config.batch)
    seconds = step_s * config.total_images / config.batch / config.workers
    log.event(
        "plan",
        f"{configuration.to_yaml(config)}\n{config.batch / step_s:,.0f} clips/s on one worker here "
        f"(measured), {log.duration(seconds)} for {config.total_images:,} clips at most",
        step_s=round(step_s, 4),
        estimated_s=round(seconds, 1),
    )
