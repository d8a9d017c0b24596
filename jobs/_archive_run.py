"""The archive's wiring: a plan from the flags, workers from the pool, checks and repair."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from medray import lineage, log
from medray.archive import archive, check
from medray.archive.goals import goals_of
from medray.archive.load import Parts, check_digests, load_parts
from medray.archive.members import encoded
from medray.archive.plan import Places, Plan, read_plan
from medray.archive.worker import Worker, make_shard
from medray.dist.pool import run_on_actors, stopping
from medray.errors import DataError, UsageError
from medray.lease import Lease
from medray.lineage import Lineage
from medray.store import Store

MEMBERS = {"png": "png", "npy": "npy", "dcm": "dicom"}

if TYPE_CHECKING:
    from jobs.archive import ArchiveJob
    from jobs.regenerate import RegenerateJob


def make(config: ArchiveJob) -> None:
    """Makes an archive, or with --dry-run says what it would be."""
    assert config.generator is not None, "checked by the configuration"
    store = Store(config.out)
    workers = _workers(config, store)
    places = Places(config.generator, config.latents, config.classifier, config.gate)
    device = "cuda" if config.gpus_per_worker and not workers else "cpu"
    parts = load_parts(places, batch=config.batch, dtype=config.dtype, device=device)
    plan, saw = _plan(config, parts), _seen(config, places)
    if config.dry_run:
        archive.describe(plan, store)
        return
    if parts.gate is not None and not plan.audited:
        log.warn("gate", "the gate did not catch its planted copies: the archive is unaudited")
    options = archive.Options(config.overwrite, config.cost_per_hour, config.wait_s)
    run = _Run(config, places, workers, (plan, parts))
    with stopping():
        archive.make(plan, places, config.out, run, options, saw)


def _plan(config: ArchiveJob, parts: Parts) -> Plan:
    latents, gate = parts.latents, parts.gate
    return Plan(
        generator_sha256=parts.renderer.generator_sha256,
        latents_sha256=None if latents is None else latents.sha256,
        classifier_sha256=parts.classifier_sha256,
        gate_sha256=None if gate is None else gate.sha256,
        audited=gate is not None and gate.audits,
        min_probability=config.min_probability,
        seed=config.seed,
        goals=goals_of(parts, config.labels, config.count, config.data),
        classes=parts.classes,
        samples_per_shard=config.samples_per_shard,
        format=config.format,
        px=parts.renderer.px,
        channels=parts.renderer.channels,
        name=config.name or Store(config.out).url.rpartition("/")[2],
        body_part=config.body_part,
        render=_render(config, parts),
    )


def _seen(config: ArchiveJob, places: Places) -> Lineage | None:
    """What the archive's images are a function of saw; None where a part of it does not say.

    The privacy gate drops copies by a threshold from held-out images: no image is made of them, so
    it is not among these, and the plan names it (`gate_sha256`).
    """
    saw = lineage.united([places.generator, places.latents, places.classifier])
    if saw is None or config.labels != "natural" or not (config.data and places.latents):
        return saw
    # Natural shares are counts of the labels of the whole train split.
    from medray.stream import Roster, Source
    from medray.train import mixture

    roster = Roster([Source(config.data)], "train")
    counted = mixture.seen_in(roster, roster.facts, labels=True)
    return None if counted is None else saw | counted


def _render(config: ArchiveJob, parts: Parts) -> dict[str, Any]:
    """What decides an image's bytes; where actors' GPUs render, one of them is asked."""
    if not config.gpus_per_worker or parts.renderer.device.type == "cuda":
        return parts.renderer.record()
    arguments = (config.generator, config.batch, config.dtype)
    asked = run_on_actors(
        _no_state, _record_on_gpu, [arguments], workers=1, gpus=config.gpus_per_worker
    )
    return next(iter(dict(asked).values()))


def _no_state() -> None:
    return None


def _record_on_gpu(state: None, generator: str, batch: int, dtype: str) -> dict[str, Any]:
    parts = load_parts(Places(generator), batch=batch, dtype=dtype, device="cuda")
    return parts.renderer.record()


def _workers(config: ArchiveJob, store: Store) -> int | tuple[int, int]:
    most = config.workers
    if most is None:
        most = -1 if os.environ.get("RAY_ADDRESS") else 0
    if most and store.url.startswith("memory://"):
        raise UsageError("memory:// is in one process's memory: it goes with --workers 0 alone")
    if most < 0:
        return config.min_workers, _cluster_workers(config)
    return (config.min_workers, most) if most else 0


def _cluster_workers(config: ArchiveJob) -> int:
    """As many as the cluster can have: it may grow, so shards are what limits."""
    return max(config.min_workers, 1024)


class _Run:
    """Makes shards by the pool, or here."""

    def __init__(
        self,
        config: ArchiveJob,
        places: Places,
        workers: int | tuple[int, int],
        here: tuple[Plan, Parts],
    ) -> None:
        self.config, self.places, self.workers, self.here = config, places, workers, here

    def __call__(self, numbers: Sequence[int], lease: Lease) -> Iterator[dict[str, Any]]:
        tasks = [(number,) for number in numbers]
        config = self.config
        if self.workers == 0:
            here = (*self.here, config.out, lease)
            made = run_on_actors(_worker_here, make_shard, tasks, arguments=here)
        else:
            device = "cuda" if config.gpus_per_worker else "cpu"
            there = (asdict(self.places), config.out, lease.epoch, device, config.cpus_per_worker)
            made = run_on_actors(
                _worker,
                make_shard,
                tasks,
                arguments=there,
                workers=self.workers,
                retries=config.retries,
                cpus=config.cpus_per_worker,
                gpus=config.gpus_per_worker,
            )
        return (result for _, result in made)


def _worker_here(plan: Plan, parts: Parts, out: str, lease: Lease) -> Worker:
    import torch

    return Worker(plan, parts, Store(out), lease, torch.get_num_threads())


def _worker(places: dict[str, Any], out: str, epoch: int, device: str, cpus: float) -> Worker:
    """A worker of the archive at `out`, whose plan it reads there."""
    store = Store(out)
    plan, _ = read_plan(store)
    parts = _parts(plan, Places(**places), device)
    return Worker(plan, parts, store, epoch, max(1, int(cpus)))


def _parts(plan: Plan, places: Places, device: str, *, any_render: bool = False) -> Parts:
    """What a plan was made with, checked; UsageError where this machine renders otherwise."""
    parts = load_parts(
        places, batch=plan.render["batch"], dtype=plan.render["dtype"], device=device
    )
    check_digests(plan, parts)
    record = parts.renderer.record()
    if record != plan.render and not any_render:
        changed = [
            f"{name} was {plan.render.get(name)!r}, is {value!r}"
            for name, value in record.items()
            if value != plan.render.get(name)
        ]
        raise UsageError(
            f"this machine renders otherwise than the archive: {'; '.join(changed)}",
            hint="go on with machines and versions of that kind, or make another archive",
        )
    return parts


# --- check and repair ---------------------------------------------------------------------------


def open_archive(
    out: str, overrides: dict[str, str | None], *, any_render: bool
) -> tuple[Plan, Places, Parts]:
    """An archive's plan and what it was made with, from where the plan or the flags say.

    Rendered on a GPU where the archive was and there is one here.
    """
    import torch

    plan, places = read_plan(Store(out))
    moved = {name: where for name, where in overrides.items() if where is not None}
    places = replace(places, **moved)
    on_gpu = not plan.render["device"].startswith("cpu") and torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    return plan, places, _parts(plan, places, device, any_render=any_render)


def _overrides(config: ArchiveJob | RegenerateJob) -> dict[str, str | None]:
    return {n: getattr(config, n) for n in ("generator", "latents", "classifier", "gate")}


def verify(config: ArchiveJob) -> None:
    """Checks an archive; DataError with everything that was found."""
    store = Store(config.out)
    found = check.verify(store)
    try:
        lineage.read(config.out)
    except DataError as damaged:
        found.append(damaged)
    if not found and config.sample:
        plan, _, parts = open_archive(config.out, _overrides(config), any_render=True)
        made, found = check.remake(Worker(plan, parts, store, None, 1), config.sample, config.seed)
        log.event("remade", made.text(), **asdict(made))
    for error in found:
        log.error("damaged", str(error), code=error.code, where=error.where)
    if found:
        raise DataError(
            f"{len(found)} fault(s) in {config.out}",
            code=found[0].code,
            hint="medray archive --out ARCHIVE --repair makes damaged shards again",
        )
    log.event("verified", f"{config.out}: every digest, count and address agrees")


def repair(config: ArchiveJob) -> None:
    """Makes damaged and missing shards again."""
    store = Store(config.out)
    workers = _workers(config, store)
    # Actors compare their own render with the archive's.
    plan, places, parts = open_archive(config.out, _overrides(config), any_render=bool(workers))
    run = _Run(config, places, workers, (plan, parts))
    mended = check.repair(store, plan, run, config.wait_s)
    text = f"mended: {', '.join(mended)}" if mended else "nothing was damaged"
    log.event("repaired", f"{config.out}: {text}", mended=mended)


def regenerate(config: RegenerateJob) -> None:
    """Writes one image of an archive, made again."""
    ending = config.out.rpartition(".")[2]
    if ending not in MEMBERS:
        raise UsageError(f"--out must end in .{', .'.join(MEMBERS)}, got {config.out}")
    plan, _, parts = open_archive(config.archive, _overrides(config), any_render=True)
    form = replace(plan, format=MEMBERS[ending])
    worker = Worker(plan, parts, Store(config.archive), None, 1)
    sample = check.regenerate(worker, config.address)
    same = parts.renderer.record() == plan.render
    promise = "same render: the same bytes" if same else "another render: nearly the same"
    if config.dry_run:
        log.event("dry_run", f"{config.address}: {promise}; nothing was written")
        return
    folder, _, name = config.out.rpartition("/")
    Store(folder).write_bytes(name, dict(encoded(sample, form))[ending])
    log.event("regenerated", f"{config.out}: {config.address} ({promise})")
