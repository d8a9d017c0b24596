"""What jobs/sweep.py searches and tests on: rows by fraction and fold, and what may not be used.

Shape letters: N rows, D features.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jobs._sweep_tables import Tables, check_same, only, url_of
from jobs.sweep import SweepJob
from medray import lineage, log
from medray.errors import DataError, UsageError
from medray.stream import Roster, Source
from medray.stream.table import FeatureTable
from medray.train import fraction, mixture, targets
from medray.tune import folds
from medray.tune.data import Part, Rows, SearchData
from medray.tune.features import FeatureTrials
from medray.tune.head import HeadConfig
from medray.tune.images import ImageTrials, rows_of
from medray.tune.trial import Trials

INNER = 3
KINDS = {"train": "train on", "val": "choose by", "test": "test on"}


@dataclass(frozen=True)
class Prepared:
    """The trials, which hold no test row, and what gives the test rows of a fold."""

    trials: Trials
    classes: tuple[str, ...]
    test_rows: Callable[[int | None], Any]
    told: str
    urls: tuple[str, ...]
    test_patients: dict[int, list[str]] = field(default_factory=dict)


def prepare(config: SweepJob, pools_url: str | None) -> Prepared:
    """Reads what is there; UsageError and DataError for what cannot be swept, or may not be."""
    if config.on_images:
        return _on_images(config)
    source = Tables(config)
    classes = _classes(config, source.table(0 if config.folds else None, "train"))
    numbers: list[int | None] = [*range(config.folds)] or [None]
    data = {
        (share, fold): _search_data(config, source, classes, share, fold)
        for share in config.fractions
        for fold in numbers
    }
    trials = FeatureTrials(
        data,
        seed=config.seed,
        seeds=config.seeds,
        head=HeadConfig(hidden=config.hidden, steps=config.steps),
        select=config.select,
        ratio_of=config.ratio_of,
        largest_ratio=max(config.ratios),
        pools_url=pools_url,
        acgan={"total_images": config.acgan_images},
    )
    rows = {fold: len(data[config.fractions[-1], fold].rows) for fold in numbers}
    said = ", ".join(f"{n:,}" for n in rows.values())
    patients = {
        fold: sorted(p for p, k in source.folds(fold).items() if k == fold)
        for fold in range(config.folds)
    }
    return Prepared(
        trials,
        classes,
        functools.lru_cache(maxsize=None)(functools.partial(_test_rows, config, source, classes)),
        f"{said} rows to train on and choose by, of {len(classes)} classes",
        source.urls,
        patients,
    )


# --- rows ---------------------------------------------------------------------------------------


def _classes(config: SweepJob, table: FeatureTable) -> tuple[str, ...]:
    present = set(table.labels)
    if absent := [name for name in config.classes if name not in present]:
        raise UsageError(
            f"--classes: no training sample has {', '.join(absent)}",
            hint=f"there are {', '.join(sorted(p for p in present if p))}",
        )
    found = config.classes or tuple(name for name in table.classes if name in present)
    if len(found) < 2:
        what = f"one class only ({found[0]})" if found else "no sample has a class"
        raise DataError(
            f"{what}: there is nothing to tell apart",
            code="MR-D071",
            where=table.url,
            hint="give a set with two classes or more",
        )
    return found


def _rows(table: FeatureTable, classes: tuple[str, ...], unit: str) -> Rows:
    kept = only(table, classes)
    kept = kept.per_patient() if unit == "patient" and len(kept) else kept
    labels_N = np.asarray([classes.index(str(name)) for name in kept.labels], np.int64)
    return Rows(np.ascontiguousarray(kept.features), labels_N, kept.patients, kept.keys)


def _in_fraction(config: SweepJob, table: FeatureTable, share: float) -> FeatureTable:
    """The rows of the patients whose labels may be used: the same that medray classify takes."""
    chosen = fraction.in_fraction(
        fraction.labels_by_patient(table.facts()), share, config.fraction_seed
    )
    return table.take([n for n, patient in enumerate(table.patients) if patient in chosen])


def _search_data(
    config: SweepJob, source: Tables, classes: tuple[str, ...], share: float, fold: int | None
) -> SearchData:
    """The rows of a fraction and a fold that may be searched on, and what made them checked."""
    table, held, allowed_split = source.table(fold, "train"), set[str](), fold is None
    if fold is not None:
        fold_of = source.folds(fold)
        held = {patient for patient, number in fold_of.items() if number == fold}
        test = [n for n, patient in enumerate(table.patients) if patient in held]
        table, tested = (
            table.take([n for n, p in enumerate(table.patients) if p not in held]),
            table,
        )
        held |= _samples_of(tested.take(test), table)
    chosen = _in_fraction(config, table, share)
    rows = _rows(chosen, classes, config.unit)
    inner = config.inner or (0 if allowed_split else INNER)
    if inner:
        names = [classes[k] for k in rows.labels_N]
        parts = folds.parts_of(rows.patients, names, inner, config.seed)
    else:
        val = source.table(None, "val")
        check_same(table, val)
        rows, parts = _with_val(rows, _rows(val, classes, config.unit))
        held |= {*val.patients, *_samples_of(val, table)}
    if allowed_split:
        held |= _test_names(config, source) - set(table.samples)
        _refuse_met(table, held)
    _refuse(config, fold, held, _outside(table, chosen))
    archive = source.archive(fold)
    if archive is not None:
        check_same(table, archive)
    synthetic = None if archive is None else _rows(archive, classes, "sample")
    for part in parts:
        _warn_absent(rows.take(part.val), classes, "val")
        _warn_few(rows.take(part.train), classes, share)
    _warn_alone(rows, classes)
    return SearchData(rows, tuple(parts), classes, synthetic).check(frozenset(), table.url)


def _samples_of(held: FeatureTable, table: FeatureTable) -> set[str]:
    """Images held out, but for those that are training images too: blank slices are all alike."""
    return set(held.samples) - set(table.samples)


def _with_val(train: Rows, val: Rows) -> tuple[Rows, list[Part]]:
    both = Rows(
        np.concatenate([train.features_ND, val.features_ND]),
        np.concatenate([train.labels_N, val.labels_N]),
        (*train.patients, *val.patients),
        (*train.keys, *val.keys),
    )
    numbers = np.arange(len(both))
    return both, [Part(numbers[: len(train)], numbers[len(train) :])]


def _test_rows(
    config: SweepJob, source: Tables, classes: tuple[str, ...], fold: int | None
) -> Rows:
    """The test rows: called by `TestOnce` alone."""
    if fold is None:
        table = source.table(None, "test")
        check_same(source.table(None, "train"), table)
    else:
        fold_of, table = source.folds(fold), source.table(fold, "train")
        table = table.take([n for n, p in enumerate(table.patients) if fold_of.get(p) == fold])
    rows = _rows(table, classes, config.unit)
    if not len(rows):
        raise DataError("no test row has a class", code="MR-D418", where=table.url)
    _warn_absent(rows, classes, "test")
    return rows


# --- what may not be used -----------------------------------------------------------------------


def _test_names(config: SweepJob, source: Tables) -> set[str]:
    """Patients and samples of the test split, from its records alone."""
    urls = (config.features,) if config.features else source.images
    roster = Roster([Source(url) for url in urls if url], "test", config.cache_dir)
    facts = list(roster.facts)
    patients = {targets.patient_of(fact) for fact in facts if fact.patient}
    return patients | mixture.names_in(roster, facts)


def _refuse_met(table: FeatureTable, held: set[str]) -> None:
    known = {patient for patient in table.patients if not patient.startswith("sample ")}
    if met := known & held:
        raise DataError(
            f"{len(met)} patient(s) of the train split are in val or test too",
            code="MR-D411",
            where=table.url,
            hint="pack the set with a split by patient",
        )


def _outside(table: FeatureTable, chosen: FeatureTable) -> set[str]:
    """Samples and patients of the set whose labels are not those of the fraction."""
    everyone, allowed = ({*t.samples, *t.patients} for t in (table, chosen))
    return everyone - allowed


def _refuse(config: SweepJob, fold: int | None, held: set[str], outside: set[str]) -> None:
    for url in (config.features, config.synthetic):
        if url is not None:
            refuse_artefact(url_of(url, fold), held, outside)


def refuse_artefact(url: str, held: set[str], outside: set[str]) -> None:
    """DataError for an artefact that saw who is held out, or a label outside the fraction.

    Labels of other sets (phantoms, a set to pre-train on) are no labels of this one: only those of
    `outside`, samples or patients of the set that the fraction leaves out, are.
    """
    saw = lineage.read(url)
    used = () if saw is None else saw.entries
    fine = {s.sample for s in used if s.sample not in outside and s.patient not in outside}
    lineage.refuse(url, patients=held, labels=fine)


def _warn_absent(rows: Rows, classes: tuple[str, ...], split: str) -> None:
    if not len(rows):
        raise DataError(f"there is no row to {KINDS[split]}", code="MR-D418")
    absent = [name for k, name in enumerate(classes) if not (rows.labels_N == k).any()]
    if absent:
        log.warn(
            "class_absent",
            f"no row to {KINDS[split]} has {', '.join(absent)}: no figures for it there",
            split=split,
            classes=absent,
        )


def _warn_few(rows: Rows, classes: tuple[str, ...], share: float) -> None:
    counts = np.bincount(rows.labels_N, minlength=len(classes))
    if few := [name for name, count in zip(classes, counts, strict=True) if count < 2]:
        log.warn(
            "too_few",
            f"at {share:.0%} of the labels {', '.join(few)} has fewer than 2 rows to train on: "
            "what is fitted on them (smote, adasyn, gaussian, acgan) draws none of it",
            classes=few,
        )


def _warn_alone(rows: Rows, classes: tuple[str, ...]) -> None:
    for k, name in enumerate(classes):
        whose = {rows.patients[n] for n in np.flatnonzero(rows.labels_N == k)}
        if len(whose) == 1:
            log.warn("one_patient", f"class {name} has one patient: what is said of it is of them")


# --- images -------------------------------------------------------------------------------------


def _on_images(config: SweepJob) -> Prepared:
    trials = ImageTrials(
        config.data,
        config.synthetic,
        {
            "size_px": config.size_px,
            "width": config.model_width,
            "total_images": config.total_images,
            "batch": config.batch,
        },
        fraction_seed=config.fraction_seed,
        seed=config.seed,
        seeds=config.seeds,
        select=config.select,
        ratio_of=config.ratio_of,
        cache_dir=config.cache_dir,
    )
    test = Roster([Source(url) for url in config.data], "test", config.cache_dir)
    names = {
        split: mixture.names_in(roster, roster.facts)
        for split, roster in (("val", trials.val.roster), ("test", test))
    }
    train = mixture.patients_in(trials.train, trials.train.facts)
    if met := train & (names["val"] | names["test"]):
        raise DataError(
            f"{len(met)} patient(s) of the train split are in val or test too",
            code="MR-D411",
            where=trials.train.name,
            hint="pack the set with a split by patient",
        )
    known = mixture.names_in(trials.train, trials.train.facts)
    for share in config.fractions if config.synthetic else ():
        outside = known - mixture.names_in(trials.train, trials.facts_of(share))
        refuse_artefact(str(config.synthetic), names["val"] | names["test"], outside)
    count = len(trials.facts_of(config.fractions[-1]))
    return Prepared(
        trials,
        trials.task.classes,
        lambda fold: rows_of(test, trials.task),
        f"{count:,} images to train on, {len(trials.val.keys):,} to choose by",
        (*config.data, *([config.synthetic] if config.synthetic else [])),
    )
