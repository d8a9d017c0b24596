"""The frame of a run that trains: its folder, what was left open, its workers, its end."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from jobs import _data
from medray import config as configuration
from medray import log
from medray.dist.context import Context, launch, local, threads_for
from medray.job import ImagesJob, TrainJob
from medray.rundir import RunDir, numbered, stored_config
from medray.store import Store

if TYPE_CHECKING:
    from medray.train.loop import Algorithm, Batches, Fit, Snapshot

# How a run is carried out: a resumed run may change these.
CHANGEABLE = frozenset(
    "workers backend gpus_per_worker cpus_per_worker loader_threads cache_dir max_failures "
    "keep_last keep_best on_error threads_per_worker log_images checkpoint_images".split()
)
# What a resumed run takes from its folder where no flag says it.
KEPT = ("threads_per_worker", "init_from", "log_images", "snapshot_images", "checkpoint_images")
ROWS = 100
# Steps that --dry-run times, after one that warms up.
TIMED_STEPS = 3

J = TypeVar("J", bound=TrainJob)
Summary = dict[str, Any]


class Counted(Protocol):
    """What cadence goes by: of a job and of its network's configuration."""

    total_images: int
    batch: int
    threads_per_worker: int | None
    log_images: int | None
    snapshot_images: int | None
    checkpoint_images: int | None
    keep_last: int
    keep_best: int


# --- before a run -------------------------------------------------------------------------------


def placed(config: J, name: str) -> J:
    """`config` with a run folder: a numbered one called `name` where none is given."""
    url = config.run_dir or numbered(_data.runs_dir(), name)
    return config.model_copy(update={"run_dir": url})


def resolved(config: J, choose: Callable[[J], J], *, kept: tuple[str, ...] = KEPT) -> J:
    """What was left open, decided once by `choose`; `kept` is as in the folder that is resumed."""
    if config.run_dir is None:
        return choose(config)
    store = Store(config.run_dir)
    before = stored_config(store) if config.resume else None
    if before is not None:
        values = {
            name: before[name]
            for name in kept
            if name in before and getattr(config, name) in (None, "auto")
        }
        fresh = config.model_copy(update={"resume": False})
        checked = configuration.taken(fresh, values, f"{store.url}/config.yaml")
        config = checked.model_copy(update={"resume": True})
    return choose(config)


def cadence(config: Counted, snapshots: int, *, workers: int = 1) -> dict[str, Any]:
    """Threads and cadence where nobody named them: values to update `config` with."""
    shown = config.snapshot_images or max(config.batch, config.total_images // snapshots)
    return {
        "threads_per_worker": config.threads_per_worker or threads_for(workers),
        "log_images": config.log_images or max(config.batch, config.total_images // ROWS),
        "snapshot_images": shown,
        "checkpoint_images": config.checkpoint_images or shown,
    }


@contextlib.contextmanager
def here(config: TrainJob) -> Iterator[Context]:
    """This process as the only rank, to try a resolved `config` in."""
    context = local(threads_per_rank=config.threads_per_worker)
    try:
        yield context
    finally:
        context.close()


def step_s(algorithm: Algorithm, batches: Batches, batch: int, steps: int = TIMED_STEPS) -> float:
    """Seconds of a step here; the first pays for choosing kernels."""
    start_s = 0.0
    for step in range(steps + 1):
        if step == 1:
            start_s = time.monotonic()
        algorithm.step(batches.next(batch), step * batch)
    return (time.monotonic() - start_s) / steps


# --- the run ------------------------------------------------------------------------------------


def placement(config: ImagesJob) -> dict[str, Any]:
    """Where the workers of a job run, as `launch` takes it."""
    return {
        "backend": config.backend,
        "workers": config.workers,
        "gpus_per_worker": config.gpus_per_worker,
        "cpus_per_worker": config.cpus_per_worker,
        "max_failures": config.max_failures,
    }


def model_and_report(store: Store) -> str:
    """Where a run's model and its page lie."""
    return f"  model     {store.url}/model\n  report    {store.url}/report.html"


def train(
    config: TrainJob,
    worker: Callable[[Context, dict[str, Any]], Summary],
    launched: dict[str, Any],
    *,
    name: str,
    farewell: Callable[[Summary], str],
    places: Callable[[Store], str] = model_and_report,
    changeable: frozenset[str] = CHANGEABLE,
    begin: Callable[[], None] | None = None,
) -> None:
    """Trains a resolved `config` from the start or the newest checkpoint to the end.

    `name` is the job's, `launched` where its `worker` runs. `begin` is called in the folder of a
    run that is not complete; `farewell` says what came out, `places` where it lies.
    """
    url = str(config.run_dir)
    run = RunDir.start(
        url,
        config_yaml=configuration.to_yaml(config),
        config_hash=configuration.digest(config, leave_out=changeable),
        command=shlex.join(["medray", name, *sys.argv[1:]]),
        resume=config.resume,
        overwrite=config.overwrite,
        changeable=changeable | configuration.OPERATIONAL,
    )
    with run:
        if run.complete:
            log.event("complete", f"{url} is complete: nothing to do\n{places(run.store)}")
            return
        if begin is not None:
            begin()
        threads = config.threads_per_worker
        summary: Summary = launch(
            worker, task_of(config, run), threads_per_rank=threads, name=name, **launched
        )
        run.finish(summary)
    log.event("done", f"{farewell(summary)}\n{places(Store(url))}", run_dir=url, **summary)


def task_of(config: TrainJob, run: RunDir) -> dict[str, Any]:
    """What a worker is given; `work` takes it."""
    # A resumed warm start begins at its weights again where no checkpoint came before the end.
    begin = config.model_copy(update={"resume": False})
    return {"config": begin.model_dump(mode="json"), "epoch": run.lease.epoch}


# --- on a worker --------------------------------------------------------------------------------


def work(
    job: type[J],
    trained: Callable[[J, Context, RunDir], Summary],
    context: Context,
    task: dict[str, Any],
) -> Summary:
    """Attaches to the run's folder, where rank 0 writes, and trains; the figures."""
    config = job.model_validate(task["config"])
    with RunDir.attach(str(config.run_dir), task["epoch"], writer=context.rank == 0) as run:
        return trained(config, context, run)


def fit(
    config: Counted,
    algorithm: Algorithm,
    batches: Batches,
    context: Context,
    run: RunDir,
    *,
    snapshot: Snapshot,
    batch_at: Callable[[int], int] | None = None,
    enough: Callable[[], bool] | None = None,
) -> Fit:
    """The loop of a resolved `config`; its batch, where `batch_at` does not say another."""
    from medray.train.loop import Cadence, Fit

    return Fit(
        algorithm,
        batches,
        context,
        run,
        Cadence(
            config.total_images,
            config.log_images or config.batch,
            config.snapshot_images or config.batch,
            config.checkpoint_images or config.batch,
            config.keep_last,
            config.keep_best,
        ),
        batch_at=batch_at or (lambda images: config.batch),
        snapshot=snapshot,
        enough=enough,
    )
