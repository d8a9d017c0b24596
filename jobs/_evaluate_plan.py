"""What jobs/evaluate.py is to do, and the place it does it in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from jobs.evaluate import EvaluateJob
from medray import log
from medray.config import absolute
from medray.errors import UsageError
from medray.evaluate.material import HOLDOUT, PLAIN, SYNTHETIC, TEST, TRAIN
from medray.evaluate.sets import ImageSet, same_kind
from medray.lease import FOLDER
from medray.models.extract import Extractor
from medray.store import Store

PLAN, SUMMARY, REPORT = "plan.json", "summary.json", "report.html"
SCHEMA = "medray.evaluation/1"
# Where things are and how the work is done: these decide nothing.
NOT_IN_PLAN = frozenset("real synthetic unconditional judge gate extractor workers".split())


@dataclass(frozen=True)
class Plan:
    """The sets by name, and what decides the report."""

    sets: dict[str, ImageSet]
    extractor: Extractor
    facts: dict[str, Any]

    @property
    def hash(self) -> str:
        """SHA-256 of the facts."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()


def make_plan(config: EvaluateJob, digests: dict[str, str | None]) -> Plan:
    """The plan; DataError where a split is absent or sets differ in kind."""
    sets = _sets(config)
    same_kind(*sets.values())
    extractor = Extractor.load(spec_of(config))
    from medray import config as configuration

    facts = {
        "schema": SCHEMA,
        **configuration.identity(config, leave_out=NOT_IN_PLAN),
        "sets": {name: images.sha256 for name, images in sets.items()},
        "extractor": extractor.record(),
        **digests,
    }
    return Plan(sets, extractor, facts)


def spec_of(config: EvaluateJob) -> str:
    """The extractor, its path made absolute."""
    spec = config.extractor
    return spec if spec.startswith("random:") else absolute(spec)


def _sets(config: EvaluateJob) -> dict[str, ImageSet]:
    most = config.max_images
    assert config.synthetic is not None
    sets = {
        TRAIN: ImageSet(config.real, config.train_split, "the real set", most),
        HOLDOUT: ImageSet(config.real, config.holdout_split, "the real set", most),
        SYNTHETIC: ImageSet(config.synthetic, config.synthetic_split, "the synthetic set", most),
    }
    index = sets[TRAIN].index
    if index.of_split(config.test_split):
        sets[TEST] = ImageSet(config.real, config.test_split, "the real set", most)
    elif config.tstr_images:
        raise UsageError(
            f"--tstr-images tests classifiers on real images, and --real has no split "
            f"{config.test_split!r}",
            hint="name a split with --test-split, or leave --tstr-images out",
        )
    if config.unconditional is not None:
        sets[PLAIN] = ImageSet(config.unconditional, None, "the unconditional set", most)
    return sets


def start(store: Store, plan: Plan, overwrite: bool) -> bool:
    """Makes the place ready; whether there is nothing left to do. UsageError: another plan."""
    there = [name for name in store.names() if not name.startswith(f"{FOLDER}/")]
    if overwrite and PLAN in there:
        # The plan last: what is left after a kill is still known for what it is.
        for name in sorted(there, key=lambda name: name == PLAN):
            store.remove(name)
        there = []
    if not there:
        body = {"hash": plan.hash, "plan": plan.facts}
        store.write_bytes(PLAN, (json.dumps(body, indent=1, sort_keys=True) + "\n").encode())
        return False
    try:
        before = json.loads(store.read_bytes(PLAN))
        held, facts = before["hash"], before["plan"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"--out {store.url} is not empty and holds no evaluation",
            hint="take an empty place (--overwrite removes evaluations alone)",
        ) from None
    if held != plan.hash:
        raise UsageError(
            f"--out {store.url} holds an evaluation of another plan: {_difference(facts, plan)}",
            hint="take another --out, give the same flags and sets, or --overwrite",
        )
    return SUMMARY in there


def _difference(before: dict[str, Any], plan: Plan) -> str:
    return "; ".join(
        f"{name} was {before.get(name)!r}, is {plan.facts.get(name)!r}"
        for name in sorted({*before, *plan.facts})
        if before.get(name) != plan.facts.get(name)
    )


def describe(config: EvaluateJob, plan: Plan) -> None:
    """Says what the evaluation would take."""
    sets = ", ".join(f"{name} {len(images):,}" for name, images in plan.sets.items())
    widest = max(len(images) for images in plan.sets.values())
    log.event(
        "dry_run",
        f"images: {sets}, each {plan.sets[TRAIN].kind}; extractor {plan.extractor.name}, judge "
        f"{config.judge or 'none'}, {config.workers or 'no'} Ray workers; features of "
        f"{widest:,} images in memory at most; nothing was written",
        plan=plan.hash,
    )
