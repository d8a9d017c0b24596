"""One shard made: a function of the plan and its number, with a few batches in memory at a time.

A batch of addresses goes through latents, generator, classifier, gate and encoder on one thread;
several threads work on several batches. What is kept is decided afterwards, in the order of the
addresses, so that threads and their speed decide nothing.

Shape letters: N images, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medray.archive.load import Parts
from medray.archive.members import encoded
from medray.archive.plan import Plan, digest_of
from medray.errors import DataError, GateError
from medray.lease import Lease
from medray.lease import join as join_lease
from medray.models.pixels import to_unit
from medray.records import Provenance, Sample, Shard
from medray.sample.latents import prior
from medray.shards import ShardWriter
from medray.shards.reader import read_whole
from medray.store import Store

STATE = ".archive"
# Batches made ahead, per thread: enough that the writer never waits, few enough to forget about.
AHEAD = 2
PIECE_BYTES = 1 << 23

Pixels = npt.NDArray[np.uint8]
Member = tuple[str, bytes]


@dataclass(slots=True)
class Result:
    """What came of a shard: its line for the index, and how its addresses fared."""

    plan: str
    number: int
    shard: Shard
    tried: int
    wrong_label: int
    copies: int
    last_index: int
    accepted: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """The shard's manifest: the same for any worker at any time."""
        body = asdict(self)
        body["sha256"] = digest_of(body)
        return (json.dumps(body, indent=1, sort_keys=True) + "\n").encode()


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One address made: its sample's members, or why there are none."""

    index: int
    goal: int
    sample: Sample | None
    members: Sequence[Member]
    copy: bool


class Worker:
    """Generator, latents, classifier and gate loaded once, and a share in the driver's lease."""

    def __init__(
        self, plan: Plan, parts: Parts, store: Store, lease: Lease | int | None, threads: int
    ) -> None:
        self.plan, self.parts, self.store, self.threads = plan, parts, store, threads
        self.lease = join_lease(store, lease) if isinstance(lease, int) else lease

    # --- one batch ----------------------------------------------------------------------------

    def images(self, indices_N: Sequence[int], goals_N: Sequence[int]) -> Pixels:
        """The images of addresses, (N, H, W) or (N, H, W, 3)."""
        indices = np.array(indices_N, np.uint64)
        model, seed = self.parts.latents, self.plan.seed
        if model is None:
            latents_ND = prior(seed, indices, self.parts.renderer.dims)
        else:
            numbers = [self.parts.target_numbers[self.plan.goals[goal].target] for goal in goals_N]
            latents_ND = model.draw(seed, np.array(numbers, np.int64), indices)
        return self.parts.renderer.render(latents_ND)

    def candidates(self, batch: Sequence[tuple[int, int]]) -> list[_Candidate]:
        """(index, goal) of a batch's addresses as samples, or as what is not to be kept."""
        indices, goals = zip(*batch, strict=True)
        images = self.images(indices, goals)
        probabilities_NK, decided_NK = self._judged(images)
        verdict = None if self.parts.gate is None else self.parts.gate.judge(images)
        found = []
        for n, (index, goal) in enumerate(batch):
            labels = self._labels(goal, probabilities_NK, decided_NK, n)
            copy = verdict is not None and bool(verdict.copies_N[n])
            if labels is None or copy:
                found.append(_Candidate(index, goal, None, (), copy and labels is not None))
                continue
            chances = {} if probabilities_NK is None else self._named(probabilities_NK[n])
            nearest = None if verdict is None else round(float(verdict.similarity_N[n]), 6)
            sample = self.sample(index, goal, images[n], labels, chances, nearest)
            found.append(_Candidate(index, goal, sample, encoded(sample, self.plan), False))
        return found

    def _judged(self, images: Pixels) -> tuple[Any, Any]:
        """The classifier's probabilities and decisions (N, K), at the renderer's batch shape."""
        network = self.parts.classifier
        if network is None:
            return None, None
        images_NCHW = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        padded = np.zeros((self.parts.renderer.batch, *images_NCHW.shape[1:]), np.uint8)
        padded[: len(images_NCHW)] = images_NCHW
        with torch.inference_mode():
            unit_NCHW = to_unit(torch.from_numpy(padded).to(self.parts.renderer.device))
            logits_NK = network(unit_NCHW)[: len(images)]
            if not torch.isfinite(logits_NK).all():
                raise DataError(
                    "the classifier gives logits that are not finite",
                    code="MR-D043",
                    hint="train it again: its weights are damaged or it has diverged",
                )
            decided = network.decisions(logits_NK)
            if not network.multi_label:
                decided = torch.nn.functional.one_hot(decided, len(network.classes))
            return network.calibrated(logits_NK).cpu().numpy(), decided.long().cpu().numpy()

    def _labels(
        self, goal: int, probabilities_NK: Any, decided_NK: Any, n: int
    ) -> dict[str, int] | None:
        """The labels of image n; None where the classifier does not see what was wanted."""
        wanted = self.plan.goals[goal].wanted
        if probabilities_NK is None:
            return wanted
        classes = self.plan.classes
        if not wanted:
            return {name: int(value) for name, value in zip(classes, decided_NK[n], strict=True)}
        chance = dict(zip(classes, probabilities_NK[n], strict=True))
        sure = [chance[name] if value else 1 - chance[name] for name, value in wanted.items()]
        if not self.parts.multi_label:
            sure = [chance[name] for name, value in wanted.items() if value]
        return wanted if min(sure) >= self.plan.min_probability else None

    def _named(self, probabilities_K: Any) -> dict[str, float]:
        pairs = zip(self.plan.classes, probabilities_K, strict=True)
        return {name: round(float(value), 6) for name, value in pairs}

    def sample(
        self,
        index: int,
        goal: int,
        image: Pixels,
        labels: dict[str, int],
        chances: dict[str, float],
        nearest: float | None,
    ) -> Sample:
        """An image with its labels and provenance; its key comes when it is kept."""
        plan = self.plan
        present = [name for name in plan.classes if labels.get(name)]
        target = plan.goals[goal].target
        return Sample(
            key="",
            image=image,
            label=present[0] if present else target if target in plan.classes else None,
            labels=dict(labels),
            burned_in=False,
            provenance=Provenance(
                address=plan.address(index),
                generator_sha256=plan.generator_sha256,
                latents_sha256=plan.latents_sha256,
                seed=plan.seed,
                index=index,
                wanted=plan.goals[goal].wanted,
                probabilities=chances,
                nearest=nearest,
                render=plan.render,
                audited=plan.audited,
            ),
        )


# --- one shard ----------------------------------------------------------------------------------


def manifest_name(shard: str) -> str:
    """Where a shard's manifest stands."""
    return f"{STATE}/{shard}.json"


def make_shard(worker: Worker, number: int) -> dict[str, Any]:
    """Writes shard `number` and, after it, its manifest, whose content it returns.

    GateError where its addresses do not fill it. The same arguments give the same bytes.
    """
    plan, store = worker.plan, worker.store
    name, first = plan.shard_name(number), number * plan.samples_per_shard
    left = list(plan.quotas[number])
    counts: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    with ShardWriter(store, name, "train", plan.encoding) as writer:
        for made in _in_order(worker, number, left):
            if not left[made.goal]:
                continue
            counts["tried"] += 1
            if made.sample is None:
                counts["copies" if made.copy else "wrong_label"] += 1
                continue
            left[made.goal] -= 1
            accepted[plan.goals[made.goal].target] += 1
            key = f"train-{first + len(writer):08d}"
            writer.add(replace(made.sample, key=key), made.members)
            if not any(left):
                break
        _check_full(plan, number, left, counts)
        if worker.lease is not None:
            worker.lease.check()
        shard = writer.close()
    result = Result(
        plan=plan.hash,
        number=number,
        shard=shard,
        tried=counts["tried"],
        wrong_label=counts["wrong_label"],
        copies=counts["copies"],
        last_index=made.index,
        accepted=dict(sorted(accepted.items())),
    )
    store.write_bytes(manifest_name(name), result.to_json())
    return asdict(result)


def _check_full(plan: Plan, number: int, left: list[int], counts: Counter[str]) -> None:
    if not any(left):
        return
    lacking = {plan.goals[g].target or "any": n for g, n in enumerate(left) if n}
    raise GateError(
        f"shard {number} could not be filled from its {len(plan.addresses(number)):,} addresses: "
        f"{lacking} are missing; of {counts['tried']:,} tried {counts['wrong_label']:,} did not "
        f"have the wanted label and {counts['copies']:,} were copies of training images",
        hint="take latents that hit their labels (medray latents), a lower --min-probability, "
        "or, where copies are many, another generator",
    )


def _in_order(worker: Worker, number: int, left: list[int]) -> Iterator[_Candidate]:
    """Every address of a shard that is still wanted, made ahead by threads, given in order.

    `left` is what the caller still wants of each goal; addresses of others are left out, which
    may come late and so must not matter.
    """
    size = worker.parts.renderer.batch
    batches, rate, before = (
        _batches(worker.plan, number, size, left),
        _Rate(),
        torch.get_num_threads(),
    )
    pool = ThreadPoolExecutor(worker.threads, initializer=torch.set_num_threads, initargs=(1,))
    ahead: deque[Future[list[_Candidate]]] = deque()
    try:
        for batch in batches:
            ahead.append(pool.submit(worker.candidates, batch))
            enough = rate.batches(sum(left), size)
            while ahead and len(ahead) >= min(enough, AHEAD * worker.threads):
                found = ahead.popleft().result()
                rate.add(found)
                yield from found
                enough = rate.batches(sum(left), size)
        while ahead:
            yield from ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        # What the threads set for themselves is in part the whole process's.
        torch.set_num_threads(before)


class _Rate:
    """How many batches it will take, by the share that was kept so far: no more are made ahead."""

    def __init__(self) -> None:
        self.made = self.kept = 0

    def add(self, found: list[_Candidate]) -> None:
        """Counts a batch."""
        self.made += len(found)
        self.kept += sum(candidate.sample is not None for candidate in found)

    def batches(self, wanted: int, size: int) -> int:
        """Batches to have in the making for `wanted` samples more."""
        share = max(self.kept / self.made, 1 / size) if self.made else 1.0
        return max(1, math.ceil(wanted / share / size))


def _batches(
    plan: Plan, number: int, size: int, left: list[int]
) -> Iterator[list[tuple[int, int]]]:
    """(index, goal) of the addresses still wanted, a batch at a time."""
    slots, batch = plan.slots(number), list[tuple[int, int]]()
    for place, index in enumerate(plan.addresses(number)):
        goal = slots[place % len(slots)]
        if left[goal]:
            batch.append((index, goal))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def finished(store: Store, plan: Plan, number: int) -> Result | None:
    """The result of a shard that is there and whole; None where it must be made (again)."""
    name = plan.shard_name(number)
    try:
        fields: dict[str, Any] = json.loads(store.read_bytes(manifest_name(name)))
        stated = fields.pop("sha256")
        result = Result(**{**fields, "shard": Shard(**fields["shard"])})
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None
    if (
        stated != digest_of(fields)
        or result.plan != plan.hash
        or result.number != number
        or not _is_whole(store, result.shard)
    ):
        return None
    return result


def _is_whole(store: Store, shard: Shard) -> bool:
    """Whether tar and idx have their digests; read in pieces, so that memory stays flat."""
    wanted = ((f"{shard.name}.tar", shard.sha256), (f"{shard.name}.idx", shard.idx_sha256))
    try:
        return all(sha256_of(store, name) == digest for name, digest in wanted)
    except FileNotFoundError:
        return False


def sha256_of(store: Store, name: str) -> str:
    """SHA-256 of an object."""
    digest, size = hashlib.sha256(), store.size(name)
    for start in range(0, size, PIECE_BYTES):
        digest.update(read_whole(store, name, start, min(PIECE_BYTES, size - start)))
    return digest.hexdigest()
