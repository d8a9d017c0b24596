"""The wiring of jobs/acgan.py: run folder, features, loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import _training as training
from jobs.acgan import ACGANJob
from medray import config as configuration
from medray import log
from medray.dist.context import Context
from medray.errors import DataError, UsageError
from medray.rundir import RunDir

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from medray.stream.table import FeatureTable
    from medray.train.acgan import ACGANTraining

SNAPSHOTS = 20
# Steps that --dry-run times, after one that warms up.
TIMED_STEPS = 5


@dataclass(frozen=True)
class Samples:
    """What a run trains on and compares with; `numbers_M` are the classes of the rows."""

    train: FeatureTable
    held_out: FeatureTable
    classes: tuple[str, ...]
    rows_MCHW: npt.NDArray[np.float32]
    numbers_M: npt.NDArray[np.int64]

    @property
    def counts(self) -> list[int]:
        """Rows of each class."""
        return [int((self.numbers_M == k).sum()) for k in range(len(self.classes))]


def train(config: ACGANJob) -> None:
    """Trains from the start or the newest checkpoint to the end."""
    training.train(
        training.resolved(training.placed(config, _name(config)), _choose),
        worker,
        {"backend": "local"},
        name="acgan",
        farewell=_farewell,
    )


def _name(config: ACGANJob) -> str:
    return f"acgan-{Path(config.features.rstrip('/')).name}"


def _farewell(summary: dict[str, Any]) -> str:
    accepted = ", ".join(f"{n} {share:.0%}" for n, share in summary["acceptance"].items())
    return (
        f"done: {summary['images']:,} features seen in {log.duration(summary['duration_s'])}, "
        f"Frechet distance {summary['frechet']:.4g} (real to real "
        f"{summary['frechet_real']:.4g}), accepted: {accepted}"
    )


def _choose(config: ACGANJob) -> ACGANJob:
    return config.model_copy(update=training.cadence(config, SNAPSHOTS))


# --- the features -------------------------------------------------------------------------------


def samples_of(config: ACGANJob) -> Samples:
    """Reads both splits; DataError where they make no task."""
    import numpy as np

    from medray.stream.table import read_table
    from medray.train.acgan import as_maps, check_rows

    train = _usable(config, read_table(config.features, config.split, config.cache_dir).labelled())
    held_out = read_table(config.features, config.validation_split, config.cache_dir).labelled()
    classes = tuple(name for name in train.classes if name in set(train.labels))
    form = "map" if train.features.ndim == 4 else "vector"
    if config.form not in ("auto", form):
        raise UsageError(
            f"--form {config.form}: {config.features} holds {form}s", hint=f"--form {form}"
        )
    number_of = {name: number for number, name in enumerate(classes)}
    numbers_M = np.asarray([number_of[str(label)] for label in train.labels], np.int64)
    rows_MCHW = as_maps(train.features)
    counts_K = np.bincount(numbers_M, minlength=len(classes))
    check_rows(rows_MCHW, counts_K, classes, config.features)
    held_out = held_out.take([n for n, name in enumerate(held_out.labels) if name in number_of])
    if len(held_out) < 2:
        raise DataError(
            f"split {config.validation_split} has {len(held_out)} rows of the classes to compare "
            "with, at least 2 are wanted",
            code="MR-D072",
            where=config.features,
            hint="give another --validation-split",
        )
    return Samples(train, held_out, classes, rows_MCHW, numbers_M)


def _usable(config: ACGANJob, table: FeatureTable) -> FeatureTable:
    """The rows of the patients that --exclude-patients and --fraction leave."""
    from medray.train import fraction

    if config.exclude_patients is not None:
        held = fraction.read_patients(config.exclude_patients)
        names = zip(table.patients, table.samples, strict=True)
        left = [n for n, pair in enumerate(names) if not set(pair) & held]
        if len(left) == len(table):
            log.warn(
                "nobody_excluded",
                f"split {config.split} has none of the {len(held):,} patients of "
                f"--exclude-patients {config.exclude_patients}",
            )
        table = table.take(left)
    if config.fraction < 1:
        labels = fraction.labels_by_patient(table.facts())
        chosen = fraction.in_fraction(labels, config.fraction, config.fraction_seed)
        table = table.take([n for n, who in enumerate(table.patients) if who in chosen])
    if not len(table):
        raise DataError(
            f"no labelled row of split {config.split} is left",
            code="MR-D072",
            where=config.features,
            hint="make the features of a set with labels, or exclude fewer patients",
        )
    return table


# --- on the worker ------------------------------------------------------------------------------


def worker(context: Context, task: dict[str, Any]) -> dict[str, Any]:
    """Trains, and writes checkpoints, pictures and the model."""
    return training.work(ACGANJob, _trained, context, task)


def _trained(config: ACGANJob, context: Context, run: RunDir) -> dict[str, Any]:
    from jobs._acgan_report import Comparison, leave
    from medray.train.table_batches import TableBatches

    found = samples_of(config)
    tell(found)
    algorithm = training_of(config, found, context)
    comparison = Comparison(config, algorithm, run, found)
    batches = TableBatches(
        found.rows_MCHW, found.numbers_M, seed=config.seed, balanced=config.balanced
    )
    fit = training.fit(config, algorithm, batches, context, run, snapshot=comparison)
    summary = fit.run()
    return {**summary, **leave(config, run, comparison, summary)}


def training_of(config: ACGANJob, found: Samples, context: Context) -> ACGANTraining:
    """The training, with other weights to begin with where they are given."""
    from medray.train.acgan import ACGANTraining

    algorithm = ACGANTraining(config, found.classes, found.rows_MCHW, context)
    if config.init_from:
        _take_weights(algorithm, config.init_from, found.train.tag)
    return algorithm


def _take_weights(algorithm: ACGANTraining, url: str, tag: str) -> None:
    """A warm start; UsageError where the other's features, classes or networks are not these."""
    from medray.sample.acgan import ACGAN

    other = ACGAN.load(url, tag=tag)
    pairs = ((other.generator, algorithm.generator), (other.discriminator, algorithm.discriminator))
    for theirs, own in pairs:
        if theirs.arguments() != own.arguments():
            raise UsageError(
                f"--init-from {url}: another network ({theirs.arguments()}, here "
                f"{own.arguments()})",
                hint="give the flags that it was trained with",
            )
        own.load_state_dict(theirs.state_dict())
    algorithm.average.load_state_dict(other.generator.state_dict())


def tell(found: Samples) -> None:
    """Says what is trained on."""
    counts = dict(zip(found.classes, found.counts, strict=True))
    named = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    shape = "x".join(str(n) for n in found.train.features.shape[1:])
    log.event(
        "samples",
        f"features {shape} of layer {found.train.layer}: {named} to train on, "
        f"{len(found.held_out):,} held out to compare with",
        counts=counts,
        held_out=len(found.held_out),
    )


# --- before a run -------------------------------------------------------------------------------


def describe(config: ACGANJob) -> None:
    """Says what the run would train on and take; writes nothing."""
    from medray.train.table_batches import TableBatches

    config = training.resolved(config, _choose)
    found = samples_of(config)
    tell(found)
    with training.here(config) as context:
        algorithm = training_of(config, found, context)
        batches = TableBatches(found.rows_MCHW, found.numbers_M, seed=0, balanced=config.balanced)
        step_s = training.step_s(algorithm, batches, config.batch, TIMED_STEPS)
    networks = (algorithm.generator, algorithm.discriminator)
    parameters = [sum(p.numel() for p in network.parameters()) for network in networks]
    seconds = step_s * config.total_images / config.batch
    log.event(
        "plan",
        f"{configuration.to_yaml(config)}\n{parameters[0]:,} parameters of G, {parameters[1]:,} of "
        f"D; {config.batch / step_s:,.0f} features/s here (measured), {log.duration(seconds)} for "
        f"{config.total_images:,} features",
        parameters=parameters,
        step_s=round(step_s, 5),
        estimated_s=round(seconds, 1),
    )
