"""Tables of features: what is written comes back in order; what is none is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medray import lineage
from medray.errors import DataError
from medray.stream.table import FEATURES, FeatureTable, read_table, tag
from tests.faults import damage
from tests.feature_sets import CLASSES, LAYER, NETWORK, POOLING, make_features, rows_of
from tests.shard_sets import make_set

ROWS = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
LABELS = ["virus", "normal", "virus", None, "normal", "normal", "virus", "virus", None, None]


@pytest.fixture
def samples():
    return rows_of(ROWS, LABELS, per_patient=2)


def read(folder: Path, samples) -> FeatureTable:
    make_features(folder, samples, per_shard=4)
    return read_table(folder, "train")


def test_a_table_is_what_was_written_row_by_row(tmp_path: Path, samples) -> None:
    table = read(tmp_path, samples)
    assert np.array_equal(table.features, ROWS) and table.features.dtype == np.float32
    assert table.labels == tuple(LABELS) and table.classes == CLASSES and len(table) == 10
    assert table.keys == tuple(f"train-{n:08d}" for n in range(10))
    assert table.patients[:3] == ("train-p0", "train-p0", "train-p1")
    assert table.samples[5] == samples[5].source_sha256
    assert (table.network_sha256, table.layer, table.pooling) == (NETWORK, LAYER, POOLING)


def test_shuffled_rows_keep_their_labels(tmp_path: Path, samples) -> None:
    """Features and labels lie in one record, so no order of writing takes them apart."""
    order = np.random.default_rng(1).permutation(10)
    table = read(tmp_path, [samples[n] for n in order])
    label_of = {row.tobytes(): label for row, label in zip(ROWS, LABELS, strict=True)}
    assert not np.array_equal(table.features, ROWS)
    for row, label in zip(table.features, table.labels, strict=True):
        assert label_of[row.tobytes()] == label


def test_a_sample_without_patient_or_source_is_named_by_its_key(tmp_path: Path, samples) -> None:
    table = read(tmp_path, [replace(s, patient=None, source_sha256=None) for s in samples])
    assert table.patients[1] == "sample train-00000001"
    assert table.samples[1] == "small/train-00000001"


def test_the_facts_of_rows_are_those_of_their_records(tmp_path: Path, samples) -> None:
    table = read(tmp_path, [samples[0], replace(samples[1], patient=None, source_sha256=None)])
    known, unknown = table.facts()
    assert (known.key, known.label, known.patient) == ("train-00000000", "virus", "train-p0")
    assert unknown.patient is None
    saw = lineage.of_facts("small", (known, unknown), labels=True, split="train").entries
    assert {(s.sample, s.patient) for s in saw} == {
        (samples[0].source_sha256, "train-p0"),
        ("small/train-00000001", "small/train-00000001"),
    }


def test_patients_have_mean_features_and_the_majority_label(tmp_path: Path, samples) -> None:
    found = [{"fluid": v} for v in (1, 0, 0, 0, None, None, 1, None, 0, 1)]
    samples = [replace(s, labels=labels) for s, labels in zip(samples, found, strict=True)]
    make_features(tmp_path, samples, classes=(*CLASSES, "fluid"))
    table = read_table(tmp_path, "train").per_patient()
    assert table.patients == tuple(f"train-p{n}" for n in range(5))
    np.testing.assert_allclose(table.features, ROWS.reshape(5, 2, 4).mean(1), rtol=1e-6)
    # A tie goes to the class named first; a row without a label has no say.
    assert table.labels == ("normal", "virus", "normal", "virus", None)
    assert [labels["fluid"] for labels in table.findings] == [1, 0, None, 1, 1]


def test_rows_are_taken_in_the_order_asked_for(tmp_path: Path, samples) -> None:
    table = read(tmp_path, samples)
    some = table.take([7, 0])
    assert np.array_equal(some.features, ROWS[[7, 0]]) and some.keys == (
        table.keys[7],
        "train-" + "0" * 8,
    )
    assert table.labelled().labels == tuple(label for label in LABELS if label)


def test_maps_are_a_table_too(tmp_path: Path) -> None:
    maps = np.random.default_rng(2).standard_normal((4, 3, 2, 2)).astype(np.float32)
    assert np.array_equal(read(tmp_path, rows_of(maps, LABELS[:3] + ["normal"])).features, maps)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused_naming_the_key(tmp_path, samples, bad) -> None:
    row = ROWS[6].copy()
    row[2] = bad
    samples[6] = replace(samples[6], image=row)
    with pytest.raises(DataError, match=r"1 of 4 features are not finite.*train-00000006"):
        read(tmp_path, samples)


def test_rows_of_two_networks_in_one_set_are_refused_naming_both(tmp_path, samples) -> None:
    samples[3] = replace(samples[3], extra={FEATURES: tag("cd" * 32, LAYER, POOLING)})
    with pytest.raises(DataError, match=f"{NETWORK}:{LAYER}:mean and {'cd' * 32}"):
        read(tmp_path, samples)


def test_rows_of_two_shapes_are_refused(tmp_path, samples) -> None:
    samples[3] = replace(samples[3], image=np.zeros(5, np.float32))
    with pytest.raises(DataError, match=r"MR-D403.*\(5,\)"):
        read(tmp_path, samples)


def test_a_set_of_images_is_no_table(tmp_path) -> None:
    make_set(tmp_path / "images", 6)
    with pytest.raises(DataError, match="not a set of features"):
        read_table(tmp_path / "images", "train")


def test_a_missing_split_and_a_flipped_bit_are_errors(tmp_path, samples) -> None:
    read(tmp_path, samples)
    with pytest.raises(DataError, match="no shard of split 'test'"):
        read_table(tmp_path, "test")
    damage.flip_bit(tmp_path / "train-000001.tar", at_byte=700)
    with pytest.raises(DataError, match="MR-D024"):
        read_table(tmp_path, "train")
