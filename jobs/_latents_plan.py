"""What jobs/latents.py is to do, and the place it does it in."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jobs.latents import LatentsJob
from medray import log
from medray.errors import UsageError
from medray.sample.latents import ABOUT, Target, target_of
from medray.sample.latents_optimise import Pair, Settings, settings_record
from medray.store import Store, make_folder

PLAN, LOCK = "plan.json", ".lock"
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
        return _digest(self.facts)

    @property
    def chunks_hash(self) -> str:
        """SHA-256 of what a chunk is a function of, beside its target and number."""
        names = ("generator_sha256", "classifier_sha256", "classes", "seed")
        searched = {name: self.facts[name] for name in names}
        return _digest({**searched, **settings_record(self.settings)})


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


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


@contextlib.contextmanager
def alone(store: Store, what: str = "search") -> Iterator[None]:
    """Keeps a second `what` out of a folder; the kernel frees it when this process ends."""
    if not store.is_local:
        yield
        return
    make_folder(store.path())
    with open(store.path(LOCK), "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"another {what} is writing to {store.url}",
                hint="wait for it, or take another --out",
            ) from None
        yield


def start(store: Store, plan: Plan, overwrite: bool) -> bool:
    """Makes the place ready; whether there is nothing left to do."""
    there = [name for name in store.names() if name != LOCK]
    if overwrite and PLAN in there:
        for name in [n for n in there if n != PLAN] + [PLAN]:
            store.remove(name)
        there = []
    if not there:
        store.write_bytes(PLAN, _plan_json(plan))
        return False
    try:
        before = json.loads(store.read_bytes(PLAN))
    except (FileNotFoundError, ValueError):
        raise UsageError(
            f"--out {store.url} is not empty and holds no latents of this command",
            hint="take an empty place",
        ) from None
    if before["hash"] != plan.hash:
        raise UsageError(
            f"--out {store.url} holds latents of another plan: {_difference(before['plan'], plan)}",
            hint="take another --out, give the same flags, or --overwrite",
        )
    return ABOUT in there


def _plan_json(plan: Plan) -> bytes:
    content = {"hash": plan.hash, "plan": plan.facts}
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _difference(before: dict[str, Any], plan: Plan) -> str:
    return "; ".join(
        f"{name} was {before.get(name)!r}, is {plan.facts.get(name)!r}"
        for name in sorted({*before, *plan.facts})
        if before.get(name) != plan.facts.get(name)
    )
