"""The PGGAN job in one process: whatever kills it, the same command ends with the same bytes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import outcomes
from tests.chaos_budget import trials
from tests.faults import preload
from tests.faults.kill import at_load, run_killed, wait_for
from tests.jobs import pggan_runs, recording
from tests.jobs.pggan_runs import Nursery, results

pytestmark = pytest.mark.slow
CGROUPS = Path("/sys/fs/cgroup")
FINAL = f"checkpoints/{pggan_runs.TOTAL_IMAGES:010d}/state.safetensors"


@dataclass(frozen=True)
class Clean:
    """The run that nothing happened to."""

    results: dict[str, Any]
    seconds: float
    folder: Path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def nursery(cache: Path) -> Iterator[Nursery]:
    with Nursery(cache, cache / "runs.log") as found:
        yield found


@pytest.fixture(scope="module")
def clean(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Clean:
    folder = tmp_path_factory.mktemp("clean") / "run"
    assert nursery.run(folder) == 0, nursery.said()
    again = folder.with_name("again")
    begun_s = time.monotonic()
    assert nursery.run(again) == 0, nursery.said()
    seconds = time.monotonic() - begun_s
    assert results(again) == results(folder), "two undisturbed runs are alike"
    return Clean(results(folder), seconds, folder)


def test_the_small_run_exercises_what_a_resume_must_restore(clean: Clean) -> None:
    rows = clean.results["metrics"]
    assert {"train/loss_d", "train/loss_g", "train/penalty"} <= set().union(*rows)
    assert any("snapshot/score" in row for row in rows), "a score keeps the best checkpoint"
    state = json.loads((clean.folder / FINAL).with_name("state.json").read_text())
    assert state["images"] == pggan_runs.TOTAL_IMAGES
    names = set(load_file(clean.folder / FINAL))
    assert any(n.startswith("adam_g.exp_avg_sq.") for n in names) and "adam_d.step" in names


# --- random kills -----------------------------------------------------------------------------


def kept(fault: str, count: int, lost: int, note: str = "") -> None:
    """Keeps what came of `count` faults: nothing was wrong, or the test would not be here."""
    more: dict[str, Any] = {"unit": "images", "recovered_s": None, "wrong": 0, "note": note}
    outcomes.record(part="train", fault=fault, trials=count, lost=lost, **more)


def _unsaved(folder: Path) -> int:
    """Images that a killed run had done since its newest checkpoint."""
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    done = [json.loads(line)["images"] for line in lines if line.endswith(b"\n")]
    return max([0, *done]) - max([0, *pggan_runs.sound_checkpoints(folder)])


def _killed_at_random(
    nursery: Nursery, clean: Clean, folder: Path, seed: int, lost: list[int] | None = None
) -> int:
    """Two attempts that are killed, then one to the end; how many the kill met alive."""
    met = 0
    for delay_s in pggan_runs.kills(seed, clean.seconds, 2):
        # On a machine that has become faster the run is done before: begin again, kill sooner.
        while not nursery.run_killed_after(delay_s, folder):
            shutil.rmtree(folder)
            delay_s /= 2
        met += 1
        if lost is not None:
            lost.append(_unsaved(folder))
    assert nursery.run(folder) == 0, nursery.said()
    assert results(folder) == clean.results, f"seed {seed}"
    return met


@pytest.mark.parametrize("seed", range(5))
def test_a_run_killed_at_random_instants_ends_with_the_same_bytes(
    seed: int, nursery: Nursery, clean: Clean, tmp_path: Path
) -> None:
    assert _killed_at_random(nursery, clean, tmp_path / "run", seed) == 2


@pytest.mark.chaos
@pytest.mark.timeout(1500)
def test_many_random_kills_change_nothing(nursery: Nursery, clean: Clean, tmp_path: Path) -> None:
    lost: list[int] = []
    for seed in range(100, 100 + trials(8, 25)):
        _killed_at_random(nursery, clean, tmp_path / f"{seed}", seed, lost)
        shutil.rmtree(tmp_path / f"{seed}")
    kept("kill -9 at a random instant", len(lost), max(lost))


def test_the_command_itself_killed_while_it_trains_ends_with_the_same_bytes(
    clean: Clean, cache: Path, tmp_path: Path
) -> None:
    run_killed(
        pggan_runs.command(tmp_path / "run"),
        seed=2,
        kills=1,
        clean_s=2 * clean.seconds,
        env=pggan_runs.environment(cache),
        log=tmp_path / "log",
    )
    assert results(tmp_path / "run") == clean.results


@pytest.mark.parametrize("images", [0, 8, 16, 88])
def test_a_run_killed_before_a_given_step_ends_with_the_same_bytes(
    images: int, nursery: Nursery, clean: Clean, tmp_path: Path
) -> None:
    """The first step, before any checkpoint, just after one, the last step."""
    assert nursery.run(tmp_path / "run", patch=f"die_at={images}") == -9
    assert nursery.run(tmp_path / "run") == 0, nursery.said()
    assert results(tmp_path / "run") == clean.results


@pytest.mark.parametrize("guard", ["forget_position", "forget_adam", "keep_rows"])
def test_control_a_resume_that_restores_less_is_caught(
    guard: str, nursery: Nursery, clean: Clean, tmp_path: Path
) -> None:
    assert nursery.run(tmp_path / "run", patch="die_at=72") == -9
    assert nursery.run(tmp_path / "run", patch=guard) == 0, nursery.said()
    found = results(tmp_path / "run")
    assert found["metrics"] != clean.results["metrics"]
    assert (found[FINAL] == clean.results[FINAL]) == (guard == "keep_rows")


# --- killed, or out of room, while a checkpoint is saved --------------------------------------


@pytest.fixture(scope="module")
def saving(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> int:
    """The number of operations on the checkpoints' folder in a whole run."""
    preload.library()
    folder = tmp_path_factory.mktemp("count") / "run"
    assert nursery.run(folder, fault=[f"{folder}/checkpoints", 0, "none"]) == 0, nursery.said()
    counted = re.findall(r"^operations (\d+)$", nursery.said(), re.MULTILINE)
    assert int(counted[-1]) > 60
    return int(counted[-1])


def _spread(count: int, trials: int) -> list[int]:
    """Numbers of operations, spread over all of them and over the phases of a save."""
    return [1 + (trial * (count - 1)) // (trials - 1) for trial in range(trials)]


def _fault_while_saving(
    nursery: Nursery, clean: Clean, folder: Path, at: int, action: str
) -> tuple[int, list[int]]:
    """A run with the fault, then one without; the first one's exit code and sound checkpoints."""
    code = nursery.run(folder, fault=[f"{folder}/checkpoints", at, action])
    sound = pggan_runs.sound_checkpoints(folder)
    assert nursery.run(folder) == 0, nursery.said()
    assert results(folder) == clean.results, f"{action} at operation {at}"
    return code, sound


@pytest.mark.parametrize("trial", range(4))
def test_a_run_killed_during_a_save_ends_with_the_same_bytes(
    trial: int, nursery: Nursery, clean: Clean, saving: int, tmp_path: Path
) -> None:
    at, action = _spread(saving, 4)[trial], ("torn", "exit")[trial % 2]
    code, _ = _fault_while_saving(nursery, clean, tmp_path / "run", at, action)
    assert code == preload.EXIT_CODE


@pytest.mark.chaos
@pytest.mark.timeout(1500)
def test_a_run_killed_at_any_operation_of_a_save_ends_with_the_same_bytes(
    nursery: Nursery, clean: Clean, saving: int, tmp_path: Path
) -> None:
    places = range(1, saving + 1, trials(20, 2))
    for at in places:
        folder = tmp_path / f"{at}"
        _fault_while_saving(nursery, clean, folder, at, ("exit", "torn")[at // 2 % 2])
        shutil.rmtree(folder)
    kept("killed at the k-th I/O operation", len(places), pggan_runs.SAVE_IMAGES, "lost: by design")


@pytest.mark.parametrize("trial", range(2))
def test_a_full_disk_during_a_save_is_a_named_error_and_room_lets_the_run_go_on(
    trial: int, nursery: Nursery, clean: Clean, saving: int, tmp_path: Path
) -> None:
    nursery.log.unlink()
    folder, at = tmp_path / "run", _spread(saving, 4)[trial + 1]
    code = nursery.run(folder, fault=[f"{folder}/checkpoints", at, "enospc"])
    said = nursery.said()
    assert code == 4 and "No space left on device" in said and "checkpoints/" in said
    assert "fix: " in said and "Traceback" not in said
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 4)
    assert "--resume" in status["resume_command"]
    assert pggan_runs.sound_checkpoints(folder), "the last checkpoint is intact"
    assert nursery.run(folder) == 0, nursery.said()
    assert results(folder) == clean.results


@pytest.mark.chaos
def test_a_disk_that_fails_at_many_operations_of_a_save_leaves_the_last_checkpoint_intact(
    nursery: Nursery, clean: Clean, saving: int, tmp_path: Path
) -> None:
    places = _spread(saving, trials(6, 24))
    for trial, at in enumerate(places):
        folder, action = tmp_path / f"{at}", ("enospc", "eio")[trial % 2]
        code, sound = _fault_while_saving(nursery, clean, folder, at, action)
        # What cannot be removed any more may be left: that ends no run.
        assert code == 4 or action == "eio" and code == 0
        assert sound or at < saving // 4, "the last checkpoint is intact"
        shutil.rmtree(folder)
    kept("disk full, EIO", len(places), pggan_runs.SAVE_IMAGES, "lost: by design")


def test_a_disk_that_is_full_for_everything_still_ends_with_the_named_error(
    nursery: Nursery, clean: Clean, tmp_path: Path
) -> None:
    preload.library()
    nursery.log.unlink()
    folder = tmp_path / "run"
    code = nursery.run(folder, fault=[str(folder), 120, "enospc"])
    assert code == 4 and "No space left on device" in nursery.said()
    assert "Traceback" not in nursery.said()
    assert nursery.run(folder) == 0, nursery.said()
    assert results(folder) == clean.results


# --- stopping, starting twice, another number of workers --------------------------------------


def test_sigterm_saves_says_that_it_can_go_on_and_the_same_command_does(
    nursery: Nursery, clean: Clean, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    pid = nursery.start(folder, patch=f"hold=24:{tmp_path}/never")
    wait_for(lambda: (folder / "metrics.jsonl").exists(), 60)
    os.kill(pid, signal.SIGTERM)
    assert nursery.wait() == 75, nursery.said()
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("stopped", 75)
    assert pggan_runs.sound_checkpoints(folder)[-1] < pggan_runs.TOTAL_IMAGES
    assert nursery.run(folder) == 0, nursery.said()
    assert results(folder) == clean.results


@pytest.mark.chaos
def test_sigterm_at_many_instants_saves_and_the_same_command_goes_on(
    nursery: Nursery, clean: Clean, tmp_path: Path
) -> None:
    longest_s, times = 0.0, trials(5, 20)
    for number in range(times):
        folder = tmp_path / f"{number}"
        pid = nursery.start(folder, patch=f"hold=80:{tmp_path}/never")
        wait_for(lambda folder=folder: (folder / "metrics.jsonl").exists(), 60)  # type: ignore[misc]
        time.sleep(clean.seconds * number / times / 2)
        begun_s = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        assert nursery.wait() == 75, nursery.said()
        longest_s = max(longest_s, time.monotonic() - begun_s)
        assert pggan_runs.sound_checkpoints(folder), "saved before it ended"
        assert _unsaved(folder) <= 0
        assert nursery.run(folder) == 0, nursery.said()
        assert results(folder) == clean.results
        shutil.rmtree(folder)
    assert longest_s < at_load(20)
    kept("SIGTERM, preemption", times, 0, f"ended within {longest_s:.1f} s")


def test_a_run_without_memory_ends_with_4_and_the_same_command_goes_on(
    nursery: Nursery, clean: Clean, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert nursery.run(folder, patch="lack_memory") == 4
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 4)
    assert "out of memory: can't allocate" in status["reason"]
    assert "--images-at-once" in status["hint"] and "--images-at-once" in nursery.said()
    assert _unsaved(folder) <= pggan_runs.SAVE_IMAGES
    assert nursery.run(folder) == 0, nursery.said()
    assert results(folder) == clean.results


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A memory cgroup of 64 MiB, for processes that join it."""
    for root, limit in ((CGROUPS / "memory", "memory.limit_in_bytes"), (CGROUPS, "memory.max")):
        group = root / f"medray-{os.getpid()}"
        with contextlib.suppress(OSError):
            group.mkdir()
        if (group / limit).exists() and os.access(group / limit, os.W_OK):
            break
        with contextlib.suppress(OSError):
            group.rmdir()
    else:
        pytest.skip("no memory cgroup can be made here")
    (group / limit).write_text(str(64 * 2**20))
    yield group
    group.rmdir()


def test_a_run_that_the_kernel_kills_for_memory_goes_on_with_the_same_bytes(
    nursery: Nursery, clean: Clean, memory_group: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert nursery.run(folder, patch=f"lack_memory={memory_group}") == -signal.SIGKILL
    lost = _unsaved(folder)
    assert 0 <= lost <= pggan_runs.SAVE_IMAGES and pggan_runs.sound_checkpoints(folder)
    assert nursery.run(folder) == 0, nursery.said()
    assert results(folder) == clean.results
    kept("out of memory", 1, lost, "killed by the kernel")


def test_a_warm_start_killed_before_its_first_checkpoint_starts_from_the_same_weights(
    nursery: Nursery, clean: Clean, tmp_path: Path
) -> None:
    warm = ("--no-resume", "--init-from", str(clean.folder))
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert nursery.run(whole, *warm) == 0, nursery.said()
    assert results(whole)[FINAL] != clean.results[FINAL], "the weights were taken"
    assert nursery.run(folder, *warm, patch="die_at=8") == -9
    assert nursery.run(folder) == 0, nursery.said()
    assert results(folder) == results(whole)


def test_the_same_command_on_a_complete_run_changes_nothing_and_says_so(
    nursery: Nursery, clean: Clean
) -> None:
    nursery.log.unlink()
    assert nursery.run(clean.folder) == 0
    assert "is complete: nothing to do" in nursery.said()
    assert results(clean.folder) == clean.results


def test_no_image_is_lost_or_seen_twice_when_the_number_of_workers_changes(
    nursery: Nursery, clean: Clean, tmp_path: Path
) -> None:
    """1 worker, then 2, then 1: each image number is trained on once and is the same sample.

    In pieces of one size it is also the same step, but for the rounding of sums.
    """
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole, parts = tmp_path / "whole-run", tmp_path / "parts-run"
    (tmp_path / "whole" / recording.STOP_AFTER).write_text("100000")
    pieces = ("--images-at-once", "4")
    assert nursery.run(whole, *pieces, patch=f"record={tmp_path / 'whole'}") == 0, nursery.said()
    one, two = ("--workers", "1"), ("--workers", "2", "--backend", "torchrun")
    for stop_after, flags, code in ((24, one, 75), (56, two, 75), (100000, one, 0)):
        (tmp_path / "parts" / recording.STOP_AFTER).write_text(f"{stop_after}")
        found = nursery.run(parts, *flags, *pieces, patch=f"record={tmp_path / 'parts'}")
        assert found == code, nursery.said()
    assert len(list((tmp_path / "parts").glob("2-*.jsonl"))) == 2, "two ranks had their part"
    noted = recording.noted(tmp_path / "parts")
    assert [number for number, _ in noted] == list(range(pggan_runs.TOTAL_IMAGES))
    assert noted == recording.noted(tmp_path / "whole")
    rows = pggan_runs.metrics(parts)
    assert [r["images"] for r in rows] == [r["images"] for r in pggan_runs.metrics(whole)]
    assert _distance(whole, parts) < 1e-5, "the sums over ranks round differently, no more"
    assert 0 < _distance(clean.folder, parts) < 0.005, "in one piece: other groups of D's deviation"


def _distance(one: Path, other: Path) -> float:
    """How far apart the weights of two runs are, over how far they are from zero."""
    a, b = (
        {n: t for n, t in load_file(p / FINAL).items() if n.startswith("generator.")}
        for p in (one, other)
    )
    apart = sum(float(np.square(a[name] - b[name]).sum()) for name in a)
    return float(np.sqrt(apart / sum(float(np.square(a[name]).sum()) for name in a)))
