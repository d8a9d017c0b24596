"""The wiring of jobs/latents.py: chunks by a pool of workers, fit, check, report."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from jobs import _latents_report as latents_report
from jobs import _out
from jobs._latents_plan import Plan, describe, make_plan, workers_of
from jobs.latents import LatentsJob
from medray import lineage, log
from medray.dist.pool import run_on_actors
from medray.errors import GateError, UsageError
from medray.models.weights import load_classifier, load_generator
from medray.sample.conditional import refuse_conditional
from medray.sample.images import Renderer
from medray.sample.latents import ABOUT, LatentModel, Target
from medray.sample.latents_check import Bench, Judge
from medray.sample.latents_fit import LEAST_LATENTS, fit
from medray.sample.latents_optimise import Chunk, Pair, Settings, optimise
from medray.store import Store

CHUNKS = "chunks"


@dataclass
class Found:
    """The chunks of one target, in order, and how many chunks it may have."""

    target: Target
    most_chunks: int
    chunks: list[Chunk] = field(default_factory=list)

    @property
    def accepted(self) -> int:
        """Latents accepted so far."""
        return sum(len(chunk.restarts_A) for chunk in self.chunks)


def search(config: LatentsJob) -> None:
    """Everything, from the networks to `latents.json`, which is written last."""
    pair, about, classifier_sha256 = load_pair(config.generator, config.classifier)
    judge, judge_sha256 = load_judge(config, pair)
    digests = {
        "generator": str(about["generator_sha256"]),
        "classifier": classifier_sha256,
        "judge": judge_sha256 or "",
    }
    plan = make_plan(config, pair, digests)
    # The judge and --real give figures for the report alone: no latent is a function of them.
    saw = lineage.united([config.generator, config.classifier])
    judge.wanted(plan.targets)
    if config.real is not None:
        latents_report.real_shards(config.real, config.real_split)
    workers = workers_of(config)
    if config.dry_run:
        describe(config, pair, plan, workers)
        return
    store = Store(config.out)
    with _out.alone(store, "search"):
        if _out.start(store, plan.facts, what="latents", done=ABOUT, overwrite=config.overwrite):
            log.event("complete", f"{config.out} is complete: nothing to do", plan=plan.hash)
            gate(config, json.loads(store.read_bytes(latents_report.SUMMARY)))
            return
        found = collect(config, plan, workers)
        model, reached = fitted(config, found, digests)
        unreached = [f for f in found if f.accepted < LEAST_LATENTS]
        renderer = Renderer(pair.generator, about, device=pair.device.type)
        bench = Bench(pair, renderer, judge, model.targets, config.threshold)
        figures = latents_report.write(store, config, bench, model, reached, unreached)
        lineage.write_known(store, saw)
        model.save(store)
    latents_report.say(store, figures)
    gate(config, figures)


def gate(config: LatentsJob, figures: dict[str, Any]) -> None:
    """GateError for targets with fewer accepted latents than --min-accepted."""
    found = {**figures["targets"], **figures["not_reached"]}
    missed = [name for name, of in found.items() if of["accepted"] < config.min_accepted]
    if missed:
        raise GateError(
            f"fewer than --min-accepted {config.min_accepted} latents were accepted for "
            f"{', '.join(missed)}",
            hint="more --steps, a lower --threshold, or a generator that has learnt them",
        )


# --- networks ---------------------------------------------------------------------------------


def load_pair(generator: str, classifier: str) -> tuple[Pair, dict[str, Any], str]:
    """Generator and classifier on this worker's device; about the one, digest of the other."""
    made, about = load_generator(generator)
    refuse_conditional(
        about,
        f"--generator {generator}",
        f"there is nothing to search for: medray archive --latents {generator}/latents draws them",
    )
    seen, seen_about = load_classifier(classifier)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pair = Pair(
        made.to(device),
        seen.to(device),
        generator_name=f"the generator {generator}",
        classifier_name=f"the classifier {classifier}",
        px=about["px"],
    )
    return pair, about, str(seen_about["classifier_sha256"])


def load_judge(config: LatentsJob, pair: Pair) -> tuple[Judge, str | None]:
    """The judge, and its digest; without one the classifier judges itself, and it is said."""
    if config.judge is None:
        return Judge(pair.classifier, "the classifier that steers", independent=False), None
    network, about = load_classifier(config.judge)
    if network.channels != pair.classifier.channels:
        raise UsageError(
            f"--judge {config.judge} takes images of {network.channels} channel(s), the generator "
            f"makes {pair.classifier.channels}"
        )
    sha256 = str(about["classifier_sha256"])
    own = Judge(network.to(pair.device), config.judge, independent=True)
    return own, sha256


# --- chunks -----------------------------------------------------------------------------------


def collect(config: LatentsJob, plan: Plan, workers: int) -> list[Found]:
    """Chunks of every target until it has as many latents as are wanted, or has started too often.

    How many a round makes follows from the rounds before it alone, so workers do not matter.
    """
    most = math.ceil(config.per_class * config.most_starts / config.restarts)
    found = [Found(target, most) for target in plan.targets]
    total = config.per_class * len(found)
    with log.Progress("optimising", total, "latents") as progress:
        while wanted := [key for n, f in enumerate(found) for key in _next(config, n, f)]:
            tell = functools.partial(_tell, progress, sum(f.accepted for f in found))
            for number, chunk in _round(config, plan, wanted, workers, tell):
                found[number].chunks.append(chunk)
    for target in found:
        if target.accepted < config.per_class:
            _warn_scarce(config, target)
    return found


def _tell(progress: log.Progress, before: int, new: int) -> None:
    progress.update(min(before + new, progress.total))


def _next(config: LatentsJob, number: int, found: Found) -> list[tuple[int, int]]:
    """(target, chunk) of the next round: as many as the acceptance so far lets expect."""
    missing, made = config.per_class - found.accepted, len(found.chunks)
    if missing <= 0:
        return []
    rate = max(found.accepted, 1) / (made * config.restarts) if made else 1.0
    chunks = min(math.ceil(missing / (rate * config.restarts)), max(made, 1) * 4)
    return [(number, made + k) for k in range(min(chunks, found.most_chunks - made))]


def _round(
    config: LatentsJob,
    plan: Plan,
    wanted: list[tuple[int, int]],
    workers: int,
    tell: Callable[[int], None],
) -> list[tuple[int, Chunk]]:
    """The wanted chunks, in order; those on disk are taken as they are."""
    store = Store(config.out)
    missing = [key for key in wanted if _read(store, plan, key) is None]
    if len(missing) < len(wanted):
        log.event("resume", f"{len(wanted) - len(missing)} chunks are there already")
    tasks = [
        (config.out, plan.chunks_hash, plan.targets[n], config.seed, n, k, plan.settings)
        for n, k in missing
    ]
    done = 0
    if tasks:
        made = run_on_actors(
            load_state,
            work,
            tasks,
            arguments=(config.generator, config.classifier),
            workers=workers,
            gpus=config.gpus_per_worker,
        )
        for _, accepted in made:
            done += accepted
            tell(done)
    return [(key[0], _whole(store, plan, key)) for key in wanted]


def load_state(generator: str, classifier: str) -> Pair:
    """What a worker holds: the two networks."""
    return load_pair(generator, classifier)[0]


def work(
    pair: Pair,
    out: str,
    plan_hash: str,
    target: Target,
    seed: int,
    number: int,
    chunk: int,
    settings: Settings,
) -> int:
    """Makes one chunk and publishes it; how many latents it has."""
    made = optimise(pair, target, seed, chunk, settings)
    Store(out).write_bytes(_name((number, chunk)), made.to_bytes(plan_hash))
    return len(made.restarts_A)


def _name(key: tuple[int, int]) -> str:
    return f"{CHUNKS}/{key[0]:03d}-{key[1]:05d}.safetensors"


def _read(store: Store, plan: Plan, key: tuple[int, int]) -> Chunk | None:
    try:
        return Chunk.from_bytes(store.read_bytes(_name(key)), plan.chunks_hash)
    except FileNotFoundError:
        return None


def _whole(store: Store, plan: Plan, key: tuple[int, int]) -> Chunk:
    chunk = _read(store, plan, key)
    assert chunk is not None, f"{_name(key)} was just made, and cannot be read"
    return chunk


# --- fit --------------------------------------------------------------------------------------


def _warn_scarce(config: LatentsJob, found: Found) -> None:
    starts = sum(chunk.starts for chunk in found.chunks)
    best = max((chunk.best_refused for chunk in found.chunks), default=0.0)
    log.warn(
        "scarce",
        f"{found.target.name}: {found.accepted:,} of {config.per_class:,} latents were accepted "
        f"after {starts:,} starts of at most {config.steps} steps; the best refused one reached "
        f"{best:.2f} of {config.threshold}",
        target=found.target.name,
        accepted=found.accepted,
    )


def fitted(
    config: LatentsJob, found: list[Found], digests: dict[str, str]
) -> tuple[LatentModel, list[Found]]:
    """The model over the targets that were reached; GateError where none was."""
    reached = [f for f in found if f.accepted >= LEAST_LATENTS]
    if not reached:
        raise GateError(
            f"no target was reached: {', '.join(config.classes)} have fewer than {LEAST_LATENTS} "
            "accepted latents each",
            hint="more --steps, a lower --threshold, or a generator that has learnt them",
        )
    latents = [
        np.concatenate([chunk.latents_AD for chunk in f.chunks])[: config.per_class]
        for f in reached
    ]
    model = LatentModel(
        targets=tuple(f.target for f in reached),
        gaussians=tuple(fit(latents, spread=config.spread)),
        generator_sha256=digests["generator"],
        classifier_sha256=digests["classifier"],
    )
    return model, reached
