"""A whole small run that is killed, anywhere: the same command ends with the same files."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from medray.checkpoints import Checkpoints
from medray.store import Store
from tests import outcomes
from tests.chaos_budget import trials
from tests.faults import preload, publisher
from tests.faults.kill import run_killed, tree_sha256
from tests.faults.killer import Killer
from tests.faults.powercut import Disk

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def forks() -> Iterator[preload.Forks]:
    with preload.Forks(publisher.train) as found:
        yield found


def results(folder: Path) -> dict[str, str]:
    """SHA-256 of what must not depend on faults (a manifest tells its start's epoch)."""
    found = tree_sha256(folder, publisher.is_result)
    for name in found:
        if name.endswith("manifest.json"):
            content = json.loads((folder / name).read_text())
            found[name] = json.dumps({**content, "epoch": 0})
    return found


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("clean")
    publisher.train(folder)
    found = results(folder)
    assert {"run/metrics.jsonl", "run/DONE", "run/summary.json"} <= set(found)
    return found


def _fresh(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _operations(forks: preload.Forks, tmp_path: Path) -> int:
    found = forks.run(_fresh(tmp_path))
    assert found.result == publisher.TOTAL_IMAGES, found
    return found.operations


def test_a_run_killed_at_any_operation_ends_with_the_same_files(
    forks: preload.Forks, clean: dict[str, str], tmp_path: Path
) -> None:
    count = _operations(forks, tmp_path)
    for at in range(1, count + 1, 7):
        folder = _fresh(tmp_path)
        action = "torn" if at % 2 else "exit"
        assert forks.run(folder, action=action, at=at).ended_by_fault
        again = forks.run(folder)
        assert again.code == 0, f"after a kill at operation {at}: {again}"
        assert results(folder) == clean, f"killed at operation {at}"


@pytest.mark.chaos
def test_a_run_killed_at_each_operation_then_at_another_ends_with_the_same_files(
    forks: preload.Forks, clean: dict[str, str], tmp_path: Path
) -> None:
    for at in range(1, _operations(forks, tmp_path) + 1):
        folder = _fresh(tmp_path)
        forks.run(folder, action="exit", at=at)
        forks.run(folder, action="torn", at=at // 2 + 1)
        assert forks.run(folder).code == 0 and results(folder) == clean, f"operation {at}"
    kept("killed at the k-th I/O operation", at, publisher.SAVE_IMAGES, "lost: by design")


def test_control_a_run_that_keeps_rows_past_its_checkpoint_is_caught(
    forks: preload.Forks, clean: dict[str, str], tmp_path: Path
) -> None:
    count, different = _operations(forks, tmp_path), 0
    for at in range(1, count + 1, 25):
        folder = _fresh(tmp_path)
        forks.run(folder, action="exit", at=at, cut=False)
        again = forks.run(folder, cut=False)
        different += again.code != 0 or results(folder) != clean
    assert different >= 2


def test_after_a_power_cut_the_run_goes_on_to_the_same_files(
    forks: preload.Forks, clean: dict[str, str], tmp_path: Path
) -> None:
    empty, log = tmp_path / "empty", tmp_path / "log"
    empty.mkdir()
    count = _operations(forks, tmp_path)
    for at in range(3, count + 1, 40):
        folder = _fresh(tmp_path)
        log.unlink(missing_ok=True)
        assert forks.run(folder, action="exit", at=at, log=log).ended_by_fault
        disk = Disk(folder, empty).replay(log)
        for seed in (None, at):
            shutil.rmtree(folder)
            disk.write(folder, seed)
            again = forks.run(folder)
            assert again.code == 0 and results(folder) == clean, (
                f"cut at {at}, seed {seed}: {again}"
            )


def test_a_full_disk_ends_a_run_with_a_named_error_and_room_lets_it_go_on(
    forks: preload.Forks, clean: dict[str, str], tmp_path: Path
) -> None:
    count, named = _operations(forks, tmp_path), 0
    for at in range(20, count, 17):
        folder = _fresh(tmp_path)
        found = forks.run(folder, action="enospc", at=at)
        assert found.error == "ResourceError" and "No space left" in found.text, f"{at}: {found}"
        complete = Checkpoints(Store(folder / "run"), None)
        for images in complete.complete():
            complete.at(images)
        named += 1
        assert forks.run(folder).code == 0 and results(folder) == clean
    assert named >= 5


def _command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "tests.faults.publisher", str(folder)]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def clean_s(clean: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> float:
    """Seconds that the command takes undisturbed; and it gives the same files as the function."""
    folder = tmp_path_factory.mktemp("command")
    started_s = time.monotonic()
    subprocess.run(_command(folder), cwd=ROOT, env=ENVIRONMENT, check=True)
    assert results(folder) == clean
    return time.monotonic() - started_s


def kept(fault: str, count: int, lost: int, note: str = "") -> None:
    """Keeps what came of `count` faults: nothing was wrong, or the test would not be here."""
    more = {"unit": "images", "recovered_s": None, "wrong": 0, "note": note}
    outcomes.record(part="train", fault=fault, trials=count, lost=lost, **more)  # type: ignore[arg-type]


def _random_kills(clean: dict[str, str], clean_s: float, tmp_path: Path, *, kills: int) -> None:
    """Runs with up to three kills each, until there were `kills`.

    A run that ended before a kill is begun anew, and killed in half the time.
    """
    killed, seed, within_s = 0, 0, clean_s
    while killed < kills:
        assert seed < 2 * kills, f"only {killed} kills in {seed} runs"
        folder = _fresh(tmp_path)
        attempts = run_killed(
            _command(folder),
            seed=seed,
            kills=3,
            clean_s=within_s,
            cwd=ROOT,
            env=ENVIRONMENT,
            log=tmp_path / "log",
        )
        assert results(folder) == clean, f"seed {seed}: {attempts}"
        # A kill of what is complete already is none.
        met = list(itertools.takewhile(lambda attempt: not attempt.finished, attempts))
        killed += len(met)
        within_s = clean_s if len(met) == len(attempts) else within_s / 2
        seed += 1


def test_random_kills_of_the_command_change_nothing(
    clean: dict[str, str], clean_s: float, tmp_path: Path
) -> None:
    _random_kills(clean, clean_s, tmp_path, kills=3)


@pytest.mark.chaos
def test_many_random_kills_of_the_command_change_nothing(
    clean: dict[str, str], clean_s: float, tmp_path: Path
) -> None:
    kills = trials(20, 50)
    _random_kills(clean, clean_s, tmp_path, kills=kills)
    kept("kill -9 at a random instant", kills, publisher.SAVE_IMAGES, "lost: by design")


# --- two starts -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with Killer(publisher.command) as found:
        yield found


@pytest.fixture(scope="module")
def other(killer: Killer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a run with another configuration."""
    folder = tmp_path_factory.mktemp("other")
    assert killer.run(folder, seed=1)[0] == 0
    return results(folder)


def kept_out(
    killer: Killer, trees: tuple[dict[str, str], ...], tmp_path: Path, count: int, **more: object
) -> int:
    """How many of two starts at once the lease kept out; nothing is mixed, whoever was first."""

    def refused(folder: Path, ended: list[tuple[int, str]]) -> bool:
        assert sorted(code for code, _ in ended) in ([0, 0], [0, 2], [0, 4]), ended
        assert results(folder) in trees
        return any(code == 4 for code, _ in ended)

    first = {"seed": 0, **more}
    return killer.kept_out(tmp_path, first, {**first, "seed": 1}, count, refused)


@pytest.mark.parametrize("count", [3, pytest.param(trials(20, 60), marks=pytest.mark.chaos)])
def test_of_two_starts_on_one_run_folder_one_is_refused_and_nothing_is_mixed(
    clean: dict[str, str], other: dict[str, str], killer: Killer, tmp_path: Path, count: int
) -> None:
    assert kept_out(killer, (clean, other), tmp_path, count) > 0
    kept("two starts on one output", count, 0)


def test_control_without_the_lock_two_starts_do_not_keep_out_of_each_others_way(
    clean: dict[str, str], other: dict[str, str], killer: Killer, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError):
        assert kept_out(killer, (clean, other), tmp_path, 8, alone=False) > 0
