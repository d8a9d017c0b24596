"""The wiring of jobs/segment.py: run folder, samples, workers, loop."""

from __future__ import annotations

import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

from jobs import _data
from jobs._segment_data import Samples, samples_of, sources_of, tell
from jobs.segment import SegmentJob
from medray import config as configuration
from medray import log
from medray.dist.context import Context, launch, threads_for
from medray.errors import UsageError
from medray.rundir import RunDir, numbered, stored_config
from medray.store import Store

if TYPE_CHECKING:
    from medray.stream import Stream
    from medray.train.segmenter import SegmenterTraining

# How a run is carried out: a resumed run may change these.
CHANGEABLE = frozenset(
    "workers backend gpus_per_worker cpus_per_worker loader_threads cache_dir max_failures "
    "keep_last keep_best on_error threads_per_worker log_images checkpoint_images".split()
)
# What a resumed run takes from its folder where no flag says it.
KEPT = ("threads_per_worker", "init_from", "log_images", "snapshot_images", "checkpoint_images")
ROWS, VALIDATIONS = 100, 10
# Steps that --dry-run times, after one that warms up.
TIMED_STEPS = 3


def train(config: SegmentJob) -> None:
    """Trains from the start or the newest checkpoint to the end."""
    url = config.run_dir or numbered(_data.runs_dir(), _name(config))
    config = resolved(config.model_copy(update={"run_dir": url}))
    run = RunDir.start(
        url,
        config_yaml=configuration.to_yaml(config),
        config_hash=configuration.digest(config, leave_out=CHANGEABLE),
        command=shlex.join(["medray", "segment", *sys.argv[1:]]),
        resume=config.resume,
        overwrite=config.overwrite,
        changeable=CHANGEABLE | configuration.OPERATIONAL,
    )
    with run:
        if run.complete:
            log.event("complete", f"{url} is complete: nothing to do\n{_places(run.store)}")
            return
        summary = launch(
            worker,
            _task(config, run),
            backend=config.backend,
            workers=config.workers,
            gpus_per_worker=config.gpus_per_worker,
            cpus_per_worker=config.cpus_per_worker,
            threads_per_rank=config.threads_per_worker,
            name="segment",
            max_failures=config.max_failures,
        )
        run.finish(summary)
    log.event("done", _farewell(Store(url), summary), run_dir=url, **summary)


def _name(config: SegmentJob) -> str:
    return f"segment-{_data.source_name(config.data, config.phantoms)}-w{config.width}"


def _task(config: SegmentJob, run: RunDir) -> dict[str, Any]:
    # A resumed warm start begins at its weights again where no checkpoint came before the end.
    begin = config.model_copy(update={"resume": False})
    return {"config": begin.model_dump(mode="json"), "epoch": run.lease.epoch}


def _farewell(store: Store, summary: dict[str, Any]) -> str:
    dice = summary["validation"]["dice"]["estimate"]
    return (
        f"done: {summary['images']:,} images in {log.duration(summary['duration_s'])}, "
        f"Dice on validation {dice:.3f} (mean over patients)\n{_places(store)}"
    )


def _places(store: Store) -> str:
    return f"  model     {store.url}/model\n  report    {store.url}/report.html"


def resolved(config: SegmentJob) -> SegmentJob:
    """What was left open, decided once: taken from the run folder where one is resumed."""
    store = Store(str(config.run_dir))
    before = stored_config(store) if config.resume else None
    if before is not None:
        kept: dict[str, Any] = {
            name: before[name] for name in KEPT if name in before and getattr(config, name) is None
        }
        fresh = config.model_copy(update={"resume": False})
        checked = configuration.taken(fresh, kept, f"{store.url}/config.yaml")
        config = checked.model_copy(update={"resume": True})
    return _choose(config)


def _choose(config: SegmentJob) -> SegmentJob:
    shown = config.snapshot_images or max(config.batch, config.total_images // VALIDATIONS)
    update: dict[str, Any] = {
        "threads_per_worker": config.threads_per_worker or threads_for(config.workers),
        "log_images": config.log_images or max(config.batch, config.total_images // ROWS),
        "snapshot_images": shown,
        "checkpoint_images": config.checkpoint_images or shown,
    }
    return config.model_copy(update=update)


# --- on a worker ------------------------------------------------------------------------------


def worker(context: Context, task: dict[str, Any]) -> dict[str, Any]:
    """Trains on this rank; rank 0 also validates and writes checkpoints, pictures and the model."""
    config = SegmentJob.model_validate(task["config"])
    with RunDir.attach(str(config.run_dir), task["epoch"], writer=context.rank == 0) as run:
        return _trained(config, context, run)


def _trained(config: SegmentJob, context: Context, run: RunDir) -> dict[str, Any]:
    from jobs._segment_report import leave
    from medray.train.loop import Cadence, Fit
    from medray.train.segmenter_validation import Validation

    found = samples_of(config)
    if context.rank == 0:
        tell(found)
    algorithm = training_of(config, found, context)
    cadence = Cadence(
        config.total_images,
        config.log_images or config.batch,
        config.snapshot_images or config.batch,
        config.checkpoint_images or config.batch,
        config.keep_last,
        config.keep_best,
    )
    with stream_of(config, found, context) as batches:
        validation = Validation(algorithm, run, found.validation, found.validation_facts)
        fit = Fit(
            algorithm,
            batches,
            context,
            run,
            cadence,
            batch_at=lambda images: config.batch,
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
    from medray.dist.context import local

    config = resolved(config) if config.run_dir else _choose(config)
    found = samples_of(config)
    tell(found)
    context = local(threads_per_rank=config.threads_per_worker)
    try:
        algorithm = training_of(config, found, context)
        with stream_of(config, found, context) as batches:
            step_s = _step_s(algorithm, batches, config.batch)
    finally:
        context.close()
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


def _step_s(algorithm: SegmenterTraining, batches: Stream, batch: int) -> float:
    """Seconds of a step here; the first pays for choosing kernels."""
    start_s = 0.0
    for step in range(TIMED_STEPS + 1):
        if step == 1:
            start_s = time.monotonic()
        algorithm.step(batches.next(batch), step * batch)
    return (time.monotonic() - start_s) / TIMED_STEPS
