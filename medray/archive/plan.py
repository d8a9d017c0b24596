"""What an archive is: which addresses belong to which shard, and what each of them is to show.

Shard k of S samples owns the addresses [4kS, 4(k+1)S). Every target (a wanted label vector) has a
quota in it; the target of an address is a function of its index and the plan. So a shard is a
function of its number, and its size does not depend on what was dropped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from medray.errors import DataError, UsageError
from medray.store import Store

PLAN = "plan.json"
SCHEMA = "medray.archive/1"
# Addresses for each sample wanted: what labels and the gate may reject.
TRIES = 4
ENCODINGS = {"png": "png", "npy": "raw", "dicom": "png"}
UNLABELLED = ""


@dataclass(frozen=True)
class Goal:
    """So many samples of one target; without wanted labels: whatever comes."""

    target: str
    wanted: dict[str, int]
    count: int


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of an archive. Digests, not places; see `Places`."""

    generator_sha256: str
    latents_sha256: str | None
    classifier_sha256: str | None
    gate_sha256: str | None
    audited: bool
    min_probability: float
    seed: int
    goals: tuple[Goal, ...]
    classes: tuple[str, ...]
    samples_per_shard: int
    format: str
    px: int
    channels: int
    name: str
    body_part: str = ""
    render: dict[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Samples of the whole archive."""
        return sum(goal.count for goal in self.goals)

    @property
    def shards(self) -> int:
        """How many shards hold them."""
        return -(-self.count // self.samples_per_shard)

    @property
    def encoding(self) -> str:
        """How the shards store pixels."""
        return ENCODINGS[self.format]

    @cached_property
    def quotas(self) -> tuple[tuple[int, ...], ...]:
        """Samples of each goal in each shard; they add up to the goals exactly."""
        left = [goal.count for goal in self.goals]
        quotas = []
        for _ in range(self.shards):
            quota = apportion(left, min(self.samples_per_shard, sum(left)))
            left = [have - take for have, take in zip(left, quota, strict=True)]
            quotas.append(tuple(quota))
        return tuple(quotas)

    def shard_name(self, number: int) -> str:
        """The name of shard `number`."""
        return f"train-{number:06d}"

    def addresses(self, number: int) -> range:
        """The indices that shard `number` owns."""
        owned = TRIES * self.samples_per_shard
        return range(number * owned, (number + 1) * owned)

    def slots(self, number: int) -> list[int]:
        """The goals (their numbers) of a shard's samples, interleaved in its proportions."""
        spread = [
            ((k + 0.5) / quota, goal)
            for goal, quota in enumerate(self.quotas[number])
            for k in range(quota)
        ]
        return [goal for _, goal in sorted(spread)]

    def goal_of(self, index: int) -> int:
        """The number of the goal that an address is for."""
        owned = TRIES * self.samples_per_shard
        number, place = divmod(index, owned)
        if not 0 <= number < self.shards:
            raise UsageError(
                f"index {index} is not in this archive: it has 0 to {self.shards * owned - 1}"
            )
        slots = self.slots(number)
        return slots[place % len(slots)]

    def address(self, index: int) -> str:
        """The text that says which image it is, everywhere and for ever."""
        latents = (self.latents_sha256 or "prior")[:12]
        return f"mr1:{self.generator_sha256[:12]}:{latents}:{self.seed}:{index}"

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The plan as JSON has it."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the facts."""
        return digest_of(self.facts)


@dataclass(frozen=True)
class Places:
    """Where the inputs were; they may move, their digests stand in the plan."""

    generator: str
    latents: str | None = None
    classifier: str | None = None
    gate: str | None = None


def apportion(weights: Sequence[float], total: int) -> list[int]:
    """`total` in shares as near to `weights` as whole numbers are; no share above its weight where
    the weights are whole and add up to `total` or more. The larger remainder gets the odd one.
    """
    whole = sum(weights)
    exact = [weight * total / whole for weight in weights]
    shares = [int(value) for value in exact]
    by_remainder = sorted(range(len(weights)), key=lambda k: (shares[k] - exact[k], k))
    for k in by_remainder[: total - sum(shares)]:
        shares[k] += 1
    return shares


def parse_address(address: str) -> tuple[str, str, int, int]:
    """(generator, latents, seed, index) of an address; UsageError for any other text."""
    parts = address.split(":")
    try:
        tag, generator, latents, seed, index = parts
        if tag != "mr1" or int(seed) < 0 or int(index) < 0:
            raise ValueError
    except ValueError:
        raise UsageError(
            f"an address is mr1:GENERATOR:LATENTS:SEED:INDEX, got {address!r}"
        ) from None
    return generator, latents, int(seed), int(index)


def write_plan(store: Store, plan: Plan, places: Places) -> None:
    """Writes plan.json."""
    body = {"schema": SCHEMA, "hash": plan.hash, "plan": plan.facts, "places": asdict(places)}
    body["sha256"] = digest_of(body)
    store.write_bytes(PLAN, (json.dumps(body, indent=1, sort_keys=True) + "\n").encode())


def digest_of(body: dict[str, Any]) -> str:
    """SHA-256 of what JSON can say, whatever its spaces and the order of its keys."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_plan(store: Store) -> tuple[Plan, Places]:
    """The plan of an archive; UsageError where there is none, DataError if it is damaged."""
    where = f"{store.url}/{PLAN}"
    try:
        body = json.loads(store.read_bytes(PLAN))
        facts = body["plan"]
        goals = tuple(Goal(**goal) for goal in facts["goals"])
        plan = Plan(**{**facts, "goals": goals, "classes": tuple(facts["classes"])})
        places = Places(**body["places"])
        schema, stated = body["schema"], body.pop("sha256")
    except FileNotFoundError:
        raise UsageError(
            f"{store.url} holds no archive (no {PLAN})", hint="give what `medray archive` made"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"the plan cannot be read: {error}", code="MR-D071", where=where) from error
    if schema != SCHEMA or stated != digest_of(body) or body["hash"] != plan.hash:
        what = f"schema {schema!r}" if schema != SCHEMA else "the plan is not what its hash says"
        raise DataError(
            what, code="MR-D071", where=where, hint="copy plan.json back, or make it again"
        )
    return plan, places


def difference(old: Plan, new: Plan) -> str:
    """In words, what two plans differ in."""
    before, after = old.facts, new.facts
    changed = [name for name in after if before.get(name) != after[name]]
    return "; ".join(f"{name} was {before.get(name)!r}, is {after[name]!r}" for name in changed)
