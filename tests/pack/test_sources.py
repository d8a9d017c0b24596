"""What a source is read as, and every way in which a table can be wrong."""

import numpy as np
import pytest

from medray.errors import DataError, UsageError
from medray.images import encode_png
from medray.pack.config import PackConfig
from medray.pack.deidentify import Keyed
from medray.pack.plan import make_plan
from medray.pack.sources import list_source
from tests.made_dicom import dicom_bytes

KEYED = Keyed(b"0123456789abcdef")
GREY = encode_png(np.arange(64, dtype=np.uint8).reshape(8, 8))


def listing(source, **options):
    return list_source(PackConfig(source=str(source), size_px=8, **options), KEYED)


def folder(tmp_path, *names, data=GREY):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


def table(tmp_path, text, *names):
    folder(tmp_path, *names)
    (tmp_path / "t.csv").write_text(text)
    return tmp_path / "t.csv"


def codes(found):
    return sorted(finding.code for finding in found.findings)


def test_a_table_gives_labels_splits_masks_and_hashed_patients(tmp_path):
    rows = "file,label,split,mask,patient,age\nb.png,x|y,val,,P 2,40\na.png,,train,m.png,P1,7\n"
    found = listing(table(tmp_path, rows, "a.png", "b.png", "m.png"), keep_columns=("age",))
    first, second = found.entries
    assert (first.file, first.labels, first.split, first.mask) == ("a.png", None, "train", "m.png")
    assert (second.labels, second.split, second.mask) == (("x", "y"), "val", None)
    assert second.patient == KEYED.patient("P 2") != KEYED.patient("P1")
    assert second.where == "t.csv:2" and second.extra == {"age": "40"}
    assert "P 2" not in repr(found) and "P1" not in repr(found)


def test_columns_have_the_names_that_flags_give_and_delimiters_are_found(tmp_path):
    source = table(tmp_path, "img;finding;who\na.png;x;P1\n", "a.png")
    found = listing(source, file_column="img", label_column="finding", patient_column="who")
    assert found.entries[0].labels == ("x",)


def test_absolute_paths_are_taken_too(tmp_path):
    folder(tmp_path / "far", "a.png")
    source = table(tmp_path, f"file,label\n{tmp_path}/far/a.png,x\n")
    assert len(listing(source).entries) == 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("image,label\na.png,x\n", "no column 'file'.*the columns are: image, label"),
        ("", "no column 'file'"),
        ("file,label\n", "no rows"),
        ("file,label\n\xff".encode("latin-1"), "not text in UTF-8"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, text, message):
    source = tmp_path / "t.csv"
    source.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        listing(source)


def test_a_column_named_on_purpose_must_be_there_and_the_nearest_is_named(tmp_path):
    source = table(tmp_path, "file,labels\na.png,x\n", "a.png")
    assert listing(source).entries[0].labels is None
    with pytest.raises(DataError, match=r"no column 'labls' \(--label-column labels\?\)"):
        listing(source, label_column="labls")


def test_all_findings_come_in_one_pass(tmp_path):
    rows = "file,label,split\na.png,x,train\na.png,x,val\nb.png,7,dev\nc.png,x\n,x,test\n"
    found = listing(table(tmp_path, rows, "a.png", "b.png"), classes=("x", "y"))
    assert codes(found) == ["MR-D014", "MR-D202", "MR-D202", "MR-D204", "MR-D205"]
    label = next(f for f in found.findings if f.code == "MR-D014")
    assert label.message == "label 7 is not one of x, y" and label.where == "t.csv:4"
    with pytest.raises(DataError, match=r"5 error\(s\) in the table"):
        make_plan(PackConfig(source="x", size_px=8), found, None, KEYED, 0)


def test_a_split_in_some_rows_alone_is_a_finding(tmp_path):
    rows = "file,split\na.png,train\nb.png,\n"
    assert codes(listing(table(tmp_path, rows, "a.png", "b.png"))) == ["MR-D204"]


def test_absent_files_and_masks_are_rejected_with_their_rows(tmp_path):
    rows = "file,mask\na.png,\nb.png,\nc.png,m.png\n"
    found = listing(table(tmp_path, rows, "a.png", "c.png"))
    assert [(r.code, r.where) for r in found.rejected] == [
        ("MR-D206", "t.csv:3"),
        ("MR-D207", "t.csv:4"),
    ]
    assert [entry.file for entry in found.entries] == ["a.png"]


BOXES = ("x0", "y0", "x1", "y1")


def test_boxes_are_read_and_a_row_without_one_has_none(tmp_path):
    rows = "file,x0,y0,x1,y1\na.png,1,2.5,3,4\nb.png,,,,\n"
    found = listing(table(tmp_path, rows, "a.png", "b.png"), box_columns=BOXES)
    assert [entry.box for entry in found.entries] == [(1.0, 2.5, 3.0, 4.0), None]
    assert not found.findings


@pytest.mark.parametrize("cells", ["1,2,3,", "1,2,x,4", "3,2,1,4", "1,4,3,2", "1,2,nan,4"])
def test_a_box_that_is_none_is_found_with_its_row(tmp_path, cells):
    rows = f"file,x0,y0,x1,y1\na.png,1,2,3,4\nb.png,{cells}\n"
    found = listing(table(tmp_path, rows, "a.png", "b.png"), box_columns=BOXES)
    assert codes(found) == ["MR-D213"] and found.findings[0].where == "t.csv:3"


def test_a_box_decides_the_plan_and_its_absence_leaves_the_plan_as_it_was(tmp_path):
    rows = "file,x0,y0,x1,y1\na.png,1,2,3,4\nb.png,,,,\n"
    source = table(tmp_path, rows, "a.png", "b.png")

    def plan(**options):
        config = PackConfig(source=str(source), size_px=8, **options)
        return make_plan(config, list_source(config, KEYED), None, KEYED, 0)

    without = plan(bits="8")
    assert "box_columns" not in without.facts
    boxed = plan(bits="8", box_columns=BOXES)
    assert boxed.hash != without.hash
    source.write_text(rows.replace("3,4", "5,6"))
    assert plan(bits="8", box_columns=BOXES).hash != boxed.hash
    assert plan(bits="8").hash == without.hash


def test_a_folder_per_class_is_found_and_so_are_splits_above_it(tmp_path):
    found = listing(folder(tmp_path / "a", "x/1.png", "y/2.png"))
    assert [entry.labels for entry in found.entries] == [("x",), ("y",)]
    found = listing(folder(tmp_path / "b", "train/x/1.png", "test/y/2.png"))
    assert [(entry.split, entry.labels) for entry in found.entries] == [
        ("test", ("y",)),
        ("train", ("x",)),
    ]


def test_folders_of_dicom_are_patients_and_never_become_labels(tmp_path):
    data = dicom_bytes(np.zeros((4, 4), np.uint8))
    found = listing(folder(tmp_path, "DOE/1.dcm", "ROE/1.2.840.3", "ROE/notes.txt", data=data))
    assert [entry.labels for entry in found.entries] == [None, None]


def test_a_tree_takes_images_alone_and_no_hidden_files(tmp_path):
    folder(tmp_path, "a/b/1.png", "2.jpg", ".hidden/3.png", "readme.txt", "x.7")
    assert [entry.file for entry in listing(tmp_path).entries] == ["2.jpg", "a/b/1.png"]


def test_a_labels_csv_in_the_folder_is_used(tmp_path):
    folder(tmp_path, "a.png")
    (tmp_path / "labels.csv").write_text("file,label\na.png,x\n")
    assert listing(tmp_path).entries[0].labels == ("x",)
    assert listing(tmp_path, layout="tree").entries[0].labels is None


def test_an_empty_folder_is_a_data_error_and_an_absent_one_a_usage_error(tmp_path):
    with pytest.raises(DataError, match="no images among 0 files"):
        listing(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        listing(tmp_path / "absent")
    with pytest.raises(UsageError, match="no such CSV"):
        listing(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    "options",
    [
        {"keep_columns": ("patient",)},
        {"window": "3"},
        {"val": 0.6, "test": 0.5},
        {"channels": 2},
        {"box_columns": ("x0", "y0")},
    ],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError):
        PackConfig(source="x", size_px=8, **options)
