"""The whole archive: the place made ready, shards by whoever runs them, what stands beside, index.

Who runs the shards (a pool of Ray actors, or this process) is handed in: `run(count)` gives results
as they come.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from medray import lease as leases
from medray import lineage, log
from medray.archive import report
from medray.archive.plan import PLAN, Places, Plan, difference, read_plan, write_plan
from medray.archive.worker import STATE, Result, finished
from medray.errors import ResourceError, UsageError
from medray.lease import Lease
from medray.lineage import Lineage
from medray.records import Shard, ShardIndex
from medray.shards import INDEX, read_index, write_index
from medray.store import PART, Store

# Makes the shards of these numbers; gives each one's result as it is done.
Run = Callable[[Sequence[int], Lease], Iterator[dict[str, Any]]]
EXPECTED = (PLAN, f"{STATE}/", f"{leases.FOLDER}/")


@dataclass(frozen=True)
class Options:
    """How an archive is made; none of it changes a byte of a shard."""

    overwrite: bool = False
    cost_per_hour: float | None = None
    wait_s: float = leases.WAIT_S


def make(
    plan: Plan,
    places: Places,
    url: str,
    run: Run,
    options: Options,
    seen: Lineage | None = None,
) -> ShardIndex:
    """Makes what is missing of an archive, index last; the same command goes on after anything.

    `seen` is what generator, latents and classifier saw (None: not known), written beside it.
    UsageError where another plan's archive is there, ResourceError while another command writes to
    it, GateError where a shard's addresses do not fill it.
    """
    store = Store(url)
    if not options.overwrite and _same_plan(store, plan) and store.exists(INDEX):
        log.event("complete", f"{url} is complete already: nothing to do", plan=plan.hash)
        return read_index(store)
    with holding(store, options.wait_s) as lease:
        _start(store, plan, places, options.overwrite)
        started_s = time.monotonic()
        results, made = _all_shards(store, plan, run, lease, options.cost_per_hour)
        lease.check()
        index = index_of(plan, [result.shard for result in results])
        facts = report.summary(plan, results, made, time.monotonic() - started_s, options)
        report.write(store, plan, index, results, facts)
        lineage.write_known(store, seen)
        write_index(store, index)
    log.event("archived", report.table(facts), **facts)
    text = f"{url}: {facts['bytes'] / 2**20:,.1f} MiB; look at contact-*.png"
    log.event("done", text)
    return index


@contextlib.contextmanager
def holding(store: Store, wait_s: float) -> Iterator[Lease]:
    """The right to write an archive, as long as this lasts; ResourceError where another has it."""
    try:
        lease = leases.acquire(store, wait_s=wait_s)
    except ResourceError as error:
        error.message = error.message.replace("run folder", "archive")
        error.hint = "wait for it or stop it, or give another --out"
        raise
    try:
        yield lease
    finally:
        lease.release()


def _same_plan(store: Store, plan: Plan) -> bool:
    if not store.exists(PLAN):
        return False
    found, _ = read_plan(store)
    if found.hash != plan.hash:
        raise UsageError(
            f"{store.url} holds an archive of another plan: {difference(found, plan)}",
            hint="take another --out, give the same flags, or --overwrite",
        )
    return True


def _start(store: Store, plan: Plan, places: Places, overwrite: bool) -> None:
    """Makes the place ready: empty, or with the shards of the same plan."""
    if overwrite:
        for name in store.names():
            if not name.startswith(f"{leases.FOLDER}/"):
                store.remove(name)
    drop_parts(store)
    if _same_plan(store, plan):
        return
    if any(not name.startswith(EXPECTED) for name in store.names()):
        raise UsageError(
            f"--out {store.url} is not empty and holds no archive",
            hint="take an empty place (--overwrite empties it)",
        )
    write_plan(store, plan, places)


def drop_parts(store: Store) -> None:
    """Removes what killed writers left half done; for the holder of the lease alone."""
    if store.is_local:
        for part in store.path().rglob(f"*{PART}"):
            part.unlink(missing_ok=True)


def _all_shards(
    store: Store, plan: Plan, run: Run, lease: Lease, cost_per_hour: float | None
) -> tuple[list[Result], int]:
    """Every shard's result in order, and how many images were made now; whole ones are skipped."""
    results = {number: finished(store, plan, number) for number in range(plan.shards)}
    missing = [number for number, result in results.items() if result is None]
    there = sum(result.shard.samples for result in results.values() if result is not None)
    if there:
        log.event("resume", f"{plan.shards - len(missing):,} shards are there already")
    done = there
    with log.Progress("archiving", plan.count) as progress:
        progress.update(done)
        for fields in run(missing, lease) if missing else ():
            result = Result(**{**fields, "shard": Shard(**fields["shard"])})
            results[result.number] = result
            done += result.shard.samples
            cost = report.per_million(cost_per_hour, progress.per_second)
            progress.update(done, **({} if cost is None else {"cost_per_million": cost}))
    return [result for result in results.values() if result is not None], done - there


def index_of(plan: Plan, shards: Sequence[Shard]) -> ShardIndex:
    """What an archive's index.json says."""
    return ShardIndex(
        name=plan.name,
        classes=plan.classes,
        channels=plan.channels,
        size_px=plan.px,
        bits=8,
        encoding=plan.encoding,
        source=f"synthetic: medray generator {plan.generator_sha256[:12]}",
        licence="",
        audited=plan.audited,
        shards=tuple(shards),
    )


def describe(plan: Plan, store: Store) -> None:
    """Says what would be made."""
    per_goal = Counter({goal.target or "unlabelled": goal.count for goal in plan.goals})
    there = sum(finished(store, plan, number) is not None for number in range(plan.shards))
    raw = plan.count * plan.px**2 * plan.channels
    log.event(
        "dry_run",
        f"{plan.count:,} images of {plan.px} px in {plan.shards:,} shards ({there:,} are there), "
        f"format {plan.format}: {json.dumps(per_goal)}; at most {raw / 2**20:,.1f} MiB of pixels; "
        f"{'gate at work' if plan.gate_sha256 else 'no gate: unaudited'}; nothing was written",
        plan=plan.hash,
        render=plan.render,
    )
