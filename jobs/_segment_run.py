"""The wiring of jobs/segment.py: run folder, samples, workers, loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs import _data
from jobs import _training as training
from jobs._segment_data import Samples, samples_of, sources_of, tell
from jobs.segment import SegmentJob
from medray import config as configuration
from medray import log
from medray.dist.context import Context
from medray.errors import UsageError
from medray.rundir import RunDir

if TYPE_CHECKING:
    from medray.stream import Stream
    from medray.train.segmenter import SegmenterTraining

VALIDATIONS = 10


def train(config: SegmentJob) -> None:
    """Trains from the start or the newest checkpoint to the end."""
    training.train(
        training.resolved(training.placed(config, _name(config)), _choose),
        worker,
        training.placement(config),
        name="segment",
        farewell=_farewell,
    )


def _name(config: SegmentJob) -> str:
    return f"segment-{_data.source_name(config.data, config.phantoms)}-w{config.width}"


def _farewell(summary: dict[str, Any]) -> str:
    dice = summary["validation"]["dice"]["estimate"]
    return (
        f"done: {summary['images']:,} images in {log.duration(summary['duration_s'])}, "
        f"Dice on validation {dice:.3f} (mean over patients)"
    )


def _choose(config: SegmentJob) -> SegmentJob:
    chosen = training.cadence(config, VALIDATIONS, workers=config.workers)
    return config.model_copy(update=chosen)


# --- on a worker ------------------------------------------------------------------------------


def worker(context: Context, task: dict[str, Any]) -> dict[str, Any]:
    """Trains on this rank; rank 0 also validates and writes checkpoints, pictures and the model."""
    return training.work(SegmentJob, _trained, context, task)


def _trained(config: SegmentJob, context: Context, run: RunDir) -> dict[str, Any]:
    from jobs._segment_report import leave
    from medray.train.segmenter_validation import Validation

    found = samples_of(config)
    if context.rank == 0:
        tell(found)
    algorithm = training_of(config, found, context)
    with stream_of(config, found, context) as batches:
        validation = Validation(algorithm, run, found.validation, found.validation_facts)
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


def training_of(config: SegmentJob, found: Samples, context: Context) -> SegmenterTraining:
    """The training on this rank, with other weights to begin with where they are given."""
    from medray.train.segmenter import SegmenterTraining

    algorithm = SegmenterTraining(config, found.train.channels, context)
    if config.init_from:
        take_weights(algorithm, config.init_from)
    return algorithm


def take_weights(algorithm: SegmenterTraining, url: str) -> None:
    """A warm start: the weights of another segmenter, which may have looked at another size."""
    from medray.models.segmenter import load_segmenter

    other, _ = load_segmenter(url)
    theirs, own = other.arguments(), algorithm.network.arguments()
    differing = [
        f"{name} {theirs[name]} -> {own[name]}"
        for name in ("channels", "width")
        if theirs[name] != own[name]
    ]
    if differing:
        raise UsageError(
            f"--init-from {url}: another network ({', '.join(differing)})",
            hint="give the flags that it was trained with",
        )
    weights = dict(other.named_parameters())
    for network in (algorithm.network, algorithm.average):
        for name, parameter in network.named_parameters():
            parameter.data.copy_(weights[name])


def stream_of(config: SegmentJob, found: Samples, context: Context) -> Stream:
    """The training batches of this rank."""
    from medray.stream import Stream

    return Stream(
        sources_of(config),
        split=config.split,
        seed=config.seed,
        rank=context.rank,
        world=context.world,
        on_error=config.on_error,
        cache_dir=config.cache_dir,
        threads=config.loader_threads,
        kept=found.train.kept(found.train_facts),
    )


# --- before a run -----------------------------------------------------------------------------


def describe(config: SegmentJob) -> None:
    """Says what the run would train on and take; writes nothing but phantoms into the cache."""
    config = training.resolved(config, _choose)
    found = samples_of(config)
    tell(found)
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
