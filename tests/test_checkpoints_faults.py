"""A save that is killed, torn, cut off from power, or out of room: old or new, never half."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medray.checkpoints import Checkpoints
from medray.errors import DataError
from medray.store import Store
from tests.faults import preload, publisher
from tests.faults.kill import tree_sha256
from tests.faults.powercut import Disk

OLD, NEW = publisher.OLD_IMAGES, publisher.NEW_IMAGES


@pytest.fixture(scope="module")
def forks() -> Iterator[preload.Forks]:
    with preload.Forks(publisher.save) as found:
        yield found


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A folder with the old checkpoint."""
    folder = tmp_path / "before"
    publisher.save(folder, OLD)
    return folder


def held(folder: Path) -> list[int]:
    """Images of the complete checkpoints; each must be whole and hold what belongs to it."""
    checkpoints = Checkpoints(Store(folder), None)
    for images in checkpoints.complete():
        tensors, state = checkpoints.load(checkpoints.at(images), as_numpy=True)
        assert state == {"images": images, "data": images}
        for name, array in publisher.tensors_at(images).items():
            np.testing.assert_array_equal(tensors[name], array)
    return checkpoints.complete()


def each_operation(
    forks: preload.Forks, before: Path, trial: Callable[[Path, preload.Outcome], None], **named: Any
) -> int:
    """Runs a save on a copy of `before` with the fault at operation 1, 2, ... until it is past."""
    at = 0
    while True:
        at += 1
        folder = before.parent / "work"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder)
        outcome = forks.run(folder, at=at, **named)
        trial(folder, outcome)
        if outcome.operations and outcome.operations < at:
            return at - 1


@pytest.mark.parametrize("action", ["exit", "torn"])
def test_a_save_killed_at_any_operation_leaves_the_old_or_the_new(
    action: str, forks: preload.Forks, before: Path
) -> None:
    seen: list[int] = []

    def trial(folder: Path, outcome: preload.Outcome) -> None:
        complete = held(folder)
        assert complete in ([OLD], [OLD, NEW])
        seen.append(complete[-1])
        publisher.save(folder, NEW)
        assert held(folder) == [OLD, NEW], "the same command again finishes it"

    count = each_operation(forks, before, trial, action=action)
    assert count >= 15 and sorted(seen) == seen and set(seen) == {OLD, NEW}


def test_a_damaged_checkpoint_replaced_under_kills_is_never_half(
    forks: preload.Forks, before: Path
) -> None:
    """The new one has the images of one that is there with other contents."""
    folder = before / "checkpoints" / f"{NEW:010d}"
    shutil.copytree(before / "checkpoints" / f"{OLD:010d}", folder)
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"images": {OLD}', f'"images": {NEW}'))

    def trial(folder: Path, outcome: preload.Outcome) -> None:
        checkpoints = Checkpoints(Store(folder), None)
        for images in checkpoints.complete():
            checkpoints.at(images)
        newest = checkpoints.newest()
        assert newest is not None and newest.images in (OLD, NEW)

    assert each_operation(forks, before, trial, action="exit") >= 15

    def failing(folder: Path, outcome: preload.Outcome) -> None:
        trial(folder, outcome)
        assert outcome.error in ("", "ResourceError"), outcome

    each_operation(forks, before, failing, action="eio")


def test_control_a_publisher_that_writes_the_manifest_first_is_caught(
    forks: preload.Forks, before: Path
) -> None:
    halves: list[str] = []

    def trial(folder: Path, outcome: preload.Outcome) -> None:
        try:
            held(folder)
        except DataError as error:
            halves.append(error.where)

    each_operation(forks, before, trial, action="exit", order="first")
    assert len(halves) >= 3


def _cut(before: Path, log: Path, folder: Path, cuts: int) -> Iterator[list[int]]:
    """What each of `cuts` power cuts leaves; the first loses all that was not made durable."""
    disk = Disk(folder, before).replay(log)
    for seed in (None, *range(cuts - 1)):
        yield held(disk.write(before.parent / "cut", seed))


def test_a_power_cut_at_any_operation_leaves_a_sound_newest_one(
    forks: preload.Forks, before: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    seen: set[tuple[int, ...]] = set()

    def trial(folder: Path, outcome: preload.Outcome) -> None:
        for complete in _cut(before, log, folder, cuts=4):
            seen.add(tuple(complete))
            # What was acknowledged stays.
            assert complete == [OLD, NEW] or (outcome.ended_by_fault and complete == [OLD])
        log.unlink(missing_ok=True)

    each_operation(forks, before, trial, action="exit", log=log)
    assert seen == {(OLD,), (OLD, NEW)}


def test_the_log_of_a_save_is_complete(forks: preload.Forks, before: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "work", tmp_path / "log"
    shutil.copytree(before, folder)
    assert forks.run(folder, log=log).code == 0
    whole = Disk(folder, before).replay(log).write(tmp_path / "all", everything=True)
    assert tree_sha256(whole) == tree_sha256(folder)


def test_control_without_fsync_a_power_cut_loses_or_halves_what_was_acknowledged(
    forks: preload.Forks, before: Path, tmp_path: Path
) -> None:
    folder, log = tmp_path / "work", tmp_path / "log"
    shutil.copytree(before, folder)
    assert forks.run(folder, log=log, durable=False).code == 0
    disk = Disk(folder, before).replay(log)
    assert held(disk.write(tmp_path / "cut")) == [OLD], "lost"
    halves = 0
    for seed in range(60):
        try:
            held(disk.write(tmp_path / "cut", seed))
        except DataError:
            halves += 1
    assert halves > 0


@pytest.mark.parametrize("action, text", [("enospc", "No space left"), ("eio", "Input/output")])
def test_a_full_or_failing_disk_is_a_named_error_and_the_old_one_is_intact(
    action: str, text: str, forks: preload.Forks, before: Path
) -> None:
    errors = []

    def trial(folder: Path, outcome: preload.Outcome) -> None:
        assert held(folder) in ([OLD], [OLD, NEW])
        if outcome.error:
            errors.append(outcome.text)
            assert outcome.error == "ResourceError" and text in outcome.text, outcome
            assert str(folder) in outcome.text, "names the place"
        publisher.save(folder, NEW)
        assert held(folder) == [OLD, NEW], "with room again the save goes through"

    each_operation(forks, before, trial, action=action)
    assert len(errors) >= 10


def test_a_disk_that_fills_up_byte_by_byte_never_leaves_a_half(
    forks: preload.Forks, before: Path
) -> None:
    errors = 0
    for room_bytes in range(0, 2400, 100):
        folder = before.parent / "work"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder)
        outcome = forks.run(folder, room_bytes=room_bytes)
        assert held(folder) in ([OLD], [OLD, NEW])
        errors += outcome.error == "ResourceError"
    assert 10 <= errors < 24


def test_pruning_killed_at_any_operation_leaves_the_newest(tmp_path: Path) -> None:
    before = tmp_path / "before"
    for images in (OLD, NEW, NEW + 8):
        publisher.save(before, images)
    seen = []

    def trial(folder: Path, outcome: preload.Outcome) -> None:
        complete = held(folder)
        assert complete[-1] == NEW + 8
        seen.append(len(complete))
        publisher.prune(folder)
        assert len(list((folder / "checkpoints").iterdir())) == 1

    with preload.Forks(publisher.prune) as forks:
        each_operation(forks, before, trial, action="exit")
    assert seen[0] == 3 and seen[-1] == 1


def test_pruning_cut_off_from_power_leaves_no_manifest_without_its_files(tmp_path: Path) -> None:
    before, log = tmp_path / "before", tmp_path / "log"
    for images in (OLD, NEW, NEW + 8):
        publisher.save(before, images)

    def trial(folder: Path, outcome: preload.Outcome) -> None:
        for complete in _cut(before, log, folder, cuts=4):
            assert complete[-1] == NEW + 8
        log.unlink(missing_ok=True)

    with preload.Forks(publisher.prune) as forks:
        assert each_operation(forks, before, trial, action="exit", log=log) > 8
