"""Real and synthetic images in one training: proportions, which samples, stages, what was seen."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medray import lineage
from medray.errors import DataError, UsageError
from medray.lineage import Lineage, Saw
from medray.records import Provenance, Sample
from medray.shards import write_set
from medray.store import Store
from medray.stream import Roster, Source
from medray.train import mixture
from medray.train.targets import Targets

SINGLE = Targets(("common", "rare"), multi_label=False)
ABOUT = Provenance("mr1:a:prior:0:0", "a", None, 0, 0, {}, {}, None, {})


def samples(labels: list[str | dict[str, int | None]], synthetic: bool) -> Iterator[Sample]:
    for number, label in enumerate(labels):
        yield Sample(
            key=f"k{number}",
            image=np.full((16, 16), number % 256, np.uint8),
            label=label if isinstance(label, str) else None,
            labels=label if isinstance(label, dict) else {},
            patient=None if synthetic else f"p{number}",
            provenance=ABOUT if synthetic else None,
        )


def made(
    url: Path, labels: list[str | dict[str, int | None]], synthetic: bool = False
) -> tuple[Source, Roster]:
    classes = (*SINGLE.classes, "a", "b")
    write_set(url, samples(labels, synthetic), name=url.name, classes=classes, size_px=16)
    source = Source(str(url))
    return source, Roster([source], "train")


@pytest.fixture
def real(tmp_path: Path) -> tuple[Source, Roster]:
    return made(tmp_path / "real", ["common"] * 30 + ["rare"] * 5)


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Source, Roster]:
    return made(tmp_path / "archive", ["common", "rare"] * 30, synthetic=True)


def keys_of(batches: Any, rounds: int) -> Counter[tuple[bool, str]]:
    batch = batches.next(rounds)
    return Counter((r["provenance"] is not None, r["label"]) for r in batch.records)


def test_minorities_get_so_many_synthetic_images_for_each_real_one(real: Any, archive: Any) -> None:
    facts = real[1].facts
    counts = mixture.counts_of(facts, SINGLE)
    wanted = mixture.synthetic_counts(counts, 4.0, "minority")
    assert (counts, wanted) == ({"common": 30, "rare": 5}, {"rare": 20})
    alone = mixture.real([real[0]], real[1], facts, SINGLE)
    both = mixture.mixed(alone, facts, archive[1], SINGLE, wanted)
    # The truth of a round, of which class weights are made, has the synthetic images too.
    assert (both.truth_NK == 1).sum(0).tolist() == [30, 25]
    with both.stream(threads=1) as batches:
        seen = keys_of(batches, 550)
        state = json.loads(json.dumps(batches.state()))
    assert seen == {(False, "common"): 300, (False, "rare"): 50, (True, "rare"): 200}
    # As if they were added to the set: 20 of the archive's 30, each as often as a real one.
    assert state["samples"] == [35, 20]


def test_a_ratio_of_all_adds_to_the_largest_class_too(real: Any, archive: Any) -> None:
    counts = mixture.counts_of(real[1].facts, SINGLE)
    assert mixture.synthetic_counts(counts, 0.5, "all") == {"common": 15, "rare": 2}
    assert mixture.synthetic_counts({"a": 4, "b": 4}, 2, "minority") == {}
    assert mixture.synthetic_counts(counts, 0, "all") == {}
    for ratio in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="ratio"):
            mixture.synthetic_counts(counts, ratio, "all")


def test_without_synthetic_images_the_mixture_is_the_real_one(real: Any, archive: Any) -> None:
    alone = mixture.real([real[0]], real[1], real[1].facts, SINGLE)
    assert mixture.mixed(alone, real[1].facts, archive[1], SINGLE, {}) is alone


def test_too_small_an_archive_comes_round_sooner_and_is_told(
    real: Any, archive: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = real[1].facts
    alone = mixture.real([real[0]], real[1], facts, SINGLE)
    both = mixture.mixed(alone, facts, archive[1], SINGLE, {"rare": 40})
    assert "has 30 images of rare, 40 are wanted" in capsys.readouterr().err
    with both.stream(threads=1) as batches:
        assert keys_of(batches, 750)[(True, "rare")] == 400


def test_an_archive_without_a_class_that_is_wanted_is_refused(tmp_path: Path, real: Any) -> None:
    _, poor = made(tmp_path / "poor", ["common"] * 8, synthetic=True)
    alone = mixture.real([real[0]], real[1], real[1].facts, SINGLE)
    with pytest.raises(DataError, match="no image of rare"):
        mixture.mixed(alone, real[1].facts, poor, SINGLE, {"rare": 4})


def test_findings_are_counted_by_the_rarest_present(tmp_path: Path) -> None:
    many = Targets(("a", "b"), multi_label=True)
    labels: list[str | dict[str, int | None]] = [{"a": 1, "b": 0}] * 6 + [{"a": 1, "b": 1}] * 2
    labels += [{"a": 0, "b": 0}] * 9
    source, roster = made(tmp_path / "real", labels)
    assert mixture.counts_of(roster.facts, many) == {"": 9, "a": 6, "b": 2}
    _, archive = made(tmp_path / "archive", labels, synthetic=True)
    alone = mixture.real([source], roster, roster.facts, many)
    both = mixture.mixed(alone, roster.facts, archive, many, {"b": 4})
    assert (both.truth_NK == 1).sum(0).tolist() == [12, 6]


def test_a_set_with_nothing_left_has_no_part(tmp_path: Path, real: Any) -> None:
    other, _ = made(tmp_path / "other", ["common"] * 4)
    roster = Roster([other, real[0]], "train")
    facts = [fact for fact in roster.facts if fact.label == "rare"]
    found = mixture.real([other, real[0]], roster, facts, SINGLE)
    assert found.sources == (real[0],) and len(found.truth_NK) == 5


def test_shares_are_exact_where_they_can_be_and_near_where_not() -> None:
    assert mixture.shares_of([35.0, 20.0]) == [35, 20]
    for weights in ([70_000.0, 1.0, 12_345.0], [1 / 3, 2 / 3], [0.5] * 7):
        shares = mixture.shares_of(weights)
        assert sum(shares) == 10_000 and min(shares) >= 1
        off = np.abs(np.array(shares) / 10_000 - np.array(weights) / sum(weights))
        assert off.max() <= (len(weights) + 1) / 10_000


# --- stages ---------------------------------------------------------------------------------------


def staged(real: Any, archive: Any, boundary: int) -> mixture.Staged:
    first, second = (mixture.real([s], r, r.facts, SINGLE) for s, r in (archive, real))
    return mixture.Staged(first.stream(threads=1), boundary, second.stream(threads=1))


def test_stages_follow_each_other_and_images_are_numbered_through(real: Any, archive: Any) -> None:
    with staged(real, archive, 12) as batches:
        found = [batches.next(4) for _ in range(6)]
    assert [batch.first_index for batch in found] == list(range(0, 24, 4))
    synthetic = [[r["provenance"] is not None for r in batch.records] for batch in found]
    assert synthetic == [[True] * 4] * 3 + [[False] * 4] * 3
    with real_stream(real) as alone:
        assert [found[3].keys, found[4].keys] == [alone.next(4).keys, alone.next(4).keys]


def real_stream(real: Any) -> Any:
    return mixture.real([real[0]], real[1], real[1].facts, SINGLE).stream(threads=1)


@pytest.mark.parametrize("taken", [1, 2, 3, 4])
def test_stages_go_on_from_either_side_of_the_boundary(real: Any, archive: Any, taken: int) -> None:
    with staged(real, archive, 12) as batches:
        whole = [batches.next(4).keys for _ in range(6)]
    with staged(real, archive, 12) as batches:
        for _ in range(taken):
            batches.next(4)
        state = json.loads(json.dumps(batches.state()))
    with staged(real, archive, 12) as batches:
        batches.restore(state)
        assert [batches.next(4).keys for _ in range(6 - taken)] == whole[taken:]


def test_another_boundary_and_a_batch_across_it_are_refused(real: Any, archive: Any) -> None:
    with staged(real, archive, 12) as batches:
        state = batches.state()
        batches.next(8)
        with pytest.raises(UsageError, match="crosses the boundary at 12"):
            batches.next(8)
    with staged(real, archive, 16) as batches, pytest.raises(UsageError, match="12 images"):
        batches.restore(state)


# --- what was seen --------------------------------------------------------------------------------


def test_what_a_training_saw_of_an_archive_is_what_the_archive_saw(
    tmp_path: Path, real: Any, archive: Any
) -> None:
    roster = archive[1]
    assert mixture.seen_in(roster, roster.facts, labels=True) is None
    of_generator = Lineage([Saw("s", "p", "train", None)])
    lineage.write(Store(tmp_path / "archive"), of_generator)
    assert mixture.seen_in(roster, roster.facts, labels=True) == of_generator
    both = Roster([real[0], archive[0]], "train")
    seen = mixture.seen_in(both, both.facts, labels=True)
    assert seen is not None and len(seen) == 36 and seen.patients >= {"p", "p0", "p34"}


def test_patients_and_samples_are_named_as_lineage_names_them(real: Any) -> None:
    roster = real[1]
    seen = mixture.seen_in(roster, roster.facts[:3], labels=False)
    assert seen is not None
    assert mixture.patients_in(roster, roster.facts[:3]) == seen.patients == {"p0", "p1", "p2"}
    assert mixture.samples_in(roster, roster.facts[:1]) == {"real/train-00000000"}
