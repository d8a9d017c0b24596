"""A sweep killed, torn, out of room, cut off from power or started twice: the same bytes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import outcomes
from tests.chaos_budget import trials
from tests.faults import preload
from tests.faults.kill import at_load, tree_sha256
from tests.faults.killer import Cost, Killer, there
from tests.faults.operations import each_cut, each_operation
from tests.jobs import sweep_runs

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3000)]
Tree = dict[str, str]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sets")
    sweep_runs.features(folder / "real", (12, 6, 6))
    return str(folder)


@pytest.fixture(scope="module")
def forks() -> Iterator[preload.Forks]:
    with preload.Forks(sweep_runs.make) as found:
        yield found


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with Killer(sweep_runs.make) as found:
        yield found


def _swept(killer: Killer, folder: Path, sets: str, seed: int) -> Tree:
    assert killer.run(folder, sets=sets, seed=seed)[0] == 0
    return tree_sha256(folder)


@pytest.fixture(scope="module")
def clean(killer: Killer, sets: str, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return _swept(killer, tmp_path_factory.mktemp("clean"), sets, 0)


def whole(folder: Path) -> Tree:
    """The files without those that a killed writer left unfinished."""
    return tree_sha256(folder, lambda name: not name.endswith(".part"))


def half_written(folder: Path, clean: Tree) -> list[str]:
    """Names that a reader takes for finished files though they are not."""
    return [name for name, digest in whole(folder).items() if clean[name] != digest]


def kept(fault: str, count: int, lost: int, note: str = "") -> None:
    """Keeps what came of `count` faults: nothing was wrong, or the test would not be here."""
    more: dict[str, Any] = {"unit": "trials", "recovered_s": None, "wrong": 0, "note": note}
    outcomes.record(part="sweep", fault=fault, trials=count, lost=lost, **more)


TRIALS = "trials/*/*.json*"


def test_sigterm_at_random_instants_ends_it_and_the_rerun_is_equal(
    sets: str, clean: Tree, killer: Killer, tmp_path: Path
) -> None:
    def nothing_half(folder: Path) -> None:
        assert not folder.exists() or half_written(folder, clean) == []

    def equal(folder: Path) -> None:
        assert tree_sha256(folder) == clean

    more: dict[str, Any] = {"check": nothing_half, "done": equal, "units": TRIALS, "sets": sets}
    cost = killer.kill_at_random(tmp_path, trials(5, 20), number=signal.SIGTERM, **more)
    assert cost.ended_s < at_load(10)
    kept("SIGTERM, preemption", cost.kills, cost.lost, f"ended within {cost.ended_s:.1f} s")


@pytest.mark.parametrize("action", ["exit", "torn"])
def test_killed_at_the_kth_operation_nothing_is_half_and_the_rerun_is_equal(
    sets: str, clean: Tree, forks: preload.Forks, tmp_path: Path, action: str
) -> None:
    cost = Cost()

    def trial(folder: Path, outcome: preload.Outcome) -> None:
        assert half_written(folder, clean) == []
        before = there(folder, TRIALS)
        assert forks.run(folder, sets=sets).result == 0
        cost.lose(before, there(folder, TRIALS))
        assert tree_sha256(folder) == clean

    step = trials(26, 1)
    count = each_operation(forks, tmp_path, trial, step=step, action=action, sets=sets)
    assert count * step > 100
    kept("killed at the k-th I/O operation", count, cost.lost)


def test_a_power_cut_leaves_nothing_half_and_the_rerun_is_equal(
    sets: str, clean: Tree, forks: preload.Forks, tmp_path: Path
) -> None:
    count = 0
    for folder, acknowledged in each_cut(forks, tmp_path, cuts=2, step=trials(40, 10), sets=sets):
        count += 1
        assert half_written(folder, clean) == []
        if acknowledged:
            assert {name for name in whole(folder)} >= {"summary.json", "report.html"}
        assert forks.run(folder, sets=sets).result == 0
        assert tree_sha256(folder) == clean
    kept("power cut", count, 1)


def test_control_without_fsync_a_power_cut_loses_or_halves_what_was_acknowledged(
    sets: str, clean: Tree, forks: preload.Forks, tmp_path: Path
) -> None:
    more = {"cuts": 4, "step": 1000, "sets": sets, "durable": False}
    left = [whole(folder) for folder, acknowledged in each_cut(forks, tmp_path, **more)]
    assert any(tree != clean for tree in left[-4:])


@pytest.mark.parametrize("action", ["enospc", "eio"])
def test_a_full_or_failing_disk_is_exit_code_4_and_the_rerun_is_equal(
    sets: str, clean: Tree, forks: preload.Forks, tmp_path: Path, action: str
) -> None:
    codes: list[int] = []
    cost = Cost()

    def trial(folder: Path, outcome: preload.Outcome) -> None:
        codes.append(outcome.result)
        assert half_written(folder, clean) == []
        before = there(folder, TRIALS)
        assert forks.run(folder, sets=sets).result == 0
        cost.lose(before, there(folder, TRIALS))
        assert tree_sha256(folder) == clean

    each_operation(forks, tmp_path, trial, step=trials(41, 7), action=action, sets=sets)
    assert set(codes) <= {0, 4} and codes.count(4) >= 2
    kept("disk full, EIO", codes.count(4), cost.lost, action)


def kept_out(
    killer: Killer, sets: str, trees: tuple[Tree, Tree], tmp_path: Path, count: int, **more: Any
) -> int:
    """How many of two starts at once the lock kept out; nothing is mixed, whoever was first."""

    def refused(folder: Path, ended: list[tuple[int, str]]) -> bool:
        assert sorted(code for code, _ in ended) in ([0, 0], [0, 2]), ended
        assert tree_sha256(folder) in trees
        said = "".join(text for code, text in ended if code == 2)
        assert not said or "another sweep is writing" in said or "another plan" in said
        return "another sweep is writing" in said

    first = {"sets": sets, **more}
    return killer.kept_out(tmp_path, first, {**first, "seed": 1}, count, refused)


@pytest.fixture(scope="module")
def both(
    killer: Killer, sets: str, clean: Tree, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tree, Tree]:
    return clean, _swept(killer, tmp_path_factory.mktemp("other"), sets, 1)


def test_of_two_starts_on_one_place_one_is_refused_and_nothing_is_mixed(
    sets: str, both: tuple[Tree, Tree], killer: Killer, tmp_path: Path
) -> None:
    count = trials(4, 20)
    assert kept_out(killer, sets, both, tmp_path, count) > 0
    kept("two starts on one output", count, 0)


def test_control_without_the_lock_two_starts_do_not_keep_out_of_each_others_way(
    sets: str, both: tuple[Tree, Tree], killer: Killer, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError):
        assert kept_out(killer, sets, both, tmp_path, 4, alone=False) > 0
