"""The wiring of jobs/classify.py: run folder, samples, workers, loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs import _data
from jobs import _encoders as encoders
from jobs import _training as training
from jobs._classify_data import Samples, samples_of, tell
from jobs.classify import ClassifyJob
from medray import config as configuration
from medray import log
from medray.dist.context import Context
from medray.errors import UsageError
from medray.rundir import RunDir

if TYPE_CHECKING:
    from medray.stream import Stream
    from medray.train.classifier import ClassifierTraining
    from medray.train.mixture import Staged

VALIDATIONS = 20


def train(config: ClassifyJob) -> None:
    """Trains from the start or the newest checkpoint to the end."""
    training.train(
        training.resolved(training.placed(config, _name(config)), _choose),
        worker,
        training.placement(config),
        name="classify",
        farewell=_farewell,
    )


def _name(config: ClassifyJob) -> str:
    return f"classify-{_data.source_name(config.data, config.phantoms)}-{config.architecture}"


def _farewell(summary: dict[str, Any]) -> str:
    found = summary["validation"]["balanced_accuracy"]
    said = "undefined" if found is None else f"{found['estimate']:.3f}"
    return (
        f"done: {summary['images']:,} images in {log.duration(summary['duration_s'])}, "
        f"balanced accuracy on validation {said}"
    )


def _choose(config: ClassifyJob) -> ClassifyJob:
    chosen = training.cadence(config, VALIDATIONS, workers=config.workers)
    if config.encoder is not None:
        chosen["architecture"] = "encoder"
    return config.model_copy(update=chosen)


# --- on a worker ------------------------------------------------------------------------------


def worker(context: Context, task: dict[str, Any]) -> dict[str, Any]:
    """Trains on this rank; rank 0 also validates and writes checkpoints, pictures and the model."""
    return training.work(ClassifyJob, _trained, context, task)


def _trained(config: ClassifyJob, context: Context, run: RunDir) -> dict[str, Any]:
    from jobs._classify_report import leave
    from medray.train.validation import Validation

    found = samples_of(config)
    if context.rank == 0:
        tell(config, found)
    algorithm = training_of(config, found, context)
    with stream_of(config, found, context) as batches:
        validation = Validation(
            algorithm, run, found.validation, found.validation_facts, found.bias_K
        )
        fit = training.fit(
            config,
            algorithm,
            batches,
            context,
            run,
            snapshot=validation,
            enough=validation.enough,
        )
        summary = {**fit.run(), "ended_early": fit.ended_early}
        if context.rank == 0:
            summary |= leave(config, run, algorithm, found, summary)
        context.barrier()
    return summary


def training_of(config: ClassifyJob, found: Samples, context: Context) -> ClassifierTraining:
    """The training on this rank, with other weights to begin with where they are given."""
    from medray.train.classifier import ClassifierTraining

    algorithm = ClassifierTraining(
        config,
        found.targets,
        found.train.channels,
        found.weights_2K,
        context,
        pretrain_weights_2K=found.first_weights_2K,
        trunk=encoders.trunk_of(config, found.train.channels) if config.encoder else None,
    )
    if config.init_from:
        take_weights(algorithm, config.init_from)
    return algorithm


def take_weights(algorithm: ClassifierTraining, url: str) -> None:
    """A warm start: the weights of another classifier, its last layer where the classes agree."""
    from medray.models.weights import load_classifier

    other, _ = load_classifier(url)
    own = algorithm.network
    theirs = {n: v for n, v in other.arguments().items() if n not in ("classes", "multi_label")}
    wanted = {n: v for n, v in own.arguments().items() if n in theirs}
    if differing := [f"{n} {theirs[n]} -> {wanted[n]}" for n in theirs if theirs[n] != wanted[n]]:
        raise UsageError(
            f"--init-from {url}: another network ({', '.join(differing)})",
            hint="give the flags that it was trained with",
        )
    weights = dict(other.named_parameters())
    same = (other.classes, other.multi_label) == (own.classes, own.multi_label)
    for network in (algorithm.network, algorithm.average):
        for name, parameter in network.named_parameters():
            if same or not name.startswith("head."):
                parameter.data.copy_(weights[name])


def stream_of(config: ClassifyJob, found: Samples, context: Context) -> Stream | Staged:
    """The training batches of this rank; with --pretrain those of the archive come first."""
    named: dict[str, Any] = {
        "seed": config.seed,
        "rank": context.rank,
        "world": context.world,
        "on_error": config.on_error,
        "cache_dir": config.cache_dir,
        "threads": config.loader_threads,
    }
    batches = found.mixture.stream(split=config.split, **named)
    if found.first is None:
        return batches
    from medray.train.mixture import Staged

    return Staged(found.first.stream(split="train", **named), config.pretrain_images, batches)


# --- before a run -----------------------------------------------------------------------------


def describe(config: ClassifyJob) -> None:
    """Says what the run would train on and take; writes nothing but phantoms into the cache."""
    config = training.resolved(config, _choose)
    found = samples_of(config)
    tell(config, found)
    with training.here(config) as context:
        algorithm = training_of(config, found, context)
        with stream_of(config, found, context) as batches:
            step_s = training.step_s(algorithm, batches, config.batch)
    parameters = sum(p.numel() for p in algorithm.network.parameters())
    seconds = step_s * config.total_images / config.batch / config.workers
    log.event(
        "plan",
        f"{configuration.to_yaml(config)}\n{parameters:,} parameters; "
        f"{config.batch / step_s:,.0f} images/s on one worker here (measured), "
        f"{log.duration(seconds)} for {config.total_images:,} images at most",
        parameters=parameters,
        step_s=round(step_s, 4),
        estimated_s=round(seconds, 1),
    )
