"""Rosters: what records say, chosen samples as a stream and as images; damage is found."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from medray.errors import DataError, UsageError
from medray.stream import Roster, Source
from tests.faults import damage
from tests.shard_sets import CLASSES, image, make_set, stream
from tests.stream.test_foreign import foreign


@pytest.fixture
def made(tmp_path: Path) -> Path:
    make_set(tmp_path / "set", 40, per_shard=6)
    return tmp_path / "set"


def test_a_roster_tells_every_record_in_order(made: Path) -> None:
    roster = Roster([Source(made)], "train")
    assert (roster.classes, roster.channels, roster.size_px) == (CLASSES, 1, 16)
    assert [fact.key for fact in roster.facts] == [f"train-{n:08d}" for n in range(40)]
    assert [fact.label for fact in roster.facts[:7]] == [*CLASSES, *CLASSES, None]
    assert [fact.patient for fact in roster.facts[:3]] == ["p0", "p0", "p1"]
    assert roster.facts[13].place == (0, 2, 1)


def test_the_images_of_some_samples_come_in_their_order(made: Path) -> None:
    roster = Roster([Source(made)], "train")
    facts = [roster.facts[n] for n in (31, 4, 4, 17)]
    found = np.concatenate(list(roster.images(facts, batch=3)))
    assert [bytes(row[0]) for row in found] == [image(n).tobytes() for n in (31, 4, 4, 17)]


def test_a_stream_of_chosen_samples_gives_each_once_an_epoch_and_no_other(made: Path) -> None:
    roster = Roster([Source(made)], "train")
    # Some shards keep none: samples 6 to 11 are one shard.
    facts = roster.where(lambda fact: fact.label == "rare" and not 6 <= int(fact.key[-2:]) < 12)
    wanted = Counter(fact.key for fact in facts)
    assert 8 <= len(facts) < 13
    with stream(made, kept=roster.kept(facts)) as batches:
        assert batches.samples_per_epoch == len(facts)
        for _ in range(3):
            assert Counter(batches.next(len(facts)).keys) == wanted


def test_two_ranks_share_the_chosen_samples(made: Path) -> None:
    roster = Roster([Source(made)], "train")
    facts = roster.facts[:20:2]
    kept = roster.kept(facts)
    whole = stream(made, kept=kept).next(20).keys
    parts = [stream(made, kept=kept, rank=r, world=2).next(20).keys for r in (0, 1)]
    assert whole == (*parts[0], *parts[1])


def test_a_resumed_stream_refuses_another_choice_and_a_whole_set_says_what_it_did(
    made: Path,
) -> None:
    roster = Roster([Source(made)], "train")
    one, other = (roster.kept(roster.facts[i::2]) for i in (0, 1))
    state = stream(made, kept=one).state()
    stream(made, kept=one).restore(state)
    with pytest.raises(UsageError, match="content_sha256"):
        stream(made, kept=other).restore(state)
    digest = stream(made).state()["content_sha256"][0]
    assert len(digest) == 64 and state["content_sha256"][0].startswith(digest + " of ")


def test_plain_tars_say_their_labels_in_the_roster_and_in_the_batches(tmp_path: Path) -> None:
    foreign(tmp_path / "set", 12)
    roster = Roster([Source(tmp_path / "set")], "train")
    assert [fact.label for fact in roster.facts] == [str(n) for n in range(12)]
    batch = stream(tmp_path / "set").next(12)
    assert [r["label"] for r in batch.records] == [str(int(key[1:])) for key in batch.keys]


def test_a_damaged_record_is_found_without_reading_its_image(made: Path) -> None:
    path = made / "train-000001.tar"
    place = path.read_bytes().index(b'"burned_in"')
    damage.flip_bit(path, at_byte=place)
    with pytest.raises(DataError, match=r"train-\d+\.json") as caught:
        Roster([Source(made)], "train")
    assert caught.value.code == "MR-D024"


def test_a_split_that_is_not_there_is_an_error_that_names_those_that_are(made: Path) -> None:
    with pytest.raises(DataError, match=r"no shard of split 'val', only of \['train'\]"):
        Roster([Source(made)], "val")
