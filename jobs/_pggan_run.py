"""The wiring of jobs/pggan.py: run folder, data, workers, loop, what a finished run leaves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from jobs import _data
from jobs import _training as training
from jobs._pggan_data import classified, reals, seen, sources_of, stream_of, tell_absent
from jobs.pggan import PgganJob
from medray import config as configuration
from medray import log
from medray.dist.context import Context
from medray.errors import UsageError
from medray.rundir import RunDir
from medray.store import Store

if TYPE_CHECKING:
    from torch import Tensor

    from medray.train.pggan import Pggan

# How a run is carried out: a resumed run may change these.
CHANGEABLE = training.CHANGEABLE | frozenset(
    "engine zero_stage snapshot_images min_workers resize_every_s images_at_once".split()
)
# What a resumed run takes from its folder where no flag says it.
KEPT = ("precision", "threads_per_worker", "init_from")
# Of a run whose cadence nobody named.
PICTURES = 10


def train(config: PgganJob) -> None:
    """Trains from the start or the newest checkpoint to the end."""
    config = classified(config)
    config = resolved(training.placed(config, _name(config)))
    training.train(
        config,
        worker,
        {
            **training.placement(config),
            "worlds": config.worlds,
            "resize_every_s": config.resize_every_s,
        },
        name="pggan",
        farewell=_farewell,
        places=_places,
        changeable=CHANGEABLE,
        begin=lambda: tell_absent(config),
    )


def _farewell(summary: dict[str, Any]) -> str:
    took = log.duration(summary["duration_s"])
    return f"done: {summary['images']:,} images in {took}"


def _places(store: Store) -> str:
    last = max(name for name in store.names("fakes-"))
    return (
        f"  pictures  {store.url}/{last}\n  beside    {store.url}/reals.png\n"
        f"  curves    {store.url}/progress.png\n  report    {store.url}/report.html"
    )


def _name(config: PgganJob) -> str:
    source = _data.source_name(config.data, config.phantoms)
    return f"pggan-{source}{config.final_px}-workers{config.workers}"


def resolved(config: PgganJob) -> PgganJob:
    """What `auto` stands for, decided once: taken from the run folder where one is resumed."""
    return training.resolved(config, _choose, kept=KEPT)


def describe(config: PgganJob) -> None:
    """Says what the run would take; starts and writes nothing."""
    from jobs import _pggan_estimate

    config = resolved(config)
    tell_absent(config)
    _pggan_estimate.describe(config)


def _choose(config: PgganJob) -> PgganJob:
    growth = config._growth()
    update: dict[str, Any] = {
        "fade_images": growth["fade_images"],
        "stable_images": growth["stable_images"],
        **training.cadence(config, PICTURES, workers=config.workers),
    }
    return classified(config.model_copy(update=update))


# --- on a worker ------------------------------------------------------------------------------


def worker(context: Context, task: dict[str, Any]) -> dict[str, Any]:
    """Trains on this rank; rank 0 also writes pictures, checkpoints and the model."""
    return training.work(PgganJob, _trained, context, task)


def _trained(config: PgganJob, context: Context, run: RunDir) -> dict[str, Any]:
    from medray.train.pggan import Pggan
    from medray.train.snapshots import GanSnapshots

    config = settled(config, context, run)
    algorithm = Pggan(config, context)
    if config.init_from:
        take_weights(algorithm, config.init_from)
    sources = sources_of(config)
    with stream_of(config, sources, context.rank, context.world) as batches:
        pictures = GanSnapshots(
            algorithm,
            run,
            latent_dims=config.latent_dims,
            seed=config.seed,
            conditioning=algorithm.conditioning,
        )
        if context.rank == 0:
            pictures.show_reals(*reals(config, sources, 512))
        fit = training.fit(
            config,
            algorithm,
            batches,
            context,
            run,
            snapshot=pictures,
            batch_at=lambda images: config.batch_at(config.growth_at(images).px),
        )
        summary = fit.run()
        if context.rank == 0:
            summary |= leave(config, run, algorithm, pictures, summary)
        context.barrier()
    return summary


def settled(config: PgganJob, context: Context, run: RunDir) -> PgganJob:
    """`config` with precision auto replaced by what rank 0 measures, once for the run."""
    if config.precision != "auto":
        return config
    from medray.train import precision

    chosen = None
    if context.rank == 0:
        stored = run.config()
        if stored["precision"] == "auto":
            stored["precision"] = precision.resolve(config, context.device).precision
            run.write_text("config.yaml", yaml.safe_dump(stored, sort_keys=False))
        chosen = stored["precision"]
    return config.model_copy(update={"precision": context.gather(chosen)[0]})


def take_weights(algorithm: Pggan, url: str) -> None:
    """A warm start: the networks of another run, nothing else of it."""
    from medray.checkpoints import Checkpoints, check_tensors

    checkpoints = Checkpoints(Store(url), None)
    newest = checkpoints.newest()
    if newest is None:
        raise UsageError(f"--init-from: {url} holds no checkpoint", hint="give a run folder")
    tensors, _ = checkpoints.load(newest)
    networks = ("generator.", "discriminator.", "ema.")
    taken = {name: t for name, t in tensors.items() if name.startswith(networks)}
    state: dict[str, Tensor] = algorithm.state_dict()
    shapes = {name: t.shape for name, t in state.items() if name.startswith(networks)}
    check_tensors(taken, shapes, f"--init-from {url}")
    algorithm.load_state_dict({**state, **taken})


def leave(
    config: PgganJob, run: RunDir, algorithm: Pggan, pictures: Any, summary: dict[str, Any]
) -> dict[str, Any]:
    """Writes the model and the report; figures to add to the summary."""
    from medray import lineage
    from medray.models import weights

    about: dict[str, Any] = {
        "kind": "pggan",
        "arguments": config.network_arguments(),
        "px": algorithm.px,
        "seed": config.seed,
    }
    if config.conditional:
        about["classes"] = list(config.class_names)
    tensors: dict[str, Tensor] = dict(algorithm.average.named_parameters())
    saw = seen(config)
    lineage.write_known(run.store.child("model"), saw, run.store.url)
    sha256 = weights.save_generator(run.store.child("model"), tensors, about, card(config, summary))
    if config.conditional:
        from medray.sample.conditional import of_classes

        if saw is not None:
            lineage.write(run.store.child("latents"), saw)
        of_classes(config.class_names, config.latent_dims, sha256).save(run.store.child("latents"))
    figures = {
        "px": algorithm.px,
        "generator_sha256": sha256,
        "precision": config.precision,
        "engine": config.engine,
        "workers": config.workers,
        **last_scores(pictures.rows()),
    }
    pictures.finish({**summary, **figures}, configuration.to_yaml(config))
    return figures


def last_scores(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The last snapshot's figures."""
    scored = [row for row in rows if "snapshot/score" in row]
    if not scored:
        return {}
    return {
        k.replace("snapshot/", ""): v for k, v in scored[-1].items() if k.startswith("snapshot/")
    }


def card(config: PgganJob, summary: dict[str, Any]) -> str:
    """The model card."""
    data = ", ".join(Path(url).name for url in config.data) or f"{config.phantoms} phantoms"
    takes = f"{config.latent_dims} numbers from N(0, 1)"
    if config.conditional:
        names = ", ".join(config.class_names)
        takes += f", then a 1 for the class and 0 for the others ({names})"
    return f"""# Progressive GAN generator, {config.final_px} px

Trained by medray on: {data} (split {config.split}), {summary["images"]:,} images seen, loss
{config.loss}, precision {config.precision}, batch {config.batch}, seed {config.seed}.

- Input: {takes}. Output: {config.channels} channel(s) in [-1, 1].
- Weights: the exponential moving average, `generator.safetensors`; arguments in `config.yaml`.
- Intended use: research on synthetic images. Not for diagnosis. Not audited for memorised patients.
"""
