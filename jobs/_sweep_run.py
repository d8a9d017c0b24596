"""The wiring of jobs/sweep.py: searches, last fits, one look at the test split, verdict."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from jobs import _out
from jobs import _sweep_report as sweep_report
from jobs._sweep_data import Prepared, prepare
from jobs._sweep_plan import (
    SUMMARY,
    Plan,
    arms_of,
    comparisons,
    describe,
    make_plan,
    searches_of,
)
from jobs.sweep import SweepJob
from medray import log
from medray.dist.pool import run_on_actors
from medray.errors import UsageError
from medray.store import Store
from medray.tune.cells import Cell
from medray.tune.data import TestOnce
from medray.tune.journal import Journal
from medray.tune.on_ray import run_on_ray, told_by_log
from medray.tune.search import Record, Searches, Trial
from medray.tune.trial import Trials, of_trial, run_here, short
from medray.tune.verdict import Test, Verdict, judge

WEIGHTS, PREDICTIONS, TRUTH, POOLS, FOLDS = "weights", "predictions", "truth", "pools", "folds"
FAILED = ".failed.txt"


def sweep(config: SweepJob) -> None:
    """Everything, from the rows to `summary.json`, which is written last."""
    if config.backend == "ray" and config.out.startswith("memory://"):
        raise UsageError("memory:// is in one process's memory: it goes with --backend local alone")
    arms = arms_of(config)
    prepared = prepare(config, f"{config.out}/{POOLS}")
    plan = make_plan(config, prepared, arms)
    searches = searches_of(config, prepared, arms)
    if config.dry_run:
        describe(config, prepared, plan, searches)
        return
    store = Store(config.out)
    with _out.alone(store, "sweep"):
        if _out.start(store, plan.facts, what="a sweep", done=SUMMARY, overwrite=config.overwrite):
            log.event("complete", f"{config.out} is complete: nothing to do", plan=plan.hash)
            return
        _write_folds(store, prepared)
        search(config, store, prepared, searches)
        fitted = fit_last(config, store, prepared, searches)
        look_once(store, prepared, fitted)
        verdicts, missing = judged(config, store, prepared, plan, fitted)
        summary = sweep_report.write(store, config, plan, searches, verdicts, missing)
        store.write_bytes(SUMMARY, sweep_report.as_json(summary))
        sweep_report.say(store, summary)


def _write_folds(store: Store, prepared: Prepared) -> None:
    """The test patients of each outer fold, for what is trained per fold (--exclude-patients)."""
    for fold, patients in prepared.test_patients.items():
        store.write_bytes(f"{FOLDS}/test-{fold}.txt", ("\n".join(patients) + "\n").encode())


# --- searches -----------------------------------------------------------------------------------


def search(config: SweepJob, store: Store, prepared: Prepared, searches: Searches) -> None:
    """Runs the trials that are missing; each is kept as it ends."""
    journal = Journal(store)
    kept, total = journal.replay(searches), sum(search.trials for search in searches)
    if kept:
        log.event("resume", f"{kept} of {total} trials are there already", kept=kept)
    by_log = told_by_log(total - kept)

    def told(trial: Trial, record: Record) -> None:
        journal.add(trial.cell, record)
        by_log(trial, record)

    if config.backend == "local":
        run_here(prepared.trials, searches, told)
        return
    spent = run_on_ray(
        prepared.trials, searches, told, workers=config.workers, cpus=config.cpus_per_trial
    )
    if spent.trials:
        log.event(
            "searched",
            f"{spent.trials} trials took {log.duration(spent.trials_s)} in "
            f"{log.duration(spent.wall_s)}, {spent.side_by_side} side by side",
            trials_s=round(spent.trials_s, 2),
            wall_s=round(spent.wall_s, 2),
            overhead=round(spent.overhead, 3),
        )


# --- last fits ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted:
    """The weights of a cell's best setting, one for each seed; or why there are none."""

    cell: Cell
    best: Record | None
    names: tuple[str, ...]
    error: str = ""


def fit_last(
    config: SweepJob, store: Store, prepared: Prepared, searches: Searches
) -> list[Fitted]:
    """Fits the best setting of each search with every seed; what is there is taken."""
    tasks = [
        (config.out, search.cell, best.settings, seed)
        for search in searches
        if (best := search.best()) is not None
        for seed in range(config.seeds)
        if not _there(store, _weights(search.cell, seed))
    ]
    if tasks:
        workers = 0 if config.backend == "local" else (config.workers or _cpus())
        made = run_on_actors(
            _state,
            _fit,
            tasks,
            arguments=(prepared.trials,),
            workers=workers,
            cpus=config.cpus_per_trial,
        )
        with log.Progress("last fits", len(tasks)) as progress:
            for done, _ in enumerate(made):
                progress.update(done + 1)
    return [_fitted(store, search.cell, search.best(), config.seeds) for search in searches]


def _cpus() -> int:
    import os

    return max(1, len(os.sched_getaffinity(0)))


def _state(trials: Trials) -> Trials:
    return trials


def _fit(trials: Trials, out: str, cell: Cell, settings: dict[str, float], seed: int) -> None:
    """One last fit; what fails, fails alone, and says why in its place."""
    store, name = Store(out), _weights(cell, seed)
    try:
        weights = trials.fit(cell, settings, seed)
    except Exception as error:
        if not of_trial(error):
            raise
        store.write_bytes(name + FAILED, (short(error) + "\n").encode())
        return
    store.write_bytes(name, weights)


def _weights(cell: Cell, seed: int) -> str:
    return f"{WEIGHTS}/{cell.name}/{seed}.safetensors"


def _there(store: Store, name: str) -> bool:
    return store.exists(name) or store.exists(name + FAILED)


def _fitted(store: Store, cell: Cell, best: Record | None, seeds: int) -> Fitted:
    names = tuple(_weights(cell, seed) for seed in range(seeds))
    if best is None:
        return Fitted(cell, None, (), "all its trials failed")
    failed = [name for name in names if not store.exists(name)]
    if failed:
        return Fitted(cell, best, (), store.read_bytes(failed[0] + FAILED).decode().strip())
    return Fitted(cell, best, names)


# --- the test split -----------------------------------------------------------------------------


def look_once(store: Store, prepared: Prepared, fitted: list[Fitted]) -> None:
    """Asks all weights about the test rows, each set of weights once."""
    once: TestOnce[Any] = TestOnce(store, prepared.test_rows)
    for found in fitted:
        for seed, name in enumerate(found.names):
            predictions = _predictions(found.cell, seed)
            if store.exists(predictions):
                continue
            weights = store.read_bytes(name)
            rows = once.open(f"{found.cell.name}/{seed}", found.cell.fold, weights)
            _keep_truth(store, found.cell.fold, rows)
            said_NK = prepared.trials.predict(found.cell, weights, rows)
            content = save_arrays({"probabilities": np.ascontiguousarray(said_NK)})
            store.write_bytes(predictions, bytes(content))


def _predictions(cell: Cell, seed: int) -> str:
    return f"{PREDICTIONS}/{cell.name}/{seed}.safetensors"


def _truth(fold: int | None) -> str:
    return f"{TRUTH}/{'test' if fold is None else f'fold{fold}'}.json"


def _keep_truth(store: Store, fold: int | None, rows: Any) -> None:
    """Keys, patients and classes of the test rows, in the order of the predictions."""
    if not store.exists(_truth(fold)):
        content = {
            "keys": list(rows.keys),
            "patients": list(rows.patients),
            "labels": rows.labels_N.tolist(),
        }
        store.write_bytes(_truth(fold), (json.dumps(content) + "\n").encode())


def judged(
    config: SweepJob, store: Store, prepared: Prepared, plan: Plan, fitted: list[Fitted]
) -> tuple[list[Verdict], dict[str, str]]:
    """The verdicts, and by "arm at fraction" why there is none."""
    missing: dict[str, str] = {}
    for found in fitted:
        if not found.names:
            what = f"{found.cell.arm} at {found.cell.fraction:g}"
            missing[what] = f"{found.cell.name}: {found.error}"
            log.warn("arm_failed", f"arm {what} is not measured: {missing[what]}")
    verdicts: list[Verdict] = []
    for share in config.fractions:
        arms = [arm for arm in plan.arms if f"{arm} at {share:g}" not in missing]
        cells = {
            arm: [f for f in fitted if (f.cell.arm, f.cell.fraction) == (arm, share)]
            for arm in arms
        }
        if not cells:
            continue
        test = _test(store, next(iter(cells.values())), prepared.classes)
        said = {arm: _said(store, found, config.seeds) for arm, found in cells.items()}
        verdicts += judge(
            said,
            test,
            fraction=share,
            comparisons=comparisons(config, plan.arms),
            margin=config.margin,
            seed=config.seed,
            draws=config.interval_draws,
        )
    return verdicts, missing


def _test(store: Store, fitted: list[Fitted], classes: tuple[str, ...]) -> Test:
    parts = [json.loads(store.read_bytes(_truth(found.cell.fold))) for found in fitted]
    labels = [label for part in parts for label in part["labels"]]
    patients = tuple(patient for part in parts for patient in part["patients"])
    return Test(np.asarray(labels, np.int64), patients, classes)


def _said(store: Store, fitted: list[Fitted], seeds: int) -> Any:
    """What an arm says of all test rows, folds joined: (S, N, K)."""

    def of(seed: int) -> Iterator[Any]:
        for found in fitted:
            data = store.read_bytes(_predictions(found.cell, seed))
            yield load_arrays(data)["probabilities"]

    return np.stack([np.concatenate(list(of(seed))) for seed in range(seeds)])
