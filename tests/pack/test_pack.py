"""The whole pack in one process: what lies there afterwards, and what bad input does."""

import csv
import io
import json

import numpy as np
import pytest
import webdataset

from medray.errors import DataError, UsageError
from medray.images import decode_png, encode_png
from medray.pack.config import PackConfig
from medray.pack.pack import Job, pack
from medray.shards import open_shard, read_index, verify
from medray.store import Store
from tests.made_dicom import dicom_bytes


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("MEDRAY_SECRET_KEY", "0123456789abcdef")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def picture(seed, shape=(20, 20), dtype=np.uint8):
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, shape, dtype, endpoint=True)


@pytest.fixture
def source(tmp_path):
    """40 images of 20 patients in two classes, with masks, and a table."""
    folder = tmp_path / "source"
    folder.mkdir()
    rows = ["file,label,mask,patient"]
    for k in range(40):
        (folder / f"{k}.png").write_bytes(encode_png(picture(k)))
        (folder / f"m{k}.png").write_bytes(encode_png((picture(k) > 200).astype(np.uint8)))
        rows.append(f"{k}.png,{'ab'[k % 5 == 0]},m{k}.png,P{k // 2}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


def run(source, out, *, seed=0, overwrite=False, dry_run=False, **options):
    options = {"size_px": 16, "samples_per_shard": 8, "name": "set", "workers": 0, **options}
    return pack(PackConfig(source=str(source), **options), Job(str(out), seed, overwrite, dry_run))


def tree(out):
    store = Store(out)
    return {name: store.read_bytes(name) for name in store.names()}


def samples(out):
    store = Store(out)
    for shard in read_index(store).shards:
        reader = open_shard(store, shard)
        yield from (reader.sample(k) for k in range(len(reader)))


def test_a_set_holds_every_image_once_with_label_patient_mask_and_digest(source, tmp_path):
    index = run(source, tmp_path / "out")
    assert verify(Store(tmp_path / "out")) == []
    assert (index.classes, index.bits, index.channels, index.size_px) == (("a", "b"), 8, 1, 16)
    found = list(samples(tmp_path / "out"))
    assert len(found) == 40 == len({sample.source_sha256 for sample in found})
    splits = {}
    for sample in found:
        assert sample.key.startswith(f"{sample.split}-") and sample.image.shape == (16, 16)
        assert set(np.unique(sample.mask)) <= {0, 255}
        assert sample.labels == {name: int(name == sample.label) for name in "ab"}
        assert splits.setdefault(sample.patient, sample.split) == sample.split
    assert len(splits) == 20
    files = set(tree(tmp_path / "out"))
    assert {"index.json", "plan.json", "rejected.csv", "summary.json", "contact.png"} <= files
    assert not any(name.startswith(".pack") for name in files)


def test_boxes_become_masks_where_no_mask_file_is_named(source, tmp_path):
    rows = ["file,mask,x0,y0,x1,y1"]
    rows += [f"{k}.png,{'m3.png' if k == 3 else ''},5,0,15,10" for k in range(4)]
    rows.append("4.png,,,,,")
    (source / "labels.csv").write_text("\n".join(rows))
    columns = ("x0", "y0", "x1", "y1")
    run(source, tmp_path / "out", box_columns=columns, size_px=20, val=0, test=0)
    found = list(samples(tmp_path / "out"))
    boxed = np.zeros((20, 20), np.uint8)
    boxed[0:10, 5:15] = 255
    assert all((sample.mask == boxed).all() for sample in found[:3])
    assert ((found[3].mask > 0) == (picture(3) > 200)).all() and found[4].mask is None
    (source / "labels.csv").write_text(rows[0] + "\n0.png,,30,0,40,10\n1.png,,0,0,9,9")
    with pytest.raises(DataError, match="MR-D213"):
        run(source, tmp_path / "other", box_columns=columns)


# webdataset leaves it to the garbage collector to close files.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_plain_webdataset_opens_what_was_packed(source, tmp_path):
    index = run(source, tmp_path / "out")
    urls = [str(tmp_path / "out" / f"{shard.name}.tar") for shard in index.shards]
    rows = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("l8"))
    assert len(rows) == 40
    assert all(row["png"].shape == (16, 16) and "label" in row["json"] for row in rows)


def test_the_summary_counts_and_the_contact_sheet_is_a_picture(source, tmp_path):
    run(source, tmp_path / "out")
    found = tree(tmp_path / "out")
    facts = json.loads(found["summary.json"])
    assert sum(facts["images"].values()) == 40 and sum(facts["patients"].values()) == 20
    assert sum(counts["b"] for counts in facts["classes"].values()) == 8
    sheet = decode_png(found["contact.png"])
    assert sheet.shape[0] == 200 and sheet.std() > 10


@pytest.mark.parametrize("url", ["file", "memory"])
def test_urls_give_the_same_bytes_as_folders(source, tmp_path, url):
    run(source, tmp_path / "out")
    place = f"file://{tmp_path}/other" if url == "file" else f"memory://{tmp_path.name}/out"
    run(source, place)
    assert tree(place) == tree(tmp_path / "out")


def test_a_source_in_memory_is_read_too(source, tmp_path):
    copy = Store(f"memory://{tmp_path.name}/source")
    for name, data in tree(source).items():
        copy.write_bytes(name, data)
    run(f"{copy.url}/labels.csv", tmp_path / "a")
    run(source, tmp_path / "b")
    wanted = {n: d for n, d in tree(tmp_path / "b").items() if n != "plan.json"}
    assert {n: d for n, d in tree(tmp_path / "a").items() if n != "plan.json"} == wanted


def test_a_finished_set_is_left_alone_and_another_plan_is_refused(source, tmp_path):
    run(source, tmp_path / "out")
    before = tree(tmp_path / "out")
    run(source, tmp_path / "out", max_rejected=3)
    assert tree(tmp_path / "out") == before
    with pytest.raises(UsageError, match="size_px was 16, is 8"):
        run(source, tmp_path / "out", size_px=8)
    run(source, tmp_path / "out", size_px=8, overwrite=True)
    assert read_index(Store(tmp_path / "out")).size_px == 8


def test_a_folder_of_other_things_is_never_written_to(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="not empty"):
            run(source, tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out" / "thesis.txt").exists()


def test_a_dry_run_writes_nothing(source, tmp_path):
    assert run(source, tmp_path / "out", dry_run=True) is None
    assert not (tmp_path / "out").exists()


def test_bad_files_are_rejected_and_the_job_fails_only_past_the_limit(source, tmp_path):
    data = (source / "3.png").read_bytes()
    (source / "3.png").write_bytes(data[:-20])
    (source / "7.png").write_bytes(b"no image")
    (source / "m9.png").write_bytes(encode_png(picture(9)))
    with pytest.raises(DataError, match=r"3 of 40 files were rejected .*0 may be") as caught:
        run(source, tmp_path / "out")
    assert "--max-rejected 3" in caught.value.hint
    rows = list(csv.DictReader(io.StringIO(tree(tmp_path / "out")["rejected.csv"].decode())))
    assert [(row["file"], row["code"]) for row in rows] == [
        ("3.png", "MR-D102"),
        ("7.png", "MR-D101"),
        ("9.png", "MR-D209"),
    ]
    assert not (tmp_path / "out" / "index.json").exists()
    run(source, tmp_path / "out", max_rejected=3)
    assert len(list(samples(tmp_path / "out"))) == 37
    run(source, tmp_path / "fresh", max_rejected=3)
    assert tree(tmp_path / "fresh") == tree(tmp_path / "out")


def test_absent_files_end_the_job_before_anything_is_written(source, tmp_path):
    with open(source / "labels.csv", "a") as file:
        file.write("\ngone.png,a,,P90\nlost.png,a,,P91\n")
    with pytest.raises(DataError, match=r"2 file\(s\) of the table are not there"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run(source, tmp_path / "out", max_rejected=2)
    assert b"gone.png,MR-D206" in tree(tmp_path / "out")["rejected.csv"]


def test_a_patient_in_two_splits_is_refused(source, tmp_path):
    table = (source / "labels.csv").read_text().splitlines()
    split = [f"{row},{'train' if k % 7 else 'test'}" for k, row in enumerate(table[1:])]
    (source / "labels.csv").write_text("\n".join([table[0] + ",split", *split]))
    with pytest.raises(DataError, match="error") as caught:
        run(source, tmp_path / "out")
    assert caught.value.code == "MR-D208" and not (tmp_path / "out").exists()


def test_equal_pictures_in_two_splits_are_reported(source, tmp_path, capsys):
    (source / "copy.png").write_bytes((source / "0.png").read_bytes())
    rows = ["file,split", "copy.png,test"]
    rows += [f"{k}.png,train" for k in range(40)]
    (source / "labels.csv").write_text("\n".join(rows))
    run(source, tmp_path / "out")
    assert tree(tmp_path / "out")["duplicates.csv"] == b"keys\ntrain-00000000|test-00000000\n"
    assert "MR-D210" in capsys.readouterr().err


def test_mixed_sizes_and_depths_become_one_set(tmp_path):
    for k, (shape, dtype) in enumerate(
        [((9, 30), np.uint8), ((40, 20), np.uint16), ((16, 16), np.uint8)]
    ):
        (tmp_path / f"{k}.png").write_bytes(encode_png(picture(k, shape, dtype)))
    colour = picture(9, (10, 10, 3))
    np.save(tmp_path / "3.npy", colour)
    index = run(tmp_path, tmp_path / "o" / "auto")
    assert (index.bits, index.channels) == (16, 1)
    assert {sample.image.dtype for sample in samples(tmp_path / "o" / "auto")} == {
        np.dtype("uint16")
    }
    index = run(tmp_path, tmp_path / "o" / "deep", bits=8, channels=3, layout="tree")
    assert all(s.image.shape == (16, 16, 3) for s in samples(tmp_path / "o" / "deep"))


def test_several_labels_stay_several_and_a_missing_one_is_null(tmp_path):
    for k in range(4):
        (tmp_path / f"{k}.png").write_bytes(encode_png(picture(k)))
    rows = "file,label,split\n0.png,x|y,train\n1.png,x,train\n2.png,,train\n3.png,x,train\n"
    (tmp_path / "labels.csv").write_text(rows)
    run(tmp_path, tmp_path / "out")
    found = {sample.key[-1]: (sample.label, sample.labels) for sample in samples(tmp_path / "out")}
    assert found["0"] == ("y", {"x": 1, "y": 1})
    assert found["1"] == ("x", {"x": 1, "y": 0})
    assert found["2"] == (None, {"x": None, "y": None})


def test_burned_in_text_is_flagged_or_rejected(tmp_path):
    for k, said in enumerate(["YES", "NO"]):
        data = dicom_bytes(
            picture(k), BurnedInAnnotation=said, PatientID=f"P{k}", PixelSpacing=[1, 1]
        )
        (tmp_path / f"{k}.dcm").write_bytes(data)
    run(tmp_path, tmp_path / "flag")
    found = list(samples(tmp_path / "flag"))
    assert sorted(sample.burned_in for sample in found) == [False, True]
    assert all(sample.spacing_mm == (1.25, 1.25) for sample in found)
    with pytest.raises(DataError, match="MR-D112"):
        run(tmp_path, tmp_path / "reject", burned_in="reject")


def test_every_dicom_sample_is_packed_or_rejected_with_its_reason(unpacked, tmp_path):
    folder = unpacked("dicom_samples")
    run(folder, tmp_path / "out", max_rejected=60)
    rows = list(csv.DictReader(io.StringIO(tree(tmp_path / "out")["rejected.csv"].decode())))
    assert len(rows) + len(list(samples(tmp_path / "out"))) == 127
    with open(folder / "labels.csv", newline="") as file:
        good = {row["file"] for row in csv.DictReader(file) if row["label"] == "valid_image"}
    assert not good & {row["file"] for row in rows}
    assert all(row["code"].startswith("MR-D1") and row["reason"] for row in rows)
