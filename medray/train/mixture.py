"""Real and synthetic images in one training: which samples, how often, mixed or in stages.

A `Mixture` is what `medray.stream.Stream` is made of: sources with their shares, the samples kept
of each. `real` has the real images alone; `mixed` adds synthetic ones class by class, R for each
real one, as if they were added to the set: the first so many of the archive, each as often as a
real image; where the archive has fewer they come round sooner. `Staged` gives one mixture and
then another (pre-training, fine-tuning), on one clock.

    real = Roster(sources, "train");  archive = Roster([Source(url)], "train")
    wanted = synthetic_counts(counts_of(real_facts, targets), ratio=4.0, of="minority")
    mixture = mixed(real_mixture, archive, targets, wanted)
    weights_2K = targets.weights(mixture.truth_NK, targets.multi_label, most)
    with mixture.stream(split="train", seed=seed, ...) as batches: ...

Shape letters: N samples, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np

from medray import lineage, log
from medray.errors import DataError, UsageError
from medray.records import Batch
from medray.stream.loader import Stream
from medray.stream.mix import LONGEST_PERIOD
from medray.stream.roster import Fact, Kept, Roster
from medray.stream.sets import Source
from medray.train.fraction import NOTHING, labels_of, rarest
from medray.train.targets import Targets, Truth

SCHEMA = "medray.staged/1"
OF = ("minority", "all")


@dataclass(frozen=True)
class Mixture:
    """Sources with their shares, the samples kept of each, and the truth of a round of it all."""

    sources: tuple[Source, ...]
    kept: Kept
    truth_NK: Truth
    synthetic: dict[str, int]

    def stream(self, **named: Any) -> Stream:
        """The batches of it; `named` as `Stream` takes them."""
        return Stream(self.sources, kept=self.kept, **named)


# --- which samples, how often -------------------------------------------------------------------


def real(sources: Sequence[Source], roster: Roster, facts: Sequence[Fact], of: Targets) -> Mixture:
    """The samples `facts` of `roster`, which was opened on `sources`, each set with its share.

    A set of which no sample is left has no part in it.
    """
    kept = roster.kept(facts)
    there = [number for number, shards in enumerate(kept) if sum(map(len, shards))]
    assert there, "a mixture needs at least one sample"
    return Mixture(
        tuple(sources[number] for number in there),
        [kept[number] for number in there],
        of.of(facts),
        {},
    )


def counts_of(facts: Sequence[Fact], of: Targets) -> dict[str, int]:
    """Samples by class; where findings meet, by the rarest finding present ("": none is)."""
    return dict(sorted(Counter(classes_of(facts, of, _frequency(facts, of))).items()))


def classes_of(facts: Sequence[Fact], of: Targets, frequency: Counter[str]) -> list[str]:
    """The class of each sample, by which synthetic images are added; `frequency` as in `rarest`."""
    return [rarest(_names(fact, of), frequency) for fact in facts]


def _names(fact: Fact, of: Targets) -> set[str]:
    if not of.multi_label:
        assert fact.label is not None, "only samples whose class is known have a part"
        return {fact.label}
    return (labels_of(fact) & set(of.classes)) or {NOTHING}


def _frequency(facts: Sequence[Fact], of: Targets) -> Counter[str]:
    return Counter(name for fact in facts for name in _names(fact, of))


def synthetic_counts(counts: Mapping[str, int], ratio: float, of: str) -> dict[str, int]:
    """Synthetic images of each class: `ratio` for each real one, of every class or the minorities.

    Minorities are the classes with fewer images than the largest. UsageError for a ratio below 0.
    """
    if not ratio >= 0 or ratio == float("inf"):
        raise UsageError(f"a ratio must be 0 or more synthetic images per real one, got {ratio}")
    if of not in OF:
        raise UsageError(f"a ratio is of {' or '.join(OF)}, got {of!r}")
    largest = max(counts.values())
    found = {n: round(ratio * c) for n, c in counts.items() if of == "all" or c < largest}
    return {name: count for name, count in found.items() if count}


def mixed(
    mixture: Mixture, facts: Sequence[Fact], archive: Roster, of: Targets, wanted: Mapping[str, int]
) -> Mixture:
    """`mixture`, of the real samples `facts`, with `wanted` images of each class of one archive.

    DataError where the archive has no image of a class that is wanted.
    """
    if not wanted:
        return mixture
    chosen = _chosen(archive, of, wanted, _frequency(facts, of))
    whole = sum(source.weight for source in mixture.sources)
    weights = [len(facts) * source.weight / whole for source in mixture.sources]
    shares = shares_of([*weights, *(float(wanted[name]) for name in chosen)])
    sources = (*mixture.sources, *[Source(archive.urls[0])] * len(chosen))
    more = [_repeated(of.of(some), wanted[name]) for name, some in chosen.items()]
    return Mixture(
        tuple(replace(it, weight=float(n)) for it, n in zip(sources, shares, strict=True)),
        [*mixture.kept, *(archive.kept(some)[0] for some in chosen.values())],
        np.concatenate([mixture.truth_NK, *more]),
        dict(wanted),
    )


def _chosen(
    archive: Roster, of: Targets, wanted: Mapping[str, int], frequency: Counter[str]
) -> dict[str, list[Fact]]:
    """The first images of each class wanted, as many as there are up to the count."""
    known = [fact for fact in archive.facts if of.known(fact)]
    names = classes_of(known, of, frequency)
    chosen = {
        name: [fact for fact, its in zip(known, names, strict=True) if its == name][:count]
        for name, count in wanted.items()
    }
    if absent := [name or "no finding" for name, some in chosen.items() if not some]:
        raise DataError(
            f"the archive has no image of {', '.join(absent)}",
            code="MR-D076",
            where=archive.name,
            hint="make one with these labels, or give --ratio-of or --classes that leave them out",
        )
    for name, some in chosen.items():
        if len(some) < wanted[name]:
            log.warn(
                "archive_small",
                f"{archive.name} has {len(some):,} images of {name or 'no finding'}, "
                f"{wanted[name]:,} are wanted: they come round sooner than the real ones",
                label=name,
                there=len(some),
                wanted=wanted[name],
            )
    return chosen


def _repeated(truth_NK: Truth, count: int) -> Truth:
    found: Truth = truth_NK[np.arange(count) % len(truth_NK)]
    return found


def shares_of(weights: Sequence[float]) -> list[int]:
    """Whole numbers in the proportions of `weights` over a period that streams take.

    Exact where the weights are whole and few; else within 1 in `LONGEST_PERIOD`, none below 1.
    """
    total = sum(weights)
    if all(weight == int(weight) for weight in weights) and total <= LONGEST_PERIOD:
        return [int(weight) for weight in weights]
    spare = LONGEST_PERIOD - len(weights)
    exact = [weight * spare / total for weight in weights]
    shares = [int(value) for value in exact]
    by_remainder = sorted(range(len(weights)), key=lambda k: (shares[k] - exact[k], k))
    for k in by_remainder[: spare - sum(shares)]:
        shares[k] += 1
    return [share + 1 for share in shares]


# --- one after the other ------------------------------------------------------------------------


class Staged:
    """Batches of one stream and, from image `boundary` on, of another; numbered through.

    Its state is a position, as a stream's is; a batch lies in one stage whole.
    """

    def __init__(self, first: Stream, boundary: int, second: Stream) -> None:
        self._stages, self._boundary, self._images = (first, second), boundary, 0

    def next(self, batch_images: int) -> Batch:
        """This rank's part of the next global batch; UsageError where it crosses the boundary."""
        if self._images < self._boundary < self._images + batch_images:
            raise UsageError(
                f"a batch of {batch_images} images crosses the boundary at {self._boundary:,}",
                hint="make the images of the first stage a multiple of the batch",
            )
        second = self._images >= self._boundary
        batch = self._stages[second].next(batch_images)
        self._images += batch_images
        return replace(batch, first_index=batch.first_index + self._boundary * second)

    def state(self) -> dict[str, Any]:
        """What `restore` needs; plain JSON."""
        return {
            "schema": SCHEMA,
            "images": self._images,
            "boundary": self._boundary,
            "stages": [stage.state() for stage in self._stages],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to where `state` was taken; UsageError if the stages are others."""
        if state.get("schema") != SCHEMA or state["boundary"] != self._boundary:
            raise UsageError(
                "the stream to go on with is not the one that was saved: its first stage has "
                f"{state.get('boundary', 0):,} images, this one's {self._boundary:,}",
                hint="give the same --pretrain-images, or start a new run",
            )
        for stage, its in zip(self._stages, state["stages"], strict=True):
            stage.restore(its)
        self._images = int(state["images"])

    def close(self) -> None:
        """Ends the threads of both."""
        for stage in self._stages:
            stage.close()

    def __enter__(self) -> Staged:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


# --- what may not have been seen ----------------------------------------------------------------


def patients_in(roster: Roster, facts: Sequence[Fact]) -> set[str]:
    """The patients of `facts`, as lineage names them."""
    return {
        lineage.patient_of(name, fact) for name, some in roster.by_source(facts) for fact in some
    }


def samples_in(roster: Roster, facts: Sequence[Fact]) -> set[str]:
    """`facts`, as lineage names them."""
    return {
        lineage.sample_of(name, fact) for name, some in roster.by_source(facts) for fact in some
    }


def names_in(roster: Roster, facts: Sequence[Fact]) -> set[str]:
    """Patients and samples of `facts`: what an artefact may not have seen where they are held out.

    Both, since a set packed with another key names the same patient otherwise.
    """
    return patients_in(roster, facts) | samples_in(roster, facts)


def seen_in(roster: Roster, facts: Sequence[Fact], *, labels: bool) -> lineage.Lineage | None:
    """What a training on `facts` of `roster` saw; of synthetic images, what made them saw.

    None where a set of synthetic images does not say that.
    """
    found = lineage.Lineage()
    for (name, some), url in zip(roster.by_source(facts), roster.urls, strict=True):
        reals = [fact for fact in some if not fact.synthetic]
        found |= lineage.of_facts(name, reals, labels=labels, split=roster.split)
        if len(reals) < len(some):
            made_of = lineage.read(str(url))
            if made_of is None:
                return None
            found |= made_of
    return found
