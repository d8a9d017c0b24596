"""What a search sees holds no test row; test rows come out once, to weights that are fixed."""

import json

import numpy as np
import pytest

from medray.errors import DataError
from medray.store import Store
from medray.tune.data import Part, SearchData, TestOnce
from tests.tune.toys import CLASSES, search_data, table


def test_search_data_has_no_way_to_test_rows():
    data = search_data()
    names = set(SearchData.__dataclass_fields__)
    assert names == {"rows", "parts", "classes", "synthetic"}
    used = {int(n) for part in data.parts for side in (part.train, part.val) for n in side}
    assert used == set(range(len(data.rows)))


def test_a_patient_of_the_test_rows_among_those_to_choose_by_is_refused():
    data = search_data()
    with pytest.raises(DataError, match="1 patient.*test rows") as caught:
        data.check(frozenset({"p3", "somebody else"}))
    assert caught.value.code == "MR-D411"
    assert data.check(frozenset({"somebody else"})) is data


def test_a_patient_on_both_sides_of_a_validation_is_refused():
    rows = table(8)
    with pytest.raises(DataError, match="both sides"):
        SearchData(rows, (Part(np.arange(3), np.arange(3, 8)),), CLASSES).check(frozenset())
    SearchData(rows, (Part(np.arange(4), np.arange(4, 8)),), CLASSES).check(frozenset())


def test_features_that_are_not_finite_are_refused():
    rows = table(8)
    rows.features_ND[2, 1] = np.nan
    with pytest.raises(DataError, match="not finite"):
        SearchData(rows, (Part(np.arange(4), np.arange(4, 8)),), CLASSES).check(frozenset())


def test_the_marker_is_written_before_the_rows_come_out(tmp_path):
    seen = []

    def rows_of(fold):
        seen.append(sorted(path.name for path in tmp_path.rglob("*.json")))
        return table(4)

    once = TestOnce(Store(tmp_path), rows_of)
    assert len(once.open("none-1/0", None, b"weights")) == 4
    assert seen == [["0.json"]]
    touched = json.loads((tmp_path / "touched/none-1/0.json").read_text())
    assert touched["name"] == "none-1/0" and len(touched["weights_sha256"]) == 64


def test_the_test_rows_are_refused_the_second_time(tmp_path):
    once = TestOnce(Store(tmp_path), lambda fold: table(4))
    once.open("smote-1/0", None, b"weights")
    with pytest.raises(DataError, match="touched the test split already") as caught:
        once.open("smote-1/0", None, b"weights")
    assert caught.value.code == "MR-D412"
    once.open("smote-1/1", None, b"weights")


def test_after_a_kill_the_same_weights_go_on_and_others_are_refused(tmp_path):
    TestOnce(Store(tmp_path), lambda fold: table(4)).open("smote-1/0", 2, b"weights")
    with pytest.raises(DataError, match="other weights"):
        TestOnce(Store(tmp_path), lambda fold: table(4)).open("smote-1/0", 2, b"better")
    again = TestOnce(Store(tmp_path), lambda fold: table(4))
    assert len(again.open("smote-1/0", 2, b"weights")) == 4


def test_a_change_of_a_feature_label_or_patient_changes_the_digest():
    rows = table(8)
    assert rows.sha256 == table(8).sha256
    rows.features_ND[0, 0] += 1
    assert rows.sha256 != table(8).sha256
