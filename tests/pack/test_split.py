"""Splits by patient: whole patients, even classes, the same for any order of files."""

import numpy as np
import pytest

from medray.errors import UsageError
from medray.pack.deidentify import Keyed, load_secret
from medray.pack.sources import Entry
from medray.pack.split import drawn_splits, patients_in_two_splits

KEYED = Keyed(b"0123456789abcdef")
FRACTIONS = {"test": 0.15, "val": 0.15}


def made(patients=400, seed=0):
    rng = np.random.default_rng(seed)
    entries = []
    for patient in range(patients):
        label = ("common", "common", "common", "rare")[rng.integers(4)]
        for image in range(rng.integers(1, 5)):
            name = KEYED.patient(f"P{patient}")
            entries.append(Entry(f"{patient}-{image}.png", labels=(label,), patient=name))
    return entries


def test_every_patient_is_in_one_split_and_each_class_is_spread_as_asked():
    entries = drawn_splits(made(), KEYED, 0, FRACTIONS)
    assert list(patients_in_two_splits(entries)) == []
    for label in ("common", "rare"):
        splits = [entry.split for entry in entries if entry.labels == (label,)]
        for split, wanted in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
            assert splits.count(split) / len(splits) == pytest.approx(wanted, abs=0.02)


def test_the_draw_depends_on_seed_and_secret_and_not_on_the_order_of_files():
    entries = made()
    where = {e.file: e.split for e in drawn_splits(entries, KEYED, 0, FRACTIONS)}
    backwards = drawn_splits(entries[::-1], KEYED, 0, FRACTIONS)
    assert {e.file: e.split for e in backwards} == where
    for other in (
        drawn_splits(entries, KEYED, 1, FRACTIONS),
        drawn_splits(entries, Keyed(b"another secret of mine"), 0, FRACTIONS),
    ):
        assert {e.file: e.split for e in other} != where


def test_without_val_and_test_everything_is_train():
    entries = drawn_splits(made(20), KEYED, 0, {"test": 0, "val": 0})
    assert {entry.split for entry in entries} == {"train"}


def test_files_without_a_patient_are_patients_of_their_own():
    entries = [Entry(f"{k}.png") for k in range(100)]
    splits = [entry.split for entry in drawn_splits(entries, KEYED, 0, FRACTIONS)]
    assert (splits.count("val"), splits.count("test")) == (15, 15)


def test_a_patient_in_two_splits_is_named_with_all_the_places_and_not_by_the_id():
    patient = KEYED.patient("Jane Doe")
    entries = [
        Entry("a", "t.csv:2", split="train", patient=patient),
        Entry("b", "t.csv:3", split="test", patient=patient),
        Entry("c", "t.csv:4", split="test", patient=KEYED.patient("Other")),
    ]
    (finding,) = patients_in_two_splits(entries)
    assert finding.code == "MR-D208"
    assert "train (t.csv:2), test (t.csv:3)" in finding.message
    assert "Doe" not in str(finding) and patient in str(finding)


def test_a_hash_is_the_same_under_the_same_secret_alone():
    assert KEYED.patient(" P1 ") == Keyed(b"0123456789abcdef").patient("P1")
    assert KEYED.patient("P1") != Keyed(b"0123456789abcdeg").patient("P1")
    assert KEYED.patient("  ") is None
    with pytest.raises(UsageError, match="at least 16"):
        Keyed(b"short")


def test_the_secret_comes_from_the_flag_the_environment_or_a_file_made_once(tmp_path, monkeypatch):
    monkeypatch.delenv("MEDRAY_SECRET_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    made_once = load_secret(None).patient("P1")
    assert load_secret(None).patient("P1") == made_once
    assert (tmp_path / ".config/medray/secret.key").stat().st_mode & 0o077 == 0
    monkeypatch.setenv("MEDRAY_SECRET_KEY", "0123456789abcdef")
    assert load_secret(None).patient("P1") == KEYED.patient("P1")
    (tmp_path / "s").write_bytes(b"another secret, long enough\n")
    assert load_secret(str(tmp_path / "s")).patient("P1") != KEYED.patient("P1")
    with pytest.raises(UsageError, match="cannot read the secret"):
        load_secret(str(tmp_path / "absent"))
