"""Checkpoints: round trips, what damage does, what does not fit, what is kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from medray.checkpoints import Checkpoints, check_tensors
from medray.errors import DataError, ResourceError
from medray.lease import LeaseLost
from medray.store import Store
from tests.faults import damage
from tests.faults.publisher import Free, tensors_at

TENSORS = "state.safetensors"


@pytest.fixture(params=["folder", "memory"])
def checkpoints(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoints:
    url = str(tmp_path) if request.param == "folder" else f"memory:/{tmp_path}"
    return Checkpoints(Store(url), Free())


def saved(folder: Path, *images: int) -> Checkpoints:
    found = Checkpoints(Store(folder), Free())
    for count in images:
        found.save(count, tensors_at(count), {"data": count})
    return found


def file(folder: Path, images: int, name: str = TENSORS) -> Path:
    return folder / "checkpoints" / f"{images:010d}" / name


TYPES = "bool uint8 int8 int16 uint16 int32 uint32 int64 uint64 float16 bfloat16".split()
TYPES += ["float32", "float64"]


def test_every_type_and_shape_comes_back_bit_for_bit(checkpoints: Checkpoints) -> None:
    tensors: dict[str, Any] = {
        f"{name}.{'x'.join(map(str, shape))}": torch.arange(int(np.prod(shape)))
        .reshape(shape)
        .to(getattr(torch, name))
        for name in TYPES
        for shape in ((), (0,), (1,), (7,), (2, 3), (3, 1, 5))
    }
    tensors["strided"] = torch.arange(12.0).reshape(3, 4).T
    tensors["nan"] = torch.tensor([float("nan"), float("inf"), -0.0])
    checkpoints.save(5, tensors, {"nested": {"a": [1, 2.5, None, "ü"]}, "score": 0.5})
    newest = checkpoints.newest()
    assert newest is not None and (newest.images, newest.score) == (5, 0.5)
    found, state = checkpoints.load(newest)
    assert state == {"images": 5, "nested": {"a": [1, 2.5, None, "ü"]}, "score": 0.5}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        same = found[name].contiguous().view(-1).view(torch.uint8)
        assert torch.equal(same, tensor.contiguous().view(-1).view(torch.uint8)), name


def test_numpy_goes_in_and_out_and_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 8)
    newest = checkpoints.newest()
    assert newest is not None
    found, _ = checkpoints.load(newest, as_numpy=True)
    plain = safetensors.numpy.load_file(file(tmp_path, 8))
    for name, array in tensors_at(8).items():
        np.testing.assert_array_equal(found[name], array, strict=True)
        np.testing.assert_array_equal(plain[name], array, strict=True)


def test_the_same_tensors_give_the_same_bytes_whatever_their_order(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    saved(tmp_path / "a", 8)
    reordered = dict(reversed(tensors_at(8).items()))
    Checkpoints(Store(tmp_path / "b"), Free()).save(8, reordered, {"data": 8})
    for name in (TENSORS, "state.json", "manifest.json"):
        assert file(tmp_path / "a", 8, name).read_bytes() == (
            file(tmp_path / "b", 8, name).read_bytes()
        )


def test_there_is_none_in_an_empty_folder_or_where_only_unfinished_ones_are(
    checkpoints: Checkpoints,
) -> None:
    assert checkpoints.newest() is None
    checkpoints.store.write_bytes(f"checkpoints/0000000008/{TENSORS}", b"half")
    assert checkpoints.newest() is None and checkpoints.complete() == []


def _break(kind: str, folder: Path, images: int) -> str:
    """Damages the checkpoint; the file that must be named."""
    tensors, state = file(folder, images), file(folder, images, "state.json")
    if kind == "flip":
        damage.flip_bit(tensors, 3)
    elif kind == "cut":
        damage.cut(tensors, 3)
    elif kind == "swap":
        damage.swap(tensors, file(folder, 4))
    elif kind == "missing":
        damage.drop(tensors)
    elif kind == "state":
        damage.flip_bit(state, 3)
        return "state.json"
    elif kind == "manifest":
        damage.cut(file(folder, images, "manifest.json"), to_bytes=40)
        return "manifest.json"
    elif kind == "double":
        damage.double(
            file(folder, images - 8, "manifest.json"), file(folder, images, "manifest.json")
        )
        return "manifest.json"
    return TENSORS


KINDS = ("flip", "cut", "swap", "missing", "state", "manifest", "double")


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_newest_one_is_named_and_the_one_before_is_taken(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = saved(tmp_path, 4, 8, 16)
    newest = checkpoints.newest()
    assert newest is not None and newest.images == 16, "sound before the damage"
    assert capsys.readouterr().err == ""
    named = _break(kind, tmp_path, 16)
    older = checkpoints.newest()
    assert older is not None and older.images == 8
    assert f"warning: checkpoints/0000000016/{named}: " in capsys.readouterr().err
    found, _ = checkpoints.load(older, as_numpy=True)
    np.testing.assert_array_equal(found["weights"], tensors_at(8)["weights"])


def test_when_all_are_damaged_nothing_starts_again_in_silence(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 8, 16)
    for images in (8, 16):
        damage.flip_bit(file(tmp_path, images), images)
    with pytest.raises(DataError, match=r"no checkpoint .* is sound.*0000000016.*0000000008"):
        checkpoints.newest()


def test_no_flip_or_cut_anywhere_in_a_checkpoint_passes(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 8)
    missed = []
    for name in (TENSORS, "state.json"):
        path = file(tmp_path, 8, name)
        whole = path.read_bytes()
        for seed in range(150):
            place = damage.flip_bit(path, seed) if seed % 3 else damage.cut(path, seed)
            try:
                checkpoints.at(8)
                missed.append((name, seed, place))
            except DataError as error:
                assert name in error.where
            path.write_bytes(whole)
    assert not missed and checkpoints.at(8).images == 8


def test_a_damaged_one_is_replaced_when_its_images_come_again(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 8, 16)
    damage.flip_bit(file(tmp_path, 16))
    checkpoints.save(16, tensors_at(16), {"data": 16})
    assert checkpoints.at(16).images == 16
    checkpoints.save(16, tensors_at(17), {"data": 17})
    assert checkpoints.load(checkpoints.at(16))[1]["data"] == 17, "other contents replace"


def test_saving_the_same_again_touches_nothing(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 8)
    before = {p: p.stat().st_mtime_ns for p in file(tmp_path, 8).parent.iterdir()}
    checkpoints.save(8, tensors_at(8), {"data": 8})
    assert {p: p.stat().st_mtime_ns for p in file(tmp_path, 8).parent.iterdir()} == before


def test_what_does_not_fit_the_networks_is_listed_when_it_is_loaded(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 8)
    newest = checkpoints.newest()
    assert newest is not None
    fits = {"weights": (300,), "step": (1,)}
    assert checkpoints.load(newest, as_numpy=True, expect=fits)[1]["data"] == 8
    with pytest.raises(DataError) as caught:
        checkpoints.load(newest, expect={"weights": (3, 100), "bias": (4,)})
    for part in (
        "missing bias (4,)",
        "unexpected step",
        "weights must have shape (3, 100), got (300,)",
        f"{tmp_path}/checkpoints/0000000008/{TENSORS}",
    ):
        assert part in str(caught.value)
    many = {f"layer{number}": (1,) for number in range(20)}
    with pytest.raises(DataError, match="and 12 more"):
        check_tensors({}, many, "here")


@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_another_schema_is_refused_not_taken_for_damage(name: str, tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 8, 16)
    path = file(tmp_path, 16, name)
    path.write_text(path.read_text().replace("/1", "/2"))
    manifest = file(tmp_path, 16, "manifest.json")
    content = json.loads(manifest.read_text())
    if name == "state.json":
        content["files"][name] = _digest(path)
        manifest.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"schema must be 'medray\.\w+/1', got 'medray\.\w+/2'"):
        newest = checkpoints.newest()
        assert newest is not None
        checkpoints.load(newest)


def _digest(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_pruning_keeps_the_newest_and_the_best(checkpoints: Checkpoints) -> None:
    scores = {8: 3.0, 16: 1.0, 24: 2.0, 32: 4.0, 40: None}
    for images, score in scores.items():
        checkpoints.save(images, tensors_at(images), {"score": score})
    checkpoints.prune(2, 1)
    assert checkpoints.complete() == [16, 32, 40]
    checkpoints.prune(0, 0)
    assert checkpoints.complete() == [40], "never the newest"
    left = {name.split("/")[1] for name in checkpoints.store.names("checkpoints/")}
    assert left == {"0000000040"}


def test_one_in_passing_is_kept_while_it_is_the_newest(checkpoints: Checkpoints) -> None:
    def save(images: int) -> None:
        odd = images % 8 > 0
        score = {"score": 1.0 if odd else 2.0}
        checkpoints.save(images, tensors_at(images), score, passing=odd)

    for images, left in ((8, [8]), (16, [8, 16]), (20, [16, 20]), (24, [16, 24])):
        save(images)
        checkpoints.prune(2)
        assert checkpoints.complete() == left
    save(27)
    save(32)
    checkpoints.prune(1, 1)
    assert checkpoints.complete() == [16, 32], "the best of those that an undisturbed run has"


def test_pruning_removes_what_was_left_unfinished_but_not_what_is_being_made(
    tmp_path: Path,
) -> None:
    checkpoints = saved(tmp_path, 16)
    for images in (8, 24):
        part = file(tmp_path, images, f"{TENSORS}.1.part")
        part.parent.mkdir()
        part.write_bytes(b"half")
    checkpoints.prune(1)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "0000000016",
        "0000000024",
    ]


class Lost(Free):
    """A lease that is lost after some checks."""

    def __init__(self, checks: int) -> None:
        self.left = checks

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise LeaseLost("another start took over")


@pytest.mark.parametrize("checks", [0, 1, 2])
def test_who_lost_the_lease_publishes_nothing(checks: int, tmp_path: Path) -> None:
    saved(tmp_path, 8)
    checkpoints = Checkpoints(Store(tmp_path), Lost(checks))
    with pytest.raises(LeaseLost):
        checkpoints.save(16, tensors_at(16), {})
    assert checkpoints.complete() == [8]
    Checkpoints(Store(tmp_path), Lost(3)).save(16, tensors_at(16), {})
    assert checkpoints.complete() == [8, 16], "with the lease it does"


def test_without_a_lease_checkpoints_are_read_only(tmp_path: Path) -> None:
    saved(tmp_path, 8)
    reader = Checkpoints(Store(tmp_path), None)
    assert reader.newest() is not None
    with pytest.raises(AssertionError, match="lease"):
        reader.save(16, {}, {})


def test_a_type_that_the_format_lacks_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="z: dtype must be one of bool, .*, got complex64"):
        saved(tmp_path).save(8, {"z": np.zeros(2, np.complex64)}, {})
    assert saved(tmp_path).complete() == []


def test_a_folder_that_cannot_be_written_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(ResourceError, match="cannot write .*checkpoints"):
        saved(tmp_path).save(8, tensors_at(8), {})


@pytest.mark.parametrize("fenced", [True, False])
def test_a_writer_that_slept_through_its_replacements_save_takes_nothing_away(
    tmp_path: Path, fenced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wakes just before it would make room for what is there by now."""
    late = saved(tmp_path)
    lease = OverLater()
    late.lease = lease if fenced else Free()
    asked = late._is_there

    def slept(images: int, files: Any) -> bool:
        found = asked(images, files)
        saved(tmp_path, 8)
        lease.over = True
        return found

    monkeypatch.setattr(late, "_is_there", slept)
    removed: list[str] = []
    monkeypatch.setattr(late.store, "remove", removed.append)
    if not fenced:  # the negative control
        late.save(8, tensors_at(9), {"data": 9})
        assert removed
        return
    with pytest.raises(LeaseLost):
        late.save(8, tensors_at(9), {"data": 9})
    assert removed == [] and saved(tmp_path).load(saved(tmp_path).at(8))[1]["data"] == 8


class OverLater(Free):
    """A lease that another writer takes when it says so."""

    over = False

    def check(self) -> None:
        if self.over:
            raise LeaseLost("another writer has replaced this one")
