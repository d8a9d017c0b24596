"""Clips packed whole: any length, mended order, findings, masks, patients, and bad input."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from medray.errors import DataError, UsageError
from medray.images import decode_png, encode_png
from medray.pack.clips import frame_numbers, natural
from medray.pack.config import PackConfig
from medray.pack.pack import Job, pack
from medray.shards import verify
from medray.store import Store
from medray.stream.clips import ClipSet
from tests.made_clips import body, multiframe_bytes, nifti_bytes, slice_bytes, slice_dataset
from tests.made_dicom import saved

HEADER = "clip,patient,split,mask,acl,meniscus"


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("MEDRAY_SECRET_KEY", "0123456789abcdef")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def frames(seed, count, px=12):
    return np.random.default_rng(seed).integers(0, 256, (count, px, px), np.uint8)


def add_npy(folder, name, values):
    np.save(folder / name, values)


def add_slices(folder, name, values, numbers=None):
    """A folder of pictures, numbered without leading zeros."""
    (folder / name).mkdir(parents=True)
    for number, frame in zip(numbers or range(1, len(values) + 1), values, strict=True):
        (folder / name / f"{number}.png").write_bytes(encode_png(frame))


def table(folder, *rows, header=HEADER):
    path = folder / "clips.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def run(source, out, *, dry_run=False, **options):
    options = {"size_px": 8, "name": "set", "workers": 0, "val": 0, "test": 0, **options}
    config = PackConfig(source=str(source), clips=True, **options)
    return pack(config, Job(str(out), dry_run=dry_run))


def packed(source, out, **options):
    run(source, out, **options)
    assert verify(Store(out)) == []
    found = ClipSet.open(str(out))
    return [found.read(fact.key) for split in found.splits for fact in found.facts(split)]


def tree(out):
    return {name: Store(out).read_bytes(name) for name in Store(out).names()}


def notes(out):
    return list(csv.DictReader(io.StringIO((out / "findings.csv").read_text())))


def summary(out):
    return json.loads((out / "summary.json").read_text())


# --- what comes out -----------------------------------------------------------------------------


def test_clips_of_every_kind_become_one_set(tmp_path):
    add_npy(tmp_path, "a.npy", frames(1, 3, 8))
    add_slices(tmp_path, "b", frames(2, 11, 8))
    (tmp_path / "c.nii.gz").write_bytes(nifti_bytes(body(8, 8, 4), zipped=True))
    (tmp_path / "d.dcm").write_bytes(multiframe_bytes(frames(4, 2, 8), [0.0, 4.0]))
    (tmp_path / "e").mkdir()
    for k in range(5):
        (tmp_path / "e" / f"1.2.{9 - k}").write_bytes(slice_bytes(frames(5, 5, 8)[k], k, 4.0 * k))
    rows = [f"{name},P{name},train,,1,0" for name in ("a.npy", "b", "c.nii.gz", "d.dcm", "e")]
    clips = packed(table(tmp_path, *rows), tmp_path / "out", bits="8")
    assert [clip.fact.frames for clip in clips] == [3, 11, 4, 2, 5]
    assert np.array_equal(clips[0].frames_THW, frames(1, 3, 8))
    assert np.array_equal(clips[1].frames_THW, frames(2, 11, 8))  # 10 and 11 after 9
    assert np.array_equal(clips[3].frames_THW, frames(4, 2, 8))
    assert np.array_equal(clips[4].frames_THW, frames(5, 5, 8))
    assert [clip.slice_mm for clip in clips] == [None, None, 5.0, 4.0, 4.0]
    assert clips[2].spacing_mm == (2.0, 1.0)


def test_a_folder_without_a_table_is_volumes_and_folders_of_frames(tmp_path):
    source = tmp_path / "source"
    add_slices(source, "x/b", frames(2, 3))
    add_npy(source, "x/a.npy", frames(1, 2))
    (source / "s").mkdir()
    for k in range(4):
        (source / "s" / f"{k}.dcm").write_bytes(slice_bytes(frames(3, 4)[k], k, 4.0 * k))
    clips = packed(source, tmp_path / "out")
    assert [clip.fact.frames for clip in clips] == [4, 2, 3]
    first, second = clips[0].fact.patient, clips[1].fact.patient
    assert len(first) == 16 and first != "P7"  # DICOM's, hashed; else a patient of its own
    assert second == clips[1].fact.sample


def test_findings_are_one_nought_or_unknown_and_the_rarest_is_the_label(tmp_path):
    for name in "abcd":
        add_npy(tmp_path, f"{name}.npy", frames(ord(name), 2))
    rows = ["a.npy,A,train,,1,1", "b.npy,B,train,,0,1.0", "c.npy,C,train,,,0", "d.npy,D,train,,,"]
    clips = packed(table(tmp_path, *rows), tmp_path / "out")
    assert [tuple(clip.fact.labels.values()) for clip in clips] == [
        (1, 1),
        (0, 1),
        (None, 0),
        (None, None),
    ]
    assert [clip.fact.label for clip in clips] == ["acl", "meniscus", None, None]
    assert summary(tmp_path / "out")["findings"]["acl"] == {
        "present": 1,
        "absent": 1,
        "unknown": 2,
    }


def test_a_mask_goes_with_its_frames_through_every_turn(tmp_path):
    values = body(8, 8, 4)
    (tmp_path / "a.nii").write_bytes(nifti_bytes(values, "RAS"))
    (tmp_path / "m.nii").write_bytes(nifti_bytes((values > 300).astype(np.uint8), "LPI"))
    add_slices(tmp_path, "b", frames(1, 3, 8))
    add_slices(tmp_path, "bm", (frames(1, 3, 8) > 99).astype(np.uint8))
    rows = ["a.nii,A,train,m.nii,1,", "b,B,train,bm,1,"]
    first, second = packed(table(tmp_path, *rows), tmp_path / "out")
    turned = values.transpose(2, 1, 0)[:, ::-1, ::-1]
    assert np.array_equal(first.mask_THW == 255, turned > 300)
    assert np.array_equal(second.mask_THW == 255, frames(1, 3, 8) > 99)


def test_patients_are_hashed_and_stay_in_one_split(tmp_path):
    for k in range(24):
        add_npy(tmp_path, f"{k}.npy", frames(k, 2))
    rows = [f"{k}.npy,PATIENT{k // 2},,,{k % 2}," for k in range(24)]
    run(table(tmp_path, *rows), tmp_path / "out", val=0.25, test=0.25)
    found = ClipSet.open(tmp_path / "out")
    of = {split: {f.patient for f in found.facts(split)} for split in found.splits}
    assert len(of) == 3 and sum(map(len, of.values())) == 12
    assert b"PATIENT" not in b"".join(tree(tmp_path / "out").values())


def test_a_patient_in_two_splits_is_refused(tmp_path):
    for name in "ab":
        add_npy(tmp_path, f"{name}.npy", frames(1, 2))
    rows = ["a.npy,A,train,,1,", "b.npy,A,test,,1,"]
    with pytest.raises(DataError, match="MR-D208"):
        run(table(tmp_path, *rows), tmp_path / "out")


def test_the_contact_sheet_has_a_row_per_finding_and_one_of_none(tmp_path):
    for name in "abc":
        add_npy(tmp_path, f"{name}.npy", frames(ord(name), 20))
    rows = ["a.npy,A,train,,1,0", "b.npy,B,train,,0,1", "c.npy,C,train,,0,0"]
    run(table(tmp_path, *rows), tmp_path / "out")
    sheet = decode_png((tmp_path / "out" / "contact.png").read_bytes())
    assert sheet.shape == (3 * 100, 120 + 8 * 100, 3)


def test_nothing_of_a_series_header_is_in_the_set(tmp_path):
    (tmp_path / "s" / "x").mkdir(parents=True)
    names = "PatientID PatientName StudyDescription SeriesDescription InstitutionName".split()
    for k in range(2):
        dataset = slice_dataset(
            frames(1, 2)[k], k, 4.0 * k, **{name: f"CANARY{name[:6]}" for name in names}
        )
        dataset.SeriesInstanceUID = "1.2.777888999"
        (tmp_path / "s" / "x" / f"{k}.dcm").write_bytes(saved(dataset))
    run(tmp_path / "s", tmp_path / "out")
    every = b"".join(tree(tmp_path / "out").values())
    assert b"CANARY" not in every and b"777888999" not in every


def test_paths_in_a_table_may_lead_out_of_its_folder(tmp_path):
    add_slices(tmp_path, "data/a", frames(1, 2))
    (tmp_path / "tables").mkdir()
    (clip,) = packed(table(tmp_path / "tables", "../data/a,A,train,,1,"), tmp_path / "out")
    assert clip.fact.frames == 2


# --- bad input ----------------------------------------------------------------------------------


def test_clips_of_1_and_of_500_frames_and_of_other_sizes_are_packed(tmp_path):
    add_npy(tmp_path, "a.npy", frames(1, 1, 5))
    add_npy(tmp_path, "b.npy", frames(2, 500, 16))
    add_npy(tmp_path, "c.npy", np.zeros((2, 30, 10), np.uint8) + np.uint8(200))
    rows = [f"{name}.npy,{name},train,,1," for name in "abc"]
    clips = packed(table(tmp_path, *rows), tmp_path / "out")
    assert [clip.frames_THW.shape for clip in clips] == [(1, 8, 8), (500, 8, 8), (2, 8, 8)]
    assert clips[2].frames_THW[:, :, 0].max() == 0  # the aspect is kept, black beside it
    found = summary(tmp_path / "out")["frames"]
    assert (found["least"], found["most"], found["all"]) == (1, 500, 503)


def rejected(out):
    return list(csv.DictReader(io.StringIO((out / "rejected.csv").read_text())))


def test_a_frame_of_another_size_within_a_clip_is_named(tmp_path):
    add_slices(tmp_path, "a", [*frames(1, 2), frames(1, 1, 9)[0]])
    source = table(tmp_path, "a,A,train,,1,")
    with pytest.raises(DataError, match=r"1 of 1 files were rejected \(MR-D218\)"):
        run(source, tmp_path / "out")
    (row,) = rejected(tmp_path / "out")
    assert row["reason"] == "frame 3 of 3 is 9x9 px, the first 12x12" and row["file"] == "a"


def test_missing_frames_are_a_finding_with_their_numbers(tmp_path, capsys):
    add_slices(tmp_path, "a", frames(1, 4), [1, 2, 5, 6])
    add_slices(tmp_path, "b", frames(2, 4))
    clips = packed(table(tmp_path, "a,A,train,,1,", "b,B,train,,1,"), tmp_path / "out")
    assert len(clips[0].frames_THW) == 4
    assert notes(tmp_path / "out") == [
        {"key": "train-00000000", "code": "MR-D214", "finding": "frames are missing: 3, 4"}
    ]
    assert "MR-D214 warning  clips with frames missing: 1" in capsys.readouterr().err


def test_frames_out_of_order_are_put_in_order_and_reported(tmp_path):
    (tmp_path / "a").mkdir()
    for number, place in enumerate((0.0, 8.0, 4.0, 12.0), start=1):
        values = np.full((8, 8), 20 * place, np.uint8)
        (tmp_path / "a" / f"{number}.dcm").write_bytes(slice_bytes(values, number, place))
    (clip,) = packed(table(tmp_path, "a,A,train,,1,"), tmp_path / "out")
    assert clip.frames_THW[:, 0, 0].tolist() == [0, 80, 160, 240]
    assert [row["code"] for row in notes(tmp_path / "out")] == ["MR-D215"]
    assert notes(tmp_path / "out")[0]["finding"].endswith("their places: 2, 3")


def test_blank_frames_are_kept_and_counted(tmp_path):
    values = frames(1, 5)
    values[[0, 4]] = 0
    add_npy(tmp_path, "a.npy", values)
    add_npy(tmp_path, "b.npy", np.zeros((3, 12, 12), np.int16))
    clips = packed(table(tmp_path, "a.npy,A,train,,1,", "b.npy,B,train,,1,"), tmp_path / "out")
    assert [len(clip.frames_THW) for clip in clips] == [5, 3]
    assert summary(tmp_path / "out")["frames"]["blank"] == 5


def test_a_column_that_is_empty_in_every_row_is_a_finding_that_names_it(tmp_path, capsys):
    add_npy(tmp_path, "a.npy", frames(1, 2))
    (clip,) = packed(table(tmp_path, "a.npy,A,train,,1,"), tmp_path / "out")
    said = capsys.readouterr().err
    assert "MR-D221 warning  the finding 'meniscus' is empty" in said and "'acl'" not in said
    assert summary(tmp_path / "out")["findings_never_known"] == ["meniscus"]
    assert clip.fact.labels == {"acl": 1, "meniscus": None}


def test_a_finding_that_is_neither_0_nor_1_is_refused_naming_row_and_column(tmp_path):
    add_npy(tmp_path, "a.npy", frames(1, 2))
    source = table(tmp_path, "a.npy,A,train,,1,0,44", header=HEADER + ",age")
    with pytest.raises(DataError, match="MR-D217"):
        run(source, tmp_path / "out")
    (clip,) = packed(source, tmp_path / "out", classes=("acl", "meniscus"))
    assert tuple(clip.fact.labels) == ("acl", "meniscus")
    kept = packed(source, tmp_path / "kept", keep_columns=("age",))
    assert tuple(kept[0].fact.labels) == ("acl", "meniscus")


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (frames(1, 2) > 99, "its mask is 2x12x12, the clip 3x12x12"),
        (frames(1, 3, 9) > 99, "its mask is 3x9x9"),
        (frames(1, 3), "more than two values"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(tmp_path, mask, said):
    add_npy(tmp_path, "a.npy", frames(1, 3))
    add_npy(tmp_path, "m.npy", mask)
    with pytest.raises(DataError, match="MR-D209"):
        run(table(tmp_path, "a.npy,A,train,m.npy,1,"), tmp_path / "out")
    assert said in rejected(tmp_path / "out")[0]["reason"]


def test_a_mask_whose_frames_cannot_be_matched_is_refused(tmp_path):
    """A volume is turned upright: frames of a mask without directions may be others."""
    (tmp_path / "a.nii").write_bytes(nifti_bytes(body(8, 8, 3)))
    add_npy(tmp_path, "m.npy", np.ones((3, 8, 8), np.uint8))
    add_slices(tmp_path, "b", frames(1, 2), [1, 2])
    add_slices(tmp_path, "bm", frames(1, 2) * 0, [1, 3])
    for row, said in (("a.nii,A,train,m.npy,1,", "how the patient lies"), ("b,B,train,bm,1,", "3")):
        with pytest.raises(DataError, match="MR-D209"):
            run(table(tmp_path, row), tmp_path / f"out{said[-1]}")
        assert said in rejected(tmp_path / f"out{said[-1]}")[0]["reason"]


def test_absent_clips_empty_folders_and_damaged_frames_have_reasons(tmp_path):
    add_npy(tmp_path, "a.npy", frames(1, 2))
    (tmp_path / "empty").mkdir()
    add_slices(tmp_path, "bad", frames(1, 3))
    cut = (tmp_path / "bad" / "2.png").read_bytes()[:60]
    (tmp_path / "bad" / "2.png").write_bytes(cut)
    names = ("a.npy", "empty", "bad", "nowhere")
    source = table(tmp_path, *(f"{name},{name},train,,1," for name in names))
    with pytest.raises(DataError, match="MR-D206"):
        run(source, tmp_path / "none")
    (clip,) = packed(source, tmp_path / "out", max_rejected=3)
    assert clip.fact.frames == 2
    reasons = {row["file"]: (row["code"], row["reason"]) for row in rejected(tmp_path / "out")}
    assert reasons["empty"][0] == reasons["nowhere"][0] == "MR-D206"
    assert reasons["bad"][0] == "MR-D102" and reasons["bad"][1].startswith("frame 2 of 3: ")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"encoding": "png"}, "encoding png"),
        ({"channels": 3}, "channels 3"),
        ({"label_column": "x"}, "label-column"),
    ],
)
def test_what_does_not_go_with_clips_is_refused(tmp_path, option, said):
    with pytest.raises(ValueError, match=f"--clips does not go with --{said}"):
        PackConfig(source=str(tmp_path), size_px=8, clips=True, **option)


def test_an_absent_column_and_an_absent_source_are_named(tmp_path):
    add_npy(tmp_path, "a.npy", frames(1, 2))
    with pytest.raises(DataError, match="MR-D203.*no column 'clip'"):
        run(table(tmp_path, "a.npy", header="file"), tmp_path / "out")
    with pytest.raises(DataError, match="MR-D203.*no column 'knee'"):
        run(table(tmp_path, "a.npy,1", header="clip,acl"), tmp_path / "out", classes=("knee",))
    with pytest.raises(UsageError, match="no such folder"):
        run(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="MR-D201.*no clips"):
        run(tmp_path / "empty", tmp_path / "out")


# --- again --------------------------------------------------------------------------------------

# Packs, and dies by SIGKILL at the k-th clip that is added to a shard.
DIES = """
import os, signal, sys
from medray.shards import writer
from medray.pack.config import PackConfig
from medray.pack.pack import Job, pack
count = 0
def killed(add):
    def wrapped(self, sample):
        global count
        count += 1
        if count == int(sys.argv[3]):
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, sample)
    return wrapped
writer.ShardWriter.add = killed(writer.ShardWriter.add)
if sys.argv[4] == "unguarded":
    writer._part_path = lambda store, name: store.path(name + ".tar")
options = {"size_px": 8, "samples_per_shard": 2, "workers": 0, "val": 0, "test": 0, "name": "set"}
pack(PackConfig(source=sys.argv[1], clips=True, **options), Job(sys.argv[2]))
"""


def dies(folder, at, how="guarded"):
    """A table of six clips, whose pack is killed at clip `at`."""
    for k in range(6):
        add_npy(folder, f"{k}.npy", frames(k, 1 + k))
    source = table(folder, *(f"{k}.npy,P{k},train,,1," for k in range(6)))
    words = [sys.executable, "-c", DIES, str(source), str(folder / "out"), str(at), how]
    assert subprocess.run(words).returncode == -signal.SIGKILL
    assert not (folder / "out" / "index.json").exists()
    return source


@pytest.mark.parametrize("at", [2, 5])
def test_killed_at_a_clip_the_same_command_gives_the_same_bytes(tmp_path, at):
    source = dies(tmp_path, at)
    run(source, tmp_path / "clean", samples_per_shard=2)
    assert half_written(tmp_path) == []
    run(source, tmp_path / "out", samples_per_shard=2)
    assert tree(tmp_path / "out") == tree(tmp_path / "clean")


def half_written(folder):
    """Tars under their names that are not those of a pack that was never killed."""
    clean = tree(folder / "clean")
    there = {name: data for name, data in tree(folder / "out").items() if name.endswith(".tar")}
    return [name for name, data in there.items() if data != clean[name]]


def test_without_part_and_rename_a_kill_leaves_half_a_shard_of_clips(tmp_path):
    """The negative control of the test above."""
    run(dies(tmp_path, 4, "unguarded"), tmp_path / "clean", samples_per_shard=2)
    assert half_written(tmp_path) == ["train-000001.tar"]


def test_a_slice_that_changed_is_another_plan(tmp_path):
    add_slices(tmp_path, "a", frames(1, 3))
    source = table(tmp_path, "a,A,train,,1,")
    run(source, tmp_path / "out")
    run(source, tmp_path / "out")  # nothing to do
    status = (tmp_path / "a" / "2.png").stat()
    os.utime(tmp_path / "a" / "2.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(UsageError, match="files_sha256 was"):
        run(source, tmp_path / "out")


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    add_npy(tmp_path, "a.npy", frames(1, 2))
    assert run(table(tmp_path, "a.npy,A,train,,1,"), tmp_path / "out", dry_run=True) is None
    assert not (tmp_path / "out").exists() and "nothing was written" in capsys.readouterr().err


@pytest.mark.parametrize("bits", ["8", "16"])
def test_bits_are_as_asked_for(tmp_path, bits):
    (tmp_path / "a.nii").write_bytes(nifti_bytes(body(8, 8, 3)))
    (clip,) = packed(table(tmp_path, "a.nii,A,train,,1,"), tmp_path / "out", bits=bits)
    assert clip.frames_THW.dtype.itemsize * 8 == int(bits)
    top = np.iinfo(clip.frames_THW.dtype).max
    assert clip.frames_THW.max() == top and clip.frames_THW.min() == 0


def test_names_sort_as_people_count() -> None:
    names = ["s10.png", "s9.png", "s1b", "10", "9", "a/2", "a/10"]
    assert sorted(names, key=natural) == ["9", "10", "a/2", "a/10", "s1b", "s9.png", "s10.png"]
    found = frame_numbers(["a/007.png", "IM-0001-0012.dcm", "1.2.840.12", "x.png"])
    assert found == [7, 12, None, None]
