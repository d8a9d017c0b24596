"""The LGG set as clips: which codes are findings, what is unknown, and that the table packs."""

import csv
import io

import numpy as np
import pytest

from jobs._study_clips import LGG_FINDINGS, lgg_clips, lgg_finding
from medray.images import decode_png
from medray.pack.config import PackConfig
from medray.pack.pack import Job, pack
from medray.stream.clips import ClipSet

ROW = {
    "patient": "TCGA_1",
    "split": "train",
    "neoplasm_histologic_grade": "2",
    "histological_type": "3",
    "laterality": "1",
    "tumor_location": "6",
}


def found(**changes):
    return {name: lgg_finding(ROW | changes, name) for name in LGG_FINDINGS}


def test_codes_are_findings_and_what_is_not_said_is_unknown():
    assert found() == {
        "grade_3": "1",
        "astrocytoma": "0",
        "oligoastrocytoma": "0",
        "oligodendroglioma": "1",
        "right": "0",
        "frontal": "0",
        "temporal": "1",
        "parietal": "0",
    }
    assert found(laterality="3")["right"] == "1"
    assert found(laterality="2")["right"] == ""  # of the midline
    unknown = found(neoplasm_histologic_grade="", tumor_location="")
    assert [name for name, value in unknown.items() if value == ""] == [
        "grade_3",
        "frontal",
        "temporal",
        "parietal",
    ]


def test_the_table_counts_findings_the_rarest_first_with_paths_from_itself(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [ROW, ROW | {"patient": "TCGA_2", "laterality": "3", "split": "test"}]
    with open(folder / "patients.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ROW)
        writer.writeheader()
        writer.writerows(rows)
    counts = lgg_clips(str(folder), str(tmp_path / "tables" / "clips.csv"))
    assert counts["right"] == {"present": 1, "absent": 1, "unknown": 0}
    assert [value["present"] for value in counts.values()] == [0, 0, 0, 0, 1, 2, 2, 2]
    text = (tmp_path / "tables" / "clips.csv").read_text()
    first, second = csv.DictReader(io.StringIO(text))
    assert first["clip"] == "../set/images/TCGA_1" and second["mask"] == "../set/masks/TCGA_2"
    assert (first["split"], second["split"]) == ("train", "test")


@pytest.fixture(scope="module")
def real(unpacked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lgg")
    return (
        unpacked("brain_lgg_flair"),
        folder,
        lgg_clips(str(unpacked("brain_lgg_flair")), str(folder / "clips.csv")),
    )


def test_the_real_set_has_110_clips_and_parietal_is_the_rarest(real):
    _, folder, counts = real
    assert len(folder.joinpath("clips.csv").read_text().splitlines()) == 111
    assert next(iter(counts)) == "parietal" and counts["parietal"]["present"] == 12
    assert counts["right"] == {"present": 54, "absent": 53, "unknown": 3}
    assert all(sum(value.values()) == 110 for value in counts.values())


def test_real_clips_are_packed_in_order_with_their_masks(real, tmp_path, monkeypatch):
    source, folder, _ = real
    monkeypatch.setenv("MEDRAY_SECRET_KEY", "0123456789abcdef")
    lines = folder.joinpath("clips.csv").read_text().splitlines()
    some = folder / "some.csv"
    some.write_text("\n".join([lines[0], *lines[1:4]]) + "\n")
    config = PackConfig(source=str(some), clips=True, size_px=128, workers=0)
    pack(config, Job(str(tmp_path / "out")))
    clips = ClipSet.open(tmp_path / "out")
    patient = lines[1].split(",")[1]
    (first, *_) = clips.facts("train")
    clip = clips.read(first.key)
    for kind, packed in (("images", clip.frames_THW), ("masks", clip.mask_THW)):
        files = sorted((source / kind / patient).iterdir())
        values = np.stack([decode_png(path.read_bytes()) for path in files])
        assert np.array_equal(packed, values)
    assert tuple(first.labels) == tuple(LGG_FINDINGS)
