"""An archive checked (digests, counts, addresses, images made again), mended; one image again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medray import log, rng, shards
from medray.archive.archive import Run, drop_parts, holding, index_of
from medray.archive.plan import Plan, parse_address, read_plan
from medray.archive.worker import STATE, Result, Worker, finished, manifest_name
from medray.errors import DataError, UsageError
from medray.records import Sample, Shard, ShardIndex
from medray.sample.images import TOLERANCE
from medray.shards import INDEX, ShardReader, open_shard
from medray.store import Store

SAMPLED = 64


@dataclass(frozen=True)
class Remade:
    """A sample of addresses made again: how many, how far off, and which promise was tested."""

    images: int
    differing: int
    largest: int
    promise: str

    def text(self) -> str:
        """In a line."""
        return (
            f"{self.images} images made again: {self.differing} differ, by {self.largest} grey "
            f"levels at most; the promise tested: {self.promise}"
        )


# --- digests, counts, addresses -----------------------------------------------------------------


def verify(store: Store) -> list[DataError]:
    """Everything wrong with an archive but for its pixels: digests, counts, addresses, manifests.

    Empty where nothing is. UsageError where there is no archive.
    """
    plan, _ = read_plan(store)
    found = shards.verify(store)
    if not store.exists(INDEX):
        return found
    with log.Progress("checking", plan.shards, "shards") as progress:
        for number in range(plan.shards):
            progress.update(number)
            result = finished(store, plan, number)
            if result is None:
                what = "the shard or its manifest is missing, damaged or of another plan"
                found.append(DataError(what, code="MR-D072", where=plan.shard_name(number)))
                continue
            found += _check_addresses(store, plan, result)
    if not found and shards.read_index(store) != index_of(plan, _shards(store, plan)):
        what = "the index is not the one that these shards give"
        found.append(DataError(what, code="MR-D072", where=f"{store.url}/{INDEX}"))
    return found


def _shards(store: Store, plan: Plan) -> list[Shard]:
    results = (finished(store, plan, number) for number in range(plan.shards))
    return [result.shard for result in results if result is not None]


def _check_addresses(store: Store, plan: Plan, result: Result) -> Iterator[DataError]:
    """Addresses outside their shard (so in two shards too) or there twice; counts that are not so.

    Addresses ascend, so one that is not above the one before is double or out of place.
    """
    slots, owned = plan.slots(result.number), plan.addresses(result.number)
    counts = [0] * len(plan.goals)
    first, last = result.number * plan.samples_per_shard, -1
    reader = open_shard(store, result.shard)
    for number in range(len(reader)):
        where = f"{result.shard.name} key {reader.rows[number]['key']}"
        index, address = _address(reader, number)
        goal = slots[(index - owned.start) % len(slots)]
        counts[goal] += 1
        if index not in owned or address != plan.address(index):
            yield DataError(f"{address} is not of this shard", code="MR-D073", where=where)
        if index <= last:
            yield DataError(
                f"{address} is there twice, or out of order", code="MR-D073", where=where
            )
        if reader.rows[number]["key"] != f"train-{first + number:08d}":
            yield DataError("the key is not that of its place", code="MR-D073", where=where)
        last = index
    if counts != list(plan.quotas[result.number]):
        what = f"it holds {counts} of its goals, the plan says {plan.quotas[result.number]}"
        yield DataError(what, code="MR-D073", where=result.shard.name)


def _address(reader: ShardReader, number: int) -> tuple[int, str]:
    about = reader.record(number).get("provenance") or {}
    return int(about.get("index", -1)), str(about.get("address"))


# --- images made again --------------------------------------------------------------------------


def remake(worker: Worker, count: int, seed: int) -> tuple[Remade, list[DataError]]:
    """Makes `count` random images of an archive again and compares: the errors are those too far.

    Under the render of the archive the pixels must be equal; under another, within one grey level
    in float32, eight in bfloat16.
    """
    plan, store = worker.plan, worker.store
    same = worker.parts.renderer.record() == plan.render
    tolerance = 0 if same else TOLERANCE[plan.render["dtype"]]
    promise = "same render, equal bytes" if same else f"other render, {tolerance} grey level(s)"
    numbers = rng.integers(seed, "archive.verify", np.arange(count), 1, 0, plan.count)[:, 0]
    found: list[DataError] = []
    differing = largest = 0
    for place in sorted(set(numbers.tolist())):
        shard, number = divmod(place, plan.samples_per_shard)
        result = finished_or_raise(store, plan, shard)
        stored = open_shard(store, result.shard).sample(number)
        assert stored.provenance is not None, "verified before"
        index = stored.provenance.index
        image = worker.images([index], [plan.goal_of(index)])[0]
        off = int(np.abs(image.astype(np.int16) - stored.image).max())
        differing, largest = differing + (off > 0), max(largest, off)
        if off > tolerance:
            what = f"made again it differs by {off} grey levels, {tolerance} are allowed"
            where = f"{result.shard.name} key {stored.key}"
            found.append(DataError(what, code="MR-D074", where=where))
    return Remade(len(set(numbers.tolist())), differing, largest, promise), found


def finished_or_raise(store: Store, plan: Plan, number: int) -> Result:
    """The result of a shard; DataError where it is not whole."""
    result = finished(store, plan, number)
    if result is None:
        raise DataError(
            "the shard is missing or damaged",
            code="MR-D072",
            where=f"{store.url}/{plan.shard_name(number)}",
            hint="medray archive --out ARCHIVE --repair makes it again",
        )
    return result


# --- mended -------------------------------------------------------------------------------------


def repair(store: Store, plan: Plan, run: Run, wait_s: float) -> list[str]:
    """Makes damaged and missing shards again, removes strays; the names of what was mended.

    The result is the archive as it was made, byte for byte: where an index is left, DataError if a
    shard made again has another digest than it says.
    """
    with holding(store, wait_s) as lease:
        drop_parts(store)
        there = _index_there(store)
        before = {} if there is None else {shard.name: shard.sha256 for shard in there.shards}
        mended = _remove_strays(store, plan)
        broken = [n for n in range(plan.shards) if finished(store, plan, n) is None]
        for fields in run(broken, lease) if broken else ():
            shard = Shard(**fields["shard"])
            mended.append(shard.name)
            if before.get(shard.name, shard.sha256) != shard.sha256:
                raise DataError(
                    "made again, the shard has another digest than the index says",
                    code="MR-D072",
                    where=f"{store.url}/{shard.name}",
                    hint="repair on the kind of machine that the archive was made on",
                )
        index = index_of(plan, _shards(store, plan))
        if there != index:
            lease.check()
            shards.write_index(store, index)
            mended.append(INDEX)
    return mended


def _index_there(store: Store) -> ShardIndex | None:
    """The index, where there is one that can be read."""
    try:
        return shards.read_index(store)
    except DataError:
        return None


def _remove_strays(store: Store, plan: Plan) -> list[str]:
    """Removes shards and manifests that the plan does not have."""
    names = {plan.shard_name(number) for number in range(plan.shards)}
    known = {f"{name}{end}" for name in names for end in (".tar", ".idx")}
    known |= {manifest_name(name) for name in names}
    ours = [n for n in store.names() if n.endswith((".tar", ".idx")) or n.startswith(f"{STATE}/")]
    strays = [name for name in ours if name not in known]
    for name in strays:
        store.remove(name)
    return strays


# --- one image again ----------------------------------------------------------------------------


def regenerate(worker: Worker, address: str) -> Sample:
    """The image of an address, made again, with what the archive says of it.

    UsageError for an address of another archive. An address that the archive does not hold (its
    label was wrong, it was a copy, or it was not needed) is made and judged all the same.
    """
    plan = worker.plan
    _, _, _, index = parse_address(address)
    if plan.address(index) != address:
        raise UsageError(
            f"{address} is not of this archive: its addresses are {plan.address(0)[:-1]}INDEX"
        )
    goal = plan.goal_of(index)
    kept = _kept(worker.store, plan, index)
    image = worker.images([index], [goal])[0]
    if kept is None:
        log.warn("not_kept", f"{address} is not in the archive: it was dropped or not needed")
        return worker.sample(index, goal, image, plan.goals[goal].wanted, {}, None)
    return replace(kept, image=image)


def _kept(store: Store, plan: Plan, index: int) -> Sample | None:
    """The sample of an index, if the archive holds it."""
    result = finished(store, plan, index // len(plan.addresses(0)))
    if result is None:
        return None
    reader = open_shard(store, result.shard)
    numbers = (n for n in range(len(reader)) if _address(reader, n)[0] == index)
    number = next(numbers, None)
    return None if number is None else reader.sample(number)


def facts_of(store: Store) -> dict[str, Any]:
    """What the manifests say of an archive's shards, added up."""
    plan, _ = read_plan(store)
    results = [finished_or_raise(store, plan, number) for number in range(plan.shards)]
    return {
        "shards": plan.shards,
        "images": sum(result.shard.samples for result in results),
        "tried": sum(result.tried for result in results),
        "copies": sum(result.copies for result in results),
        "audited": plan.audited,
    }
