"""What jobs/latents.py is to do, and the place it does it in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from jobs._out import plan_hash
from jobs.latents import LatentsJob
from medray import log
from medray.errors import UsageError
from medray.sample.latents import Target, target_of
from medray.sample.latents_optimise import Pair, Settings, settings_record

SCHEMA = "medray.latents-plan/1"


@dataclass(frozen=True)
class Plan:
    """What decides the result: the weights by digest, the targets, the settings."""

    facts: dict[str, Any]
    targets: tuple[Target, ...]
    settings: Settings

    @property
    def hash(self) -> str:
        """SHA-256 of the facts."""
        return plan_hash(self.facts)

    @property
    def chunks_hash(self) -> str:
        """SHA-256 of what a chunk is a function of, beside its target and number."""
        names = ("generator_sha256", "classifier_sha256", "classes", "seed")
        searched = {name: self.facts[name] for name in names}
        return plan_hash({**searched, **settings_record(self.settings)})


def make_plan(config: LatentsJob, pair: Pair, digests: dict[str, Any]) -> Plan:
    """The plan; UsageError for classes that the classifier does not know."""
    classifier = pair.classifier
    targets = tuple(
        target_of(name, classifier.classes, classifier.multi_label) for name in config.classes
    )
    settings = Settings(
        steps=config.steps,
        lr=config.lr,
        threshold=config.threshold,
        slots=config.slots,
        restarts=config.restarts,
        shell=config.shell,
        anchor=config.anchor,
    )
    names = "seed per_class most_starts spread check_images plain_images real real_split".split()
    facts = {
        "schema": SCHEMA,
        **{f"{name}_sha256": digest for name, digest in digests.items()},
        "classes": list(config.classes),
        **{name: getattr(config, name) for name in names},
        **settings_record(settings),
    }
    return Plan(facts, targets, settings)


def workers_of(config: LatentsJob) -> int:
    """How many Ray workers at most, 0 for none."""
    workers = config.workers
    if workers is None:
        workers = (os.cpu_count() or 1) if os.environ.get("RAY_ADDRESS") else 0
    if workers and config.out.startswith("memory://"):
        raise UsageError("memory:// is in one process's memory: it goes with --workers 0 alone")
    return workers


def describe(config: LatentsJob, pair: Pair, plan: Plan, workers: int) -> None:
    """Says what the search would take."""
    starts = config.per_class * len(plan.targets)
    log.event(
        "dry_run",
        f"{len(plan.targets)} targets ({', '.join(config.classes)}), {config.per_class:,} latents "
        f"of {pair.dims} dimensions each, images of {pair.px} px; {starts:,} to "
        f"{int(starts * config.most_starts):,} starts of at most {config.steps} steps, "
        f"{workers or 'no'} Ray workers; nothing was written",
        plan=plan.hash,
    )
