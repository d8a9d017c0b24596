"""The gate of a packed set, and reading sets for the judge."""

from dataclasses import replace

import numpy as np
import pytest

from medray import phantoms
from medray.errors import DataError
from medray.evaluate import gate as gates
from medray.evaluate.memorisation import Gate
from medray.evaluate.sets import ImageSet, as_bytes, same_kind
from medray.records import Sample
from medray.shards import write_set
from medray.store import Store


def make_set(url, samples, px=16):
    return write_set(
        url, samples, name="small", classes=phantoms.CLASSES["chest"], size_px=px, encoding="png"
    )


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    url = tmp_path_factory.mktemp("sets") / "real"
    make_set(url, phantoms.dataset("chest", 0, 160, 16))
    return str(url)


def test_the_gate_of_a_set_is_that_of_its_splits(real, tmp_path):
    sha256 = gates.make(real, Store(tmp_path))
    train, holdout = (ImageSet(real, split).read()[0] for split in ("train", "val"))
    assert sha256 == Gate.fit(train, holdout).sha256 == Gate.load(str(tmp_path)).sha256
    assert gates.make(real, Store(tmp_path / "again")) == sha256


def test_a_patient_in_both_splits_is_refused(tmp_path):
    samples = list(phantoms.dataset("chest", 0, 120, 16))
    stray = next(sample for sample in samples if sample.split == "train")
    make_set(tmp_path / "set", [*samples, replace(stray, split="val", key="stray")])
    with pytest.raises(DataError, match="1 patients are in both train and val"):
        gates.make(str(tmp_path / "set"), Store(tmp_path / "gate"))
    assert not Store(tmp_path / "gate").exists("gate.json")


def test_all_images_are_read_in_order_with_what_is_known_of_them(real):
    everything = ImageSet(real, None)
    images, rows = everything.read()
    assert images.shape == (160, 16, 16) and len(rows) == len(everything) == 160
    wanted = {s.source_sha256 or s.patient for s in phantoms.dataset("chest", 0, 160, 16)}
    assert set(rows.patients) == wanted
    assert rows == everything.rows()


@pytest.mark.parametrize("most", [1, 7, 100, 159, 160, 500])
def test_as_many_images_as_asked_for_are_read_evenly(real, most):
    everything, part = ImageSet(real, None), ImageSet(real, None, most=most)
    images, rows = part.read()
    assert len(images) == len(rows) == len(part) == min(most, 160)
    places = np.array([everything.rows().keys.index(key) for key in rows.keys])
    assert (np.diff(places) >= 160 // max(most, 1)).all() and part.present == 160
    assert np.array_equal(part.take([len(part) - 1, 0]), images[[-1, 0]])
    assert part.sha256 != everything.sha256 or most >= 160


def test_a_split_that_is_not_there_is_named(tmp_path):
    make_set(
        tmp_path / "set", [s for s in phantoms.dataset("chest", 0, 40, 16) if s.split != "val"]
    )
    with pytest.raises(DataError, match="no images of split 'val', its splits are: test, train"):
        ImageSet(str(tmp_path / "set"), "val")


def test_a_damaged_shard_is_refused(tmp_path):
    make_set(tmp_path / "set", phantoms.dataset("chest", 0, 60, 16))
    path = tmp_path / "set" / "train-000000.tar"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="train-000000.tar"):
        gates.make(str(tmp_path / "set"), Store(tmp_path / "gate"))


def test_sets_of_other_sizes_are_not_compared(real, tmp_path):
    make_set(tmp_path / "set", phantoms.dataset("chest", 0, 20, 24), px=24)
    with pytest.raises(DataError, match="16 px grey, .* of 24 px grey"):
        same_kind(ImageSet(real, None), ImageSet(str(tmp_path / "set"), None))


def test_sixteen_bits_become_eight_and_features_are_refused():
    wide = Sample("k", np.array([[0, 65535], [256, 511]], np.uint16))
    assert as_bytes(wide).tolist() == [[0, 255], [1, 1]]
    with pytest.raises(DataError, match="float32"):
        as_bytes(Sample("k", np.zeros(5, np.float32)))
