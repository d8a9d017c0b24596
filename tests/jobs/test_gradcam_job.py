"""`jobs/gradcam.py` as a person uses it: masks, scores, resume, exit codes, DICOM."""

from __future__ import annotations

import json

import numpy as np
import pydicom
import pytest

from jobs import _gradcam_run as gradcam_run
from jobs.gradcam import main
from medray import lineage
from medray.images.secondary_capture import uid_of
from medray.shards import read_index, verify
from medray.store import Store
from medray.stream import Source
from medray.stream.masks import MaskRoster
from tests.faults.kill import tree_sha256
from tests.jobs import gradcam_sets as sets
from tests.made_dicom import dicom_bytes

FEW = ("--interval-draws", "40", "-q")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A set, one without masks, a classifier that finds squares."""
    folder = tmp_path_factory.mktemp("made")
    sets.write(folder / "set")
    sets.write(folder / "bare", masks=False)
    sets.save(folder / "c", sets.trained())
    saw = lineage.Lineage([lineage.Saw("s1", "p1", "train", "square")])
    lineage.write(Store(folder / "c").child("model"), saw)
    return folder


def run(made, out, *more, data="set", classifier="c"):
    flags = ("--classifier", str(made / classifier), "--data", f"{made}/{data}", "--out", str(out))
    return main([*flags, *FEW, *more])


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory):
    """A finished result."""
    out = tmp_path_factory.mktemp("whole") / "o"
    assert run(made, out, "--background", "plain", "--method", "both") == 0
    return out


def summary(out):
    return json.loads((out / "summary.json").read_text())


# --- what it leaves ------------------------------------------------------------------------------


def test_the_set_comes_out_with_masks_where_squares_are_and_none_elsewhere(made, whole):
    assert not verify(Store(whole))
    index, source = read_index(Store(whole)), read_index(Store(made / "set"))
    assert [s.samples for s in index.shards] == [s.samples for s in source.shards]
    theirs = MaskRoster([Source(str(whole))], "test")
    ours = MaskRoster([Source(f"{made}/set")], "test")
    assert theirs.facts == ours.facts, "keys, labels and patients are the set's"
    (images, said), (same, true) = next(theirs.pairs(theirs.facts)), next(ours.pairs(ours.facts))
    assert np.array_equal(images, same)
    square = np.asarray([fact.label == "square" for fact in ours.facts])
    overlap = (said & true).sum((1, 2))[square] / true.sum((1, 2))[square]
    assert overlap.mean() > 0.5
    assert said[~square].any((1, 2)).mean() < 0.3, "a class without a place gets no mask"


def test_scores_stand_beside_those_of_what_looks_at_nothing(whole):
    found = summary(whole)["scores"]
    assert found["images"] == 12 and found["patients"] == 6
    dice = {name: figures["dice"]["estimate"] for name, figures in found["ways"].items()}
    assert set(dice) == {"gradcam", "random", "centre", "otsu", "random_weights"}
    assert dice["gradcam"] > max(dice["random"], dice["centre"], dice["random_weights"])
    assert found["minus"]["random"]["dice"]["low"] > 0
    assert found["classifier"]["balanced_accuracy"]["estimate"] > 0.8
    page = (whole / "report.html").read_text()
    assert "pointing game" in page and "data:image/png" in page
    assert "| Grad-CAM |" in (whole / "tables.md").read_text()


def test_layer_method_and_cut_are_those_of_highest_dice_on_validation(whole):
    chosen = summary(whole)["chosen"]
    assert len(chosen["by_way"]) == 4
    assert chosen["by_way"][chosen["way"]] == [chosen["cut"], chosen["dice"]]
    assert chosen["dice"] == max(dice for _, dice in chosen["by_way"].values())


def test_the_result_saw_what_the_classifier_saw_and_the_masks_that_chose(whole):
    seen = lineage.read(str(whole))
    assert "p1" in seen.patients and "val0" in seen.patients and "test0" not in seen.patients


def test_another_result_takes_the_choice_of_a_finished_one(made, whole, tmp_path):
    assert run(made, tmp_path / "o", "--choice", str(whole), data="bare") == 0
    chosen, first = summary(tmp_path / "o")["chosen"], summary(whole)["chosen"]
    assert (chosen["way"], chosen["cut"]) == (first["way"], first["cut"])
    assert run(made, tmp_path / "p", "--choice", f"{made}/set") == 2


# --- resume --------------------------------------------------------------------------------------


def test_killed_between_shards_the_same_command_ends_with_the_same_bytes(
    made, whole, tmp_path, monkeypatch
):
    flags, writes = ("--background", "plain", "--method", "both"), []
    plain = gradcam_run._shard

    def third_fails(*given):
        writes.append(given[3])
        if len(writes) == 3:
            raise KeyboardInterrupt
        return plain(*given)

    monkeypatch.setattr(gradcam_run, "_shard", third_fails)
    assert run(made, tmp_path / "o", *flags) == 130
    assert not (tmp_path / "o" / "index.json").exists()
    assert run(made, tmp_path / "o", *flags) == 0
    total = len(read_index(Store(whole)).shards)
    assert len(writes) == total + 1, "finished shards are not made again"

    def same(name):
        return not name.endswith(".lock") and name != "report.html"

    assert tree_sha256(tmp_path / "o", same) == tree_sha256(whole, same)
    assert run(made, tmp_path / "o", *flags) == 0 and len(writes) == total + 1
    assert run(made, tmp_path / "o", "--method", "gradcam") == 2, "another plan is refused"


# --- bad input -----------------------------------------------------------------------------------


def test_a_layer_that_does_not_exist_is_exit_2_and_the_others_are_listed(made, tmp_path, capsys):
    assert run(made, tmp_path / "o", "--layer", "body.blokcs.1") == 2
    said = capsys.readouterr().err
    assert "body.blocks.1 " in said and "--layer body.blocks.1" in said
    assert not (tmp_path / "o").exists()
    flags = ("--classifier", f"{made}/c", "--data", f"{made}/set")
    assert main([*flags, "--layer", "?"]) == 0
    assert "body.blocks.0.conv1" in capsys.readouterr().err


def test_images_without_masks_get_masks_but_no_scores_and_score_insists(made, tmp_path, capsys):
    assert run(made, tmp_path / "o", data="bare") == 0
    said = capsys.readouterr().err
    assert "scores are left out" in said and "no true mask to choose" in said
    assert summary(tmp_path / "o")["scores"]["ways"] == {}
    assert not verify(Store(tmp_path / "o"))
    assert run(made, tmp_path / "p", "--score", data="bare") == 3
    assert "nothing to score" in capsys.readouterr().err
    assert not (tmp_path / "p" / "index.json").exists()


def test_a_classifier_of_another_class_list_is_refused(made, tmp_path, capsys):
    sets.save(tmp_path / "other", sets.untrained(("normal", "bacteria")))
    assert run(made, tmp_path / "o", classifier=tmp_path / "other") == 2
    said = capsys.readouterr().err
    assert "normal, bacteria" in said and "plain, square" in said
    assert run(made, tmp_path / "o", "--background", "nothing") == 2
    assert "no class nothing" in capsys.readouterr().err


def test_a_classifier_of_other_channels_and_a_segmenter_are_refused(made, tmp_path, capsys):
    sets.save(tmp_path / "rgb", sets.untrained(channels=3))
    assert run(made, tmp_path / "o", classifier=tmp_path / "rgb") == 2
    assert "3 channel" in capsys.readouterr().err
    assert run(made, tmp_path / "o", classifier="set") == 2


def test_a_set_of_one_class_is_explained_but_not_trained_on_again(made, tmp_path, capsys):
    sets.write(tmp_path / "one", only="square")
    flags = ("--classifier", f"{made}/c", "--data", str(tmp_path / "one"), *FEW)
    assert main([*flags, "--out", str(tmp_path / "o")]) == 0
    assert summary(tmp_path / "o")["scores"]["images"] == 24
    assert main([*flags, "--out", str(tmp_path / "p"), "--arms", "original"]) == 3
    assert "lacks images of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--cut", "half"), "threshold:T"),
        (("--split", "val"), "cannot be scored"),
        (("--choice", "x", "--layer", "y"), "no --layer"),
    ],
)
def test_flags_that_do_not_fit_are_exit_2(made, tmp_path, capsys, flags, says):
    assert run(made, tmp_path / "o", *flags) == 2
    assert says in capsys.readouterr().err


def test_a_dry_run_writes_nothing(made, tmp_path):
    assert run(made, tmp_path / "o", "--dry-run") == 0
    assert not (tmp_path / "o").exists()


# --- DICOM ---------------------------------------------------------------------------------------

PLACE = {
    "PatientID": "one",
    "PatientName": "one",
    "StudyInstanceUID": uid_of("study", "t"),
    "SeriesInstanceUID": uid_of("series", "t"),
    "FrameOfReferenceUID": uid_of("frame", "t"),
    "ImagePositionPatient": ["0", "0", "0"],
    "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"],
    "PixelSpacing": ["1", "1"],
    "SliceThickness": "1",
}


@pytest.fixture
def dicoms(tmp_path):
    """Two images larger than wide with a square, one file that is none."""
    folder = tmp_path / "dicom"
    folder.mkdir()
    for number, sample in enumerate(s for s in sets.samples(4, "test") if s.label == "square"):
        pixels = np.pad(sample.image, ((0, 0), (4, 4))).repeat(2, 0).repeat(2, 1)
        uid = uid_of("instance", f"t{number}")
        data = dicom_bytes(pixels, SOPInstanceUID=uid, **PLACE)
        (folder / f"i{number}.dcm").write_bytes(data)
    (folder / "notes.txt").write_text("none")
    return folder


def test_dicom_files_become_segmentations_of_their_own_size(made, whole, dicoms, tmp_path):
    flags = ("--classifier", f"{made}/c", "--data", str(dicoms), "--choice", str(whole), *FEW)
    for out in ("o", "p"):
        assert main([*flags, "--out", str(tmp_path / out), "--background", "plain"]) == 0
    found = sorted((tmp_path / "o" / "seg").glob("*.dcm"))
    assert len(found) == 2 and not verify(Store(tmp_path / "o"))
    for path in found:
        seg, number = pydicom.dcmread(path), int(path.stem[-1])
        assert seg.SOPClassUID.name == "Segmentation Storage" and seg.PatientID == "one"
        assert seg.StudyInstanceUID == PLACE["StudyInstanceUID"]
        source = pydicom.dcmread(dicoms / f"i{number}.dcm")
        referred = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
        assert referred.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert seg.SegmentSequence[0].SegmentLabel == "square"
        mask, bright = seg.pixel_array != 0, source.pixel_array > 200
        assert mask.shape == bright.shape == (32, 48)
        assert (mask & bright).sum() > 0.5 * bright.sum() and mask.mean() < 0.4
    ours, again = (
        tree_sha256(tmp_path / out, lambda n: "seg/" in n or n.endswith(".tar")) for out in "op"
    )
    assert ours == again and len(ours) == 3


def test_dicom_files_cannot_be_scored_and_one_that_cannot_be_decoded_is_named(
    made, dicoms, tmp_path, capsys
):
    flags = ("--classifier", f"{made}/c", "--data", str(dicoms), *FEW)
    assert main([*flags, "--out", str(tmp_path / "s"), "--score"]) == 3
    whole_file = (dicoms / "i0.dcm").read_bytes()
    (dicoms / "broken.dcm").write_bytes(whole_file[:-900])
    assert main([*flags, "--out", str(tmp_path / "o")]) == 0
    assert "broken.dcm" in capsys.readouterr().err
    rows = {row["file"]: row for row in summary(tmp_path / "o")["files"]}
    assert "error" in rows["broken.dcm"] and rows["i0.dcm"]["seg"]
