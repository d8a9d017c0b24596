"""What artefacts saw: written, read, merged; what they are refused for, and what not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medray import lineage
from medray.errors import DataError
from medray.lineage import Lineage, Saw
from medray.store import Store
from medray.stream import Roster, Source
from tests.shard_sets import make_set

ONE = Saw("a", "p1", "train", "dark")
TWO = Saw("b", "p2", "train", None)
THREE = Saw("c", "p3", "val", "dark|light")


def test_the_same_entries_give_the_same_bytes_and_are_read_back() -> None:
    seen = Lineage([THREE, ONE, TWO, ONE])
    assert seen.entries == (ONE, TWO, THREE)
    assert seen.to_bytes() == Lineage([TWO, THREE, ONE]).to_bytes()
    assert Lineage.from_bytes(seen.to_bytes()) == seen
    assert Lineage.from_bytes(Lineage().to_bytes()) == Lineage()
    assert json.loads(seen.to_bytes())["entries"][1] == ["b", "p2", "train", None]


def test_an_image_seen_with_and_without_its_label_keeps_both_entries() -> None:
    without = Saw("a", "p1", "train", None)
    both = Lineage([ONE]) | Lineage([without]) | Lineage([Saw("a", "p1", "train", "")])
    assert [saw.label for saw in both.entries] == [None, "", "dark"]


def test_a_held_out_patient_is_refused_and_another_is_not() -> None:
    seen = Lineage([ONE, TWO, THREE])
    found = seen.refusals(patients={"p2", "p3", "p9"}, labels=None)
    assert len(found) == 1 and "2 patient(s) (p2, p3)" in found[0]
    assert seen.refusals(patients={"p9"}, labels=None) == []


def test_a_held_out_image_is_known_again_under_another_name_of_its_patient() -> None:
    seen = Lineage([ONE, TWO])
    (said,) = seen.refusals(patients={"another-hash-of-p2", "b"}, labels=None)
    assert "1 patient(s) (p2)" in said
    assert seen.refusals(patients={"another-hash-of-p2", "c"}, labels=None) == []


def test_a_label_outside_the_fraction_is_refused_and_an_image_without_its_label_is_not() -> None:
    seen = Lineage([ONE, TWO])
    assert seen.refusals(patients=(), labels={"a"}) == []
    found = seen.refusals(patients=(), labels={"b"})
    assert len(found) == 1 and "labels of 1 sample(s) outside the fraction" in found[0]


def test_many_patients_are_counted_and_three_are_named() -> None:
    seen = Lineage(Saw(f"s{n}", f"p{n}", "train", None) for n in range(5))
    (said,) = seen.refusals(patients={f"p{n}" for n in range(5)}, labels=None)
    assert "5 patient(s) (p0, p1, p2 and 2 more)" in said


@pytest.mark.parametrize(
    ("old", "new"), [(b'"p1"', b'"p7"'), (b"seen/1", b"seen/2"), (b"]}", b""), (b'"val", ', b"")]
)
def test_a_damaged_file_is_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    whole = Lineage([ONE, TWO, THREE]).to_bytes()
    (tmp_path / "seen.json").write_bytes(whole)
    assert lineage.read(str(tmp_path)) is not None
    (tmp_path / "seen.json").write_bytes(whole.replace(old, new))
    with pytest.raises(DataError, match="MR-D090"):
        lineage.read(str(tmp_path))


def test_a_run_says_what_its_model_saw_and_an_old_one_says_nothing(tmp_path: Path) -> None:
    lineage.write(Store(tmp_path / "run").child("model"), Lineage([ONE]))
    assert lineage.read(str(tmp_path / "run")) == Lineage([ONE])
    assert lineage.read(str(tmp_path / "run" / "model")) == Lineage([ONE])
    assert lineage.read(str(tmp_path / "old")) is None


def test_parts_saw_what_each_of_them_saw_and_one_that_is_silent_silences_all(
    tmp_path: Path,
) -> None:
    urls = [str(tmp_path / name) for name in ("one", "two", "old")]
    lineage.write(Store(urls[0]), Lineage([ONE]))
    lineage.write(Store(urls[1]), Lineage([TWO]))
    assert lineage.united([urls[0], None, urls[1]]) == Lineage([ONE, TWO])
    assert lineage.united(urls) is None


def test_refusing_names_the_artefact_and_passes_one_that_saw_nothing_wrong(tmp_path: Path) -> None:
    url = str(tmp_path / "archive")
    lineage.write(Store(url), Lineage([ONE, TWO]))
    assert lineage.refuse(url, patients={"p3"}, labels={"a"}) == Lineage([ONE, TWO])
    for patients, labels in (({"p1"}, None), ((), {"b"})):
        with pytest.raises(DataError, match="MR-D092") as caught:
            lineage.refuse(url, patients=patients, labels=labels)
        assert caught.value.where == url and caught.value.exit_code == 3
    with pytest.raises(DataError, match="does not say what it saw"):
        lineage.refuse(str(tmp_path / "old"), patients=(), labels=None)


def test_facts_are_known_by_digest_or_by_set_and_key(tmp_path: Path) -> None:
    make_set(tmp_path / "set", 9)
    roster = Roster([Source(tmp_path / "set")], "train")
    ((name, facts),) = roster.by_source(roster.facts)
    seen = lineage.of_facts(name, facts, labels=True, split="train")
    assert name == "small" and seen.entries[0] == Saw(
        "small/train-00000000", "p0", "train", "clear"
    )
    # Sample 6 has no label, so none was used.
    assert [saw.label for saw in seen.entries].count(None) == 1
    unlabelled = lineage.of_facts(name, facts, labels=False, split="train")
    assert {saw.label for saw in unlabelled.entries} == {None} and len(unlabelled) == 9


def test_findings_are_told_as_those_present() -> None:
    def fact(label: str | None, **labels: int | None) -> lineage.Fact:
        from medray.stream import Fact

        return Fact((0, 0, 0), "k", label, dict(labels), None, "digest")

    assert lineage.label_of(fact("a", b=1, a=1, c=0)) == "a|b"
    assert lineage.label_of(fact(None, a=0, b=None)) == ""
    assert lineage.label_of(fact(None, a=None)) is None
    assert lineage.label_of(fact("none", a=0)) == "none"
    assert lineage.patient_of("set", fact(None)) == "digest"
