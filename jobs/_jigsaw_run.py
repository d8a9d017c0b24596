"""The wiring of jobs/jigsaw.py: run folder, frames, workers, loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs import _data
from jobs import _training as training
from jobs._jigsaw_data import Samples, samples_of, tell, views_of
from jobs.jigsaw import JigsawJob
from medray import config as configuration
from medray import log
from medray.dist.context import Context
from medray.errors import UsageError
from medray.rundir import RunDir

if TYPE_CHECKING:
    from medray.stream.views import Cut
    from medray.train.jigsaw import JigsawTraining
    from medray.train.jigsaw_batches import PuzzleBatches
    from medray.train.jigsaw_validation import Puzzles

VALIDATIONS = 20
# How a run is carried out: a resumed run may change these.
CHANGEABLE = training.CHANGEABLE | {"engine", "zero_stage", "memory_gib"}
KEPT = (*training.KEPT, "precision")


def train(config: JigsawJob) -> None:
    """Trains from the start or the newest checkpoint to the end."""
    training.train(
        training.resolved(training.placed(config, _name(config)), _choose, kept=KEPT),
        worker,
        training.placement(config),
        name="jigsaw",
        farewell=_farewell,
        changeable=CHANGEABLE,
    )


def _name(config: JigsawJob) -> str:
    return f"jigsaw-{_data.source_name(config.data, config.phantoms)}-{config.form}"


def _farewell(summary: dict[str, Any]) -> str:
    found = summary["validation"]["accuracy"]["estimate"]
    return (
        f"done: {summary['images']:,} frames in {log.duration(summary['duration_s'])}, "
        f"{found:.3f} of held-out puzzles solved (chance {summary['chance']:.4f})"
    )


def _choose(config: JigsawJob) -> JigsawJob:
    chosen = training.cadence(config, VALIDATIONS, workers=config.workers)
    if config.precision == "auto":
        chosen["precision"] = "bf16" if config.gpus_per_worker or _has_amx() else "fp32"
        log.event("precision", f"precision auto: {chosen['precision']}")
    return config.model_copy(update=chosen)


def _has_amx() -> bool:
    import torch

    return bool(torch.cpu._is_amx_tile_supported())


# --- on a worker ------------------------------------------------------------------------------


def worker(context: Context, task: dict[str, Any]) -> dict[str, Any]:
    """Trains on this rank; rank 0 also validates and writes checkpoints, pictures and the model."""
    return training.work(JigsawJob, _trained, context, task)


def _trained(config: JigsawJob, context: Context, run: RunDir) -> dict[str, Any]:
    from jobs._jigsaw_report import leave
    from medray.stream.frames import joined
    from medray.train.jigsaw_validation import Probe, Validation

    found = samples_of(config)
    cut = cut_of(config, found)
    if context.rank == 0:
        tell(found, cut)
    algorithm = training_of(config, found, context)
    puzzles = puzzles_of(config, cut, found)
    probe = Probe(joined([found.train, found.validation]), config.probe_frames)
    with batches_of(config, cut, found, algorithm, context) as batches:
        validation = Validation(algorithm, run, puzzles, probe)
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
            summary |= leave(config, run, algorithm, found, validation, summary)
        context.barrier()
    return summary


def cut_of(config: JigsawJob, found: Samples) -> Cut:
    """How the frames are cut."""
    from medray.stream.views import cut_of as cut

    return cut(found.train.frames_FCHW.shape[-1], gap=config.gap)


def permutations_of(config: JigsawJob) -> tuple[str, ...]:
    """The permutations to tell apart."""
    from medray.train import permutations

    return permutations.choose(config.permutations, config.seed)


def puzzles_of(config: JigsawJob, cut: Cut, found: Samples) -> Puzzles:
    """The puzzles of held-out patients."""
    from medray.train import jigsaw_validation as validation

    plain, changed = (views_of(config, cut, augment=augment) for augment in (False, True))
    return validation.puzzles_of(
        found.validation, permutations_of(config), plain, changed, config.validation_views
    )


def training_of(config: JigsawJob, found: Samples, context: Context) -> JigsawTraining:
    """The training on this rank, with another encoder to begin with where one is given."""
    from medray.train.jigsaw import JigsawTraining

    algorithm = JigsawTraining(config, permutations_of(config), found.channels, context)
    if config.init_from:
        take_weights(algorithm, config.init_from)
    return algorithm


def take_weights(algorithm: JigsawTraining, url: str) -> None:
    """A warm start: another encoder's weights."""
    from medray.models.encoder import load_encoder

    other = load_encoder(url)
    for network in (algorithm.network, algorithm.average):
        own = network.encoder
        assert own is not None, "the published form takes no encoder"
        if other.config != own.config:
            raise UsageError(
                f"--init-from {url}: another encoder ({other.config} -> {own.config})",
                hint="give the flags that it was trained with",
            )
        own.load_state_dict(other.state_dict())


def batches_of(
    config: JigsawJob, cut: Cut, found: Samples, algorithm: JigsawTraining, context: Context
) -> PuzzleBatches:
    """The training batches of this rank."""
    from medray.train.jigsaw_batches import PuzzleBatches

    return PuzzleBatches(
        found.train,
        views_of(config, cut, augment=config.augment),
        algorithm.permutations,
        seed=config.seed,
        rank=context.rank,
        world=context.world,
        threads=config.loader_threads,
    )


# --- before a run -----------------------------------------------------------------------------


def describe(config: JigsawJob) -> None:
    """Says what the run would train on and take; writes nothing but phantoms into the cache."""
    config = training.resolved(config, _choose, kept=KEPT)
    found = samples_of(config)
    cut = cut_of(config, found)
    tell(found, cut)
    with training.here(config) as context:
        algorithm = training_of(config, found, context)
        with batches_of(config, cut, found, algorithm, context) as batches:
            step_s = training.step_s(algorithm, batches, config.batch)
    parameters = sum(p.numel() for p in algorithm.network.parameters())
    seconds = step_s * config.total_images / config.batch / config.workers
    log.event(
        "plan",
        f"{configuration.to_yaml(config)}\n{parameters:,} parameters; "
        f"{config.batch / step_s:,.0f} frames/s on one worker here (measured), "
        f"{log.duration(seconds)} for {config.total_images:,} frames at most",
        parameters=parameters,
        step_s=round(step_s, 4),
        estimated_s=round(seconds, 1),
    )
