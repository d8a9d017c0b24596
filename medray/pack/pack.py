"""The whole pack: plan, shards by this process or by Ray, what stands beside them, index last."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any

from medray import log
from medray.errors import DataError, UsageError
from medray.pack import report
from medray.pack.clips import list_clips
from medray.pack.config import PackConfig
from medray.pack.deidentify import Keyed, load_secret
from medray.pack.near import near_duplicates, near_words
from medray.pack.plan import Plan, ShardPlan, make_plan
from medray.pack.probe import Probed, probe
from medray.pack.sources import Listing, list_source
from medray.pack.worker import STATE, Result, finished, pack_shard
from medray.records import CLIPS, IMAGES, ShardIndex
from medray.shards import INDEX, read_index, write_index
from medray.store import Store, make_folder

PLAN, LOCK = "plan.json", f"{STATE}/lock"
# Below this many DICOM files the headers are read here even where Ray is at hand.
PROBE_PER_TASK = 500
DARK = 4


@dataclass(frozen=True, slots=True)
class Job:
    """Where to, and how, beside what `PackConfig` says."""

    out: str
    seed: int = 0
    overwrite: bool = False
    dry_run: bool = False


def pack(config: PackConfig, job: Job) -> ShardIndex | None:
    """Packs a source into shards at `job.out`; the index, or None for a dry run.

    Runs again with the same plan, it goes on; with another, UsageError. DataError where the data
    are not fit, or more than `max_rejected` files were left out (everything else is done by then).
    """
    keyed = load_secret(config.secret_file)
    workers = _workers(config, job.out)
    listing = list_clips(config, keyed) if config.clips else list_source(config, keyed)
    plan = make_plan(config, listing, _probed(config, listing, keyed, workers), keyed, job.seed)
    _check_plan(plan, config)
    if job.dry_run:
        _print_dry_run(plan, job, workers)
        return None
    store = Store(job.out)
    with _alone(store):
        done = _start(store, plan, job.overwrite)
        if done is not None:
            _refuse_alike(config, _summary_there(store), store.url)
            _drop_state(store)  # of a run that was killed between the index and this
            log.event("complete", f"{job.out} is complete already: nothing to do", plan=plan.hash)
            return done
        results = _all_shards(plan, job.out, workers)
        return _finish(store, plan, results, config)


def _workers(config: PackConfig, out: str) -> int:
    workers = config.workers
    if workers is None:
        workers = -1 if os.environ.get("RAY_ADDRESS") else 0
    if workers and any(url.startswith("memory://") for url in (out, config.source)):
        raise UsageError("memory:// is in one process's memory: it goes with --workers 0 alone")
    return workers


def _probed(
    config: PackConfig, listing: Listing, keyed: Keyed, workers: int
) -> list[Probed] | None:
    """Bits and patients from the files' headers, where the table does not say them."""
    names = [entry.files[0] if entry.files else entry.file for entry in listing.entries]
    if config.bits != "auto" and all(entry.patient for entry in listing.entries):
        return None
    if not workers or len(names) <= PROBE_PER_TASK:
        return probe(listing.base, names, keyed)
    if not any(_may_be_dicom(name) for name in names):
        return probe(listing.base, names, keyed)
    from medray.pack.on_ray import run_tasks

    chunks = [names[k : k + PROBE_PER_TASK] for k in range(0, len(names), PROBE_PER_TASK)]
    tasks = [(listing.base, chunk, keyed) for chunk in chunks]
    answers = dict(run_tasks(probe, tasks, workers))
    return [found for number in range(len(chunks)) for found in answers[number]]


def _may_be_dicom(name: str) -> bool:
    return name.lower().endswith((".dcm", ".dicom")) or "." not in name.rpartition("/")[2]


def _check_plan(plan: Plan, config: PackConfig) -> None:
    """Ends here where too many files are absent, or nothing is left: before any computing."""
    absent = plan.rejected
    if len(absent) > config.max_rejected:
        for rejected in absent[:5]:
            text = f"{rejected.code} error  {rejected.reason}  {rejected.where}"
            log.error("data", text, code=rejected.code, where=rejected.where)
        raise DataError(
            f"{len(absent)} file(s) of the table are not there, {config.max_rejected} may be "
            "rejected; nothing was written",
            code=absent[0].code,
            where=absent[0].where,
            hint="mend the paths (they are relative to the table), or raise --max-rejected",
        )
    if not plan.shards:
        raise DataError("no images are left to pack", code="MR-D201")


def _print_dry_run(plan: Plan, job: Job, workers: int) -> None:
    for shard in plan.shards:
        log.event("shard", f"{shard.name}: {len(shard.entries):,} files")
    rules = plan.rules
    raw = plan.files * rules.size_px**2 * rules.channels * rules.bits // 8
    most = f"at most {raw / 2**20:,.1f} MiB of pixels, " if rules.kind == IMAGES else ""
    log.event(
        "dry_run",
        f"{plan.files:,} files into {len(plan.shards)} shards of {rules.size_px} px, {rules.bits} "
        f"bits, {rules.channels} channel(s), classes {', '.join(rules.classes) or 'none'}; {most}"
        f"{workers or 'no'} Ray workers; nothing was written",
        plan=plan.hash,
    )


# --- the place --------------------------------------------------------------------------------


@contextlib.contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Keeps a second pack out of a folder; the kernel frees it when this process ends."""
    if not store.is_local:
        yield
        return
    with _locked(store):
        try:
            yield
        finally:
            store.remove(LOCK)  # before it is freed, so that nobody waits on a file that is gone
            with contextlib.suppress(OSError):
                store.path(STATE).rmdir()  # where nothing is left to go on from


def _locked(store: Store) -> IO[bytes]:
    """The open lock of the folder; UsageError where another pack has it."""
    path = store.path(LOCK)
    while True:
        make_folder(path.parent)
        # Who held it may take it away, and its folder, between any two of these lines.
        with contextlib.suppress(FileNotFoundError):
            lock = path.open("wb")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                raise UsageError(
                    f"another pack is writing to {store.url}",
                    hint="wait for it, or take another --out",
                ) from None
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock
            lock.close()


def _drop_state(store: Store) -> None:
    """Removes what a run goes on from, save the lock: it is held until this pack has ended."""
    if not store.is_local:
        store.remove_tree(STATE)
        return
    for path in store.path(STATE).iterdir():
        if path != store.path(LOCK):
            store.remove(f"{STATE}/{path.name}")


def _start(store: Store, plan: Plan, overwrite: bool) -> ShardIndex | None:
    """Makes the place ready; the finished index where there is nothing left to do."""
    found = _plan_there(store)
    if overwrite and (found is not None or store.exists(INDEX)):
        for name in store.names():
            if name != LOCK:
                store.remove(name)
        found = None
    if found is None:
        if any(not name.startswith(f"{STATE}/") for name in store.names()):
            raise UsageError(
                f"--out {store.url} is not empty and holds no pack of this command",
                hint="take an empty place (--overwrite removes sets of shards alone)",
            )
        store.write_bytes(PLAN, _plan_json(plan))
        return None
    if found.get("hash") != plan.hash:
        raise UsageError(
            f"--out {store.url} holds a pack of another plan: {_difference(found, plan)}",
            hint="take another --out, give the same flags, or --overwrite",
        )
    return read_index(store, None) if store.exists(INDEX) else None


def _plan_json(plan: Plan) -> bytes:
    return json.dumps({"hash": plan.hash, "plan": plan.facts}, indent=1, sort_keys=True).encode()


def _plan_there(store: Store) -> dict[str, Any] | None:
    try:
        found = json.loads(store.read_bytes(PLAN))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _difference(found: dict[str, Any], plan: Plan) -> str:
    before = found.get("plan") or {}
    changed = [
        f"{name} was {before.get(name)!r}, is {plan.facts.get(name)!r}"
        for name in sorted({*before, *plan.facts})
        if before.get(name) != plan.facts.get(name)
    ]
    return "; ".join(changed) or "its plan cannot be read"


# --- shards -----------------------------------------------------------------------------------


def _all_shards(plan: Plan, out: str, workers: int) -> list[Result]:
    """Every shard's result, in order; finished and whole ones are taken as they are."""
    results = {n: finished(out, shard.name, plan.hash) for n, shard in enumerate(plan.shards)}
    missing = [n for n, result in results.items() if result is None]
    done = sum(len(plan.shards[n].entries) for n in results if n not in missing)
    if len(missing) < len(plan.shards):
        log.event("resume", f"{len(plan.shards) - len(missing)} shards are there already")
    with log.Progress("packing", plan.files) as progress:
        progress.update(done)
        for number, result in _made(plan, out, [plan.shards[n] for n in missing], workers):
            results[missing[number]] = result
            done += len(plan.shards[missing[number]].entries)
            progress.update(done)
    return [result for result in results.values() if result is not None]


def _made(
    plan: Plan, out: str, shards: Sequence[ShardPlan], workers: int
) -> Iterator[tuple[int, Result]]:
    tasks = [(out, plan.rules, shard, plan.hash) for shard in shards]
    if not workers or not tasks:
        yield from ((number, pack_shard(*task)) for number, task in enumerate(tasks))
        return
    from medray.pack.on_ray import run_tasks

    yield from run_tasks(pack_shard, tasks, workers)


# --- the end ----------------------------------------------------------------------------------


def _finish(store: Store, plan: Plan, results: list[Result], config: PackConfig) -> ShardIndex:
    started_s = time.monotonic()
    rejected = report.all_rejected(plan, results)
    store.write_bytes(report.REJECTED, report.rejected_csv(rejected))
    if len(rejected) > config.max_rejected:
        codes = ", ".join(sorted({r.code for r in rejected}))
        raise DataError(
            f"{len(rejected):,} of {plan.files:,} files were rejected ({codes}), "
            f"{config.max_rejected:,} may be",
            code=rejected[0].code,
            where=f"{store.url}/{report.REJECTED}",
            hint=f"mend them, or run the same command with --max-rejected {len(rejected)}: what is "
            "packed already stays",
        )
    index = _index(store, plan, results, config)
    if not index.shards:
        raise DataError("every file was rejected", code="MR-D201", where=report.REJECTED)
    same = report.duplicates(plan, results)
    near = None
    if config.near_duplicates != "off":
        near = near_duplicates(plan, results, config.near_similarity)
        store.write_bytes(report.NEAR, report.near_csv(near))
    facts = report.summary(plan, index, results, rejected, same, near)
    _refuse_alike(config, facts, store.url)
    beside = {
        report.DUPLICATES: report.duplicates_csv(same),
        report.SUMMARY: report.summary_json(facts),
        report.CONTACT: report.contact_sheet(store, index),
    }
    if index.kind == CLIPS:
        beside[report.NOTES] = report.notes_csv(plan, results)
    with ThreadPoolExecutor() as pool:  # each waits for the disk
        list(pool.map(store.write_bytes, beside.keys(), beside.values()))
    write_index(store, index)
    _drop_state(store)
    _say(store, facts, len(rejected), time.monotonic() - started_s)
    return index


def _refuse_alike(config: PackConfig, facts: dict[str, Any], url: str) -> None:
    """DataError MR-D222 under --near-duplicates refuse where a summary counts any."""
    near = facts.get("near_duplicates", {})
    counts = (
        facts.get("duplicates_across_splits", 0),
        near.get("across_splits", 0),
        near.get("across_patients", 0),
    )
    if config.near_duplicates != "refuse" or not any(counts):
        return
    raise DataError(
        f"{counts[0]:,} pictures are in two splits, {near_words(near)}",
        code="MR-D222",
        where=f"{url}/{report.NEAR}",
        hint="put such pictures of one patient in one split, drop one, or pack with "
        "--near-duplicates report: what is packed already stays",
    )


def _summary_there(store: Store) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(store.read_bytes(report.SUMMARY))
    except (FileNotFoundError, ValueError):
        return {}
    return found


def _index(store: Store, plan: Plan, results: list[Result], config: PackConfig) -> ShardIndex:
    return ShardIndex(
        name=config.name or store.url.rpartition("/")[2],
        classes=plan.rules.classes,
        channels=plan.rules.channels,
        size_px=plan.rules.size_px,
        bits=plan.rules.bits,
        encoding=plan.rules.encoding,
        source=config.origin,
        licence=config.licence,
        audited=False,
        shards=tuple(result.shard for result in results if result.shard is not None),
        kind=plan.rules.kind,
    )


def _say(store: Store, facts: dict[str, Any], rejected: int, seconds: float) -> None:
    if facts["duplicates_across_splits"]:
        log.warn(
            "duplicates",
            f"MR-D210 warning  {facts['duplicates_across_splits']:,} pictures are in two splits, "
            f"pixel for pixel: {report.DUPLICATES} has their keys",
        )
    near = facts.get("near_duplicates", {})
    if near.get("across_splits") or near.get("across_patients"):
        text = f"{near_words(near)}: {report.NEAR} has their keys; look whether they are the same"
        log.warn("near_duplicates", f"MR-D222 warning  {text}", **near)
    if facts.get("brightest_level", 65535) < 65535 // DARK:
        log.warn(
            "dark",
            f"MR-D211 warning  the brightest pixel is {facts['brightest_level']:,} of 65,535: "
            "--window minmax or --window CENTRE,WIDTH spreads the values",
        )
    if facts["burned_in_flagged"]:
        text = f"{facts['burned_in_flagged']:,} images may have text in their pixels (flagged)"
        log.warn("burned_in", f"MR-D212 warning  {text}")
    for code, count in facts.get("notes", {}).items():
        text = f"{code} warning  {report.NOTE_TEXTS[code]}: {count:,} ({report.NOTES} says where)"
        log.warn("clips", text, code=code)
    if rejected:
        log.warn("rejected", f"{rejected:,} files were rejected: {report.REJECTED} says why")
    log.event("packed", report.table(facts), **facts)
    log.event("done", f"{store.url}: {facts['bytes'] / 2**20:,.1f} MiB; look at {report.CONTACT}")
