"""What jobs/sweep.py is to do: the searches, and the plan that a second start must agree with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from jobs import _out
from jobs._sweep_data import Prepared
from jobs.sweep import ON_FEATURES, ON_IMAGES, SweepJob
from medray import config as configuration
from medray import lineage, log
from medray.errors import UsageError
from medray.store import Store
from medray.tune import spaces
from medray.tune.cells import cells_of
from medray.tune.search import Search, Searches
from medray.tune.verdict import BASELINE

SUMMARY = "summary.json"
SCHEMA = "medray.sweep-plan/1"
# How a sweep is carried out: it finds the same.
CARRIED_OUT = frozenset("backend workers cpus_per_trial cache_dir".split())


@dataclass(frozen=True)
class Plan:
    """What decides the result: the flags, the sets by digest, the classes, the arms."""

    facts: dict[str, Any]
    arms: tuple[str, ...]

    @property
    def hash(self) -> str:
        """SHA-256 of the facts."""
        return _out.plan_hash(self.facts)


def arms_of(config: SweepJob) -> tuple[str, ...]:
    """The arms, the baseline among them; UsageError for those that do not fit what is given."""
    usual = ON_IMAGES if config.on_images else ON_FEATURES
    given = config.arms or usual + (spaces.NEEDS_ARCHIVE if config.synthetic else ())
    for arm in given:
        spaces.space_of(arm, config.ratios, images=config.on_images)
        if arm in spaces.NEEDS_ARCHIVE and config.synthetic is None:
            raise UsageError(f"arm {arm} needs an archive: give --synthetic")
    return given if BASELINE in given else (BASELINE, *given)


def make_plan(config: SweepJob, prepared: Prepared, arms: tuple[str, ...]) -> Plan:
    """The plan of a sweep."""
    given = configuration.identity(config, leave_out=CARRIED_OUT)
    facts = {
        "schema": SCHEMA,
        **given,
        "arms": list(arms),
        "of_classes": list(prepared.classes),
        "sets": {url: _digest(url) for url in prepared.urls},
    }
    return Plan(json.loads(json.dumps(facts)), arms)


def _digest(url: str) -> str:
    """Of a set: its index, and what it says that it saw."""
    digest = hashlib.sha256()
    for name in ("index.json", lineage.SEEN):
        if Store(url).exists(name):
            digest.update(Store(url).read_bytes(name))
    return digest.hexdigest()


def searches_of(config: SweepJob, prepared: Prepared, arms: tuple[str, ...]) -> Searches:
    """A search for each arm, fraction and fold."""
    return Searches(
        [
            Search(
                cell,
                spaces.space_of(cell.arm, config.ratios, images=config.on_images),
                prepared.trials.steps(cell),
                trials=config.trials,
                width=config.width,
                eta=config.eta,
                seed=config.seed,
            )
            for cell in cells_of(arms, config.fractions, config.folds)
        ]
    )


def comparisons(config: SweepJob, arms: tuple[str, ...]) -> int:
    """Differences that the verdict speaks of: arms but the baseline, at every fraction."""
    return max(1, (len(arms) - 1) * len(config.fractions))


def describe(config: SweepJob, prepared: Prepared, plan: Plan, searches: Searches) -> None:
    """Says what the sweep would take: a fit is timed."""
    import time

    cells = [search.cell for search in searches]
    first = next(iter(searches))
    start_s = time.monotonic()
    prepared.trials.score(first.cell, spaces.start_of(first.space), 0)
    fit_s = time.monotonic() - start_s
    fits = sum(search.trials * search.steps for search in searches)
    last = sum(prepared.trials.steps(cell) for cell in cells)
    log.event(
        "dry_run",
        f"{len(cells)} searches ({', '.join(plan.arms)}), {config.trials} trials each, "
        f"{prepared.told}; at most {fits + last:,} fits of {fit_s:.2f} s (measured, on one CPU): "
        f"{log.duration((fits + last) * fit_s)} of CPU time, less what is stopped early; "
        "nothing was written",
        plan=plan.hash,
        fits=fits + last,
        fit_s=round(fit_s, 3),
    )
