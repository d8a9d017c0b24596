"""The wiring of jobs/evaluate.py: the gate, features by the pool, sections, what is left."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from jobs import _evaluate_tstr
from jobs._evaluate_plan import REPORT, SUMMARY, Plan, describe, make_plan, spec_of, start
from jobs.evaluate import EvaluateJob
from medray import log, report
from medray.dist.pool import run_on_actors
from medray.errors import DataError, GateError, UsageError
from medray.evaluate import chapter_validation, chapters, chapters_judged, extraction
from medray.evaluate import gate as gates
from medray.evaluate.audit import Pair
from medray.evaluate.extraction import Judge
from medray.evaluate.material import HOLDOUT, PLAIN, SYNTHETIC, TRAIN, Material
from medray.evaluate.memorisation import FACTS, TENSORS, Gate
from medray.evaluate.sections import CACHE, Section, kept
from medray.evaluate.sets import ImageSet, Rows, patients_apart
from medray.lease import FOLDER, acquire
from medray.store import Store

GATES = f"{CACHE}/gates"
GATE_FILES = (FACTS, TENSORS)
GATED = (SYNTHETIC, HOLDOUT)
Chapter = Callable[[Material], Section]


def make_gate(config: EvaluateJob) -> None:
    """Makes the gate of the real set in --out; the same set and flags give the same one again."""
    store = Store(config.out)
    names = ("train_split", "holdout_split")
    if config.dry_run:
        sizes = [f"{len(ImageSet(config.real, getattr(config, n))):,}" for n in names]
        log.event("dry_run", f"a gate of {sizes[0]} training and {sizes[1]} hold-out images")
        return
    lease = acquire(store)
    try:
        if [n for n in store.names() if not n.startswith(FOLDER) and n not in GATE_FILES]:
            raise UsageError(f"--out {store.url} holds other things than a gate")
        sha256 = gates.make(
            config.real,
            store,
            spec_of(config),
            train_split=config.train_split,
            holdout_split=config.holdout_split,
            seed=config.seed,
        )
    finally:
        lease.release()
    _tell_gate(Gate.load(store.url), sha256)


def _tell_gate(gate: Gate, sha256: str) -> None:
    caught = gate.facts.caught["all"]
    log.event(
        "gate",
        f"gate {sha256[:16]}: caught {caught:.0%} of {gate.facts.planted} planted copies, "
        f"thresholds {gate.facts.pixel_threshold:.4f} (pixels) and "
        f"{gate.facts.cosine_threshold:.4f} (embedding), {gate.facts.rule}",
        sha256=sha256,
        caught=caught,
    )
    if not gate.audits:
        log.warn(
            "gate_blind",
            f"the gate caught only {caught:.0%} of the planted copies: what it lets pass counts as "
            "unaudited (another --extractor, or a hold-out without near-copies of training images)",
        )


# --- the evaluation ---------------------------------------------------------------------------


def evaluate(config: EvaluateJob) -> None:
    """Judges the synthetic set; GateError where it holds a near-copy of a training image."""
    if config.workers and config.out.startswith("memory://"):
        raise UsageError("memory:// is in one process's memory: it goes with --workers 0 alone")
    judge = None if config.judge is None else Judge(config.judge)
    gate = None if config.gate is None else Gate.load(config.gate)
    digests = {
        "judge_sha256": None if judge is None else judge.sha256,
        "gate_sha256": None if gate is None else gate.sha256,
    }
    plan = make_plan(config, digests)
    if config.dry_run:
        describe(config, plan)
        return
    store = Store(config.out)
    lease = acquire(store)
    try:
        if start(store, plan, config.overwrite):
            log.event("complete", f"{config.out} is complete: nothing to do")
        else:
            material = gather(config, plan, judge, gate, store)
            write(store, config, plan, material)
        summary = json.loads(store.read_bytes(SUMMARY))
    finally:
        lease.release()
    _end(store, summary)


def gather(
    config: EvaluateJob, plan: Plan, judge: Judge | None, gate: Gate | None, store: Store
) -> Material:
    """Everything that is computed of images, by the pool where there are workers."""
    pair = _pair(config, plan, gate, store)
    _tell_gate(pair.gate, pair.gate.sha256)
    cache = store.child(CACHE)
    tasks = [
        (name, (images.store.url, part, name in GATED, cache.url))
        for name, images in plan.sets.items()
        for part in images.parts
    ]
    files: dict[int, str] = {}
    with log.Progress("features", sum(map(len, plan.sets.values()))) as progress:
        for number, file in run_on_actors(
            extraction.make_state,
            extraction.work,
            [task for _, task in tasks],
            arguments=(spec_of(config), config.judge, store.child(GATES).url),
            workers=config.workers,
        ):
            files[number] = file
            progress.update(sum(len(tasks[n][1][1].numbers) for n in files))
    rows: dict[str, Rows] = {}
    arrays = {}
    for name, images in plan.sets.items():
        mine = [files[number] for number, (of, _) in enumerate(tasks) if of == name]
        rows[name], arrays[name] = extraction.collected(cache, mine, images)
    patients_apart(rows[TRAIN], rows[HOLDOUT], (config.train_split, config.holdout_split))
    return Material(
        plan.sets, rows, arrays, plan.extractor, judge, pair, config.seed, config.bootstrap
    )


def _pair(config: EvaluateJob, plan: Plan, gate: Gate | None, store: Store) -> Pair:
    """The gate with its counterpart, as an earlier start left them or made now."""
    place = store.child(GATES)
    try:
        return Pair.load(place.url)
    except (UsageError, DataError):
        log.event("gate", "making the gate" if gate is None else "holding the gate to the hold-out")
    train, holdout = plan.sets[TRAIN], plan.sets[HOLDOUT]
    if gate is None:
        gate = Gate.of_batches(
            train.images(),
            holdout.images(),
            len(holdout),
            extractor=plan.extractor,
            seed=config.seed,
        )
    elif not _is_gate_of(gate, train):
        raise UsageError(
            f"--gate was made of {gate.facts.train_images:,} other images than the {len(train):,} "
            f"of --real in split {config.train_split}",
            hint="give the gate of this set, or leave --gate out to make one",
        )
    pair = Pair.of(gate, holdout.images())
    pair.save(place)
    return pair


def _is_gate_of(gate: Gate, train: ImageSet) -> bool:
    """Whether the gate was made of these images, in this order: by count and by a few of them."""
    if gate.facts.train_images != len(train):
        return False
    numbers = sorted({0, len(train) // 2, len(train) - 1})
    found: list[int] = gate.judge(train.take(numbers)).nearest_N.tolist()
    return found == numbers


# --- what is left -----------------------------------------------------------------------------


def chapters_of(
    config: EvaluateJob, plan: Plan, material: Material, store: Store
) -> Iterator[tuple[str, Chapter]]:
    """The chapters that this evaluation has, in the order of the page."""
    yield "overview", chapters.overview
    yield "memorisation", chapters_judged.memorisation
    yield "distances", chapters.distances
    if config.validation_images:
        yield "validation", chapter_validation.chapter(config.validation_images)
    yield "variety", chapters.variety
    if material.judge is not None:
        yield "labels", chapters_judged.labels
        if material.has(PLAIN):
            yield "diseases", chapters_judged.diseases
    yield "membership", chapters.members
    if config.tstr_images:
        yield "tstr", _evaluate_tstr.chapter(config, plan, store)


def write(store: Store, config: EvaluateJob, plan: Plan, material: Material) -> None:
    """Makes every section that is not there, then the page, then the summary."""
    sections: list[Section] = []
    chosen = list(chapters_of(config, plan, material, store))
    with log.Progress("report", len(chosen), "sections") as progress:
        for number, (name, chapter) in enumerate(chosen):
            progress.update(number)
            make = _bound(chapter, material)
            sections.append(kept(store, name, {**plan.facts, **material.facts()}, make))
            log.debug("section", name)
    figures: dict[str, Any] = {"schema": plan.facts["schema"], "plan": plan.hash}
    for section in sections:
        figures |= section.figures
    figures["audited"] = bool(figures["gate"]["audits"] and not figures["near_copies"])
    parts = [(section.heading, section.html()) for section in sections]
    facts = json.dumps(plan.facts, indent=1, sort_keys=True)
    parts.append(("What decided this report", report.preformatted(facts)))
    title = f"Evaluation of {plan.sets[SYNTHETIC].index.name}"
    store.write_bytes(REPORT, report.page(title, parts).encode())
    text = json.dumps(figures, indent=1, allow_nan=False) + "\n"
    store.write_bytes(SUMMARY, text.encode())


def _bound(chapter: Chapter, material: Material) -> Callable[[], Section]:
    return lambda: chapter(material)


def _end(store: Store, summary: dict[str, Any]) -> None:
    """Says how it went; GateError where near-copies were found."""
    keys = [k for k in summary if k.startswith(("fid", "kid")) and "_ci_" not in k]
    shown = [*keys, "precision", "recall", "density", "coverage", "hit_rate", "hit_rate_over_real"]
    figures = {key: summary[key] for key in shown if isinstance(summary.get(key), float)}
    words = "\n".join(f"  {key:24s} {value:.4g}" for key, value in figures.items())
    log.event("done", f"report: {store.url}/{REPORT}\n{words}", **figures)
    if summary["near_copies"]:
        images = summary["images"][SYNTHETIC]
        raise GateError(
            f"{summary['near_copies']:,} of {images:,} synthetic images are near-copies of "
            f"training images; {store.url}/{REPORT} shows the closest",
            hint="drop them: make the archive with --gate, or train the generator for less long",
        )
