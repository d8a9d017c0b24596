"""A pack that is killed, torn, out of room, cut off from power or started twice: the same bytes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from medray import store as store_module
from medray.pack.worker import STATE
from medray.shards import INDEX
from medray.store import Store
from tests import outcomes
from tests.chaos_budget import trials
from tests.faults import preload, stores
from tests.faults.kill import at_load, tree_sha256
from tests.faults.killer import Cost, Killer, there
from tests.faults.operations import each_cut, each_operation, fresh
from tests.pack import small_pack
from tests.pack.small_pack import is_result

PUBLISHED = (".tar", ".idx", ".json", ".csv", ".png")
Tree = dict[str, str]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_pack.make_source(tmp_path_factory.mktemp("source") / "in"))


@pytest.fixture(scope="module")
def forks() -> Iterator[preload.Forks]:
    with preload.Forks(small_pack.make) as found:
        yield found


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with Killer(small_pack.make) as found:
        yield found


@pytest.fixture(scope="module")
def clean(killer: Killer, source: str, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The files of an undisturbed pack."""
    folder = tmp_path_factory.mktemp("clean")
    assert killer.run(folder, source=source)[0] == 0
    found = tree_sha256(folder, is_result)
    assert sum(name.endswith(".tar") for name in found) == 2
    return found


def half_written(folder: Path, clean: Tree) -> list[str]:
    """Names that a reader takes for finished files though they are not."""
    there = tree_sha256(folder, is_result)
    return [n for n, digest in there.items() if n.endswith(PUBLISHED) and digest != clean[n]]


def same(folder: Path, clean: Tree) -> bool:
    return tree_sha256(folder, is_result) == clean


# --- kills --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [8, pytest.param(trials(50, 200), marks=pytest.mark.chaos)])
def test_killed_at_random_instants_the_rerun_gives_the_same_bytes(
    source: str, clean: Tree, killer: Killer, tmp_path: Path, kills: int
) -> None:
    def nothing_half(folder: Path) -> None:
        assert not folder.exists() or half_written(folder, clean) == []

    def equal(folder: Path) -> None:
        assert same(folder, clean)
        assert not (folder / "set" / STATE).exists(), "nothing to go on from is left"

    cost = killer.kill_at_random(tmp_path, kills, check=nothing_half, done=equal, source=source)
    outcomes.record(
        part="pack",
        fault="kill -9 at a random instant",
        trials=cost.kills,
        lost=cost.lost,
        unit="shards",
        recovered_s=cost.recovered_s,
        wrong=0,
    )


@pytest.mark.parametrize("times", [4, pytest.param(trials(20, 60), marks=pytest.mark.chaos)])
def test_sigterm_at_random_instants_ends_it_in_five_seconds_and_the_rerun_is_equal(
    source: str, clean: Tree, killer: Killer, tmp_path: Path, times: int
) -> None:
    def nothing_half(folder: Path) -> None:
        assert not folder.exists() or half_written(folder, clean) == []

    def equal(folder: Path) -> None:
        assert same(folder, clean)
        assert not (folder / "set" / STATE).exists(), "nothing to go on from is left"

    more = {"check": nothing_half, "done": equal, "number": signal.SIGTERM, "source": source}
    cost = killer.kill_at_random(tmp_path, times, **more)  # type: ignore[arg-type]
    assert cost.ended_s < at_load(5)
    outcomes.record(
        part="pack",
        fault="SIGTERM, preemption",
        trials=cost.kills,
        lost=cost.lost,
        unit="shards",
        recovered_s=cost.recovered_s,
        wrong=0,
        note=f"ended within {cost.ended_s:.1f} s",
    )


STEPS = [9, pytest.param(1, marks=pytest.mark.chaos)]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("action", ["exit", "torn"])
def test_killed_at_the_kth_operation_nothing_is_half_and_the_rerun_is_equal(
    source: str, clean: Tree, forks: preload.Forks, tmp_path: Path, action: str, step: int
) -> None:
    cost = Cost()

    def trial(folder: Path, outcome: preload.Outcome) -> None:
        assert half_written(folder, clean) == []
        before = there(folder)
        assert forks.run(folder, source=source).result == 0
        cost.lose(before, there(folder))
        assert same(folder, clean)

    count = each_operation(forks, tmp_path, trial, step=step, action=action, source=source)
    assert count * step > 40
    outcomes.record(
        part="pack",
        fault="killed at the k-th I/O operation",
        trials=count,
        lost=cost.lost,
        unit="shards",
        recovered_s=None,
        wrong=0,
    )


def test_control_without_part_and_digests_half_a_shard_bears_its_name(
    source: str, clean: Tree, forks: preload.Forks, tmp_path: Path
) -> None:
    found: list[str] = []

    def trial(folder: Path, outcome: preload.Outcome) -> None:
        found.extend(half_written(folder, clean))

    more = {"action": "torn", "source": source, "guarded": False}
    each_operation(forks, tmp_path, trial, step=2, **more)
    assert any(name.endswith(".tar") for name in found)


# --- the power ----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [17, pytest.param(1, marks=pytest.mark.chaos)])
def test_a_power_cut_publishes_nothing_bad_and_keeps_what_was_acknowledged(
    source: str, clean: Tree, forks: preload.Forks, tmp_path: Path, step: int
) -> None:
    count = 0
    for folder, acknowledged in each_cut(forks, tmp_path, step=step, source=source):
        count += 1
        assert half_written(folder, clean) == []
        if acknowledged:
            assert same(folder, clean), "acknowledged, so all of it is there"
        assert forks.run(folder, source=source).result == 0
        assert same(folder, clean)
    outcomes.record(
        part="pack",
        fault="power cut",
        trials=count,
        lost=0,
        unit="published files",
        recovered_s=None,
        wrong=0,
    )


def test_control_without_fsync_a_power_cut_loses_what_was_acknowledged(
    source: str, clean: Tree, forks: preload.Forks, tmp_path: Path
) -> None:
    found = [
        same(folder, clean)
        for folder, acknowledged in each_cut(
            forks, tmp_path, cuts=5, step=1000, source=source, durable=False
        )
        if acknowledged
    ]
    assert found and not all(found)


# --- the disk -----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [13, pytest.param(2, marks=pytest.mark.chaos)])
@pytest.mark.parametrize("action, text", [("enospc", "No space left"), ("eio", "Input/output")])
def test_a_full_or_failing_disk_is_exit_code_4_and_the_rerun_is_equal(
    source: str,
    clean: Tree,
    forks: preload.Forks,
    tmp_path: Path,
    action: str,
    text: str,
    step: int,
) -> None:
    codes: list[int] = []
    cost = Cost()

    def trial(folder: Path, outcome: preload.Outcome) -> None:
        codes.append(outcome.result)
        assert half_written(folder, clean) == []
        before = there(folder)
        assert forks.run(folder, source=source).result == 0
        cost.lose(before, there(folder))
        assert same(folder, clean)

    each_operation(forks, tmp_path, trial, step=step, action=action, source=source)
    assert set(codes) <= {0, 4} and codes.count(4) >= 2
    outcomes.record(
        part="pack",
        fault="disk full, EIO",
        trials=codes.count(4),
        lost=cost.lost,
        unit="shards",
        recovered_s=None,
        wrong=0,
        note=action,
    )


@pytest.mark.parametrize("offsets", [3, pytest.param(trials(20, 40), marks=pytest.mark.chaos)])
def test_a_disk_that_fills_up_is_named_and_publishes_nothing_half(
    source: str, clean: Tree, forks: preload.Forks, tmp_path: Path, offsets: int
) -> None:
    whole = fresh(tmp_path / "whole")
    assert forks.run(whole, source=source).result == 0
    total = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    cost = Cost()
    for number in range(offsets):
        folder = fresh(tmp_path / "full")
        room_bytes = total * (number + 1) // (offsets + 2)
        assert forks.run(folder, source=source, room_bytes=room_bytes).result == 4
        assert half_written(folder, clean) == []
        assert not (folder / "set" / INDEX).exists()
        before = there(folder)
        assert forks.run(folder, source=source).result == 0
        cost.lose(before, there(folder))
        assert same(folder, clean)
    outcomes.record(
        part="pack",
        fault="disk full, EIO",
        trials=offsets,
        lost=cost.lost,
        unit="shards",
        recovered_s=None,
        wrong=0,
        note="after so many bytes",
    )


RATES = {"unavailable": 0.05, "reset": 0.05, "short_read": 0.05, "stall": 0.05, "stall_s": 0.01}


@pytest.mark.parametrize("seeds", [3, pytest.param(trials(20, 50), marks=pytest.mark.chaos)])
def test_on_a_store_that_fails_the_bytes_are_the_same(
    source: str, clean: Tree, monkeypatch: pytest.MonkeyPatch, seeds: int
) -> None:
    monkeypatch.setattr(store_module, "RETRY_DELAYS_S", (0.0,) * 4)
    monkeypatch.setattr(small_pack.worker, "shared", small_pack.worker.shared)
    injected = 0
    for seed in range(seeds):
        stores.register()
        with stores.faults(seed=seed, **RATES) as faults:
            codes = [small_pack.make("faulty://bucket", source)]
            while codes[-1] == 4 and len(codes) < 5:
                codes.append(small_pack.make("faulty://bucket", source))
        assert codes[-1] == 0 and set(codes) <= {0, 4}
        assert faults.total > 0
        injected += faults.total
        store = Store("faulty://bucket")
        found = {n: sha256(store.read_bytes(n)).hexdigest() for n in store.names() if is_result(n)}
        assert found == clean
    assert injected > 3 * seeds
    stores.register()
    outcomes.record(
        part="pack",
        fault="storage faults",
        trials=seeds,
        lost=0,
        unit="shards",
        recovered_s=None,
        wrong=0,
    )


# --- two at once --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(killer: Killer, source: str, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The files of the other plan."""
    folder = tmp_path_factory.mktemp("other")
    assert killer.run(folder, source=source, size_px=6)[0] == 0
    return tree_sha256(folder, is_result)


def kept_out(
    killer: Killer, source: str, trees: tuple[Tree, Tree], tmp_path: Path, count: int, **more: Any
) -> int:
    """How many of two starts at once the lock kept out; nothing is mixed, whoever was first."""

    def refused(folder: Path, ended: list[tuple[int, str]]) -> bool:
        assert sorted(code for code, _ in ended) in ([0, 0], [0, 2]), ended
        assert tree_sha256(folder, is_result) in trees
        said = "".join(text for code, text in ended if code == 2)
        assert not said or "another pack is writing" in said or "another plan" in said
        return "another pack is writing" in said

    first = {"source": source, **more}
    return killer.kept_out(tmp_path, first, {**first, "size_px": 6}, count, refused)


@pytest.mark.parametrize("count", [4, pytest.param(trials(20, 60), marks=pytest.mark.chaos)])
def test_of_two_starts_on_one_place_one_is_refused_and_nothing_is_mixed(
    source: str, clean: Tree, other: Tree, killer: Killer, tmp_path: Path, count: int
) -> None:
    assert kept_out(killer, source, (clean, other), tmp_path, count) > 0
    outcomes.record(
        part="pack",
        fault="two starts on one output",
        trials=count,
        lost=0,
        unit="shards",
        recovered_s=None,
        wrong=0,
    )


def test_control_without_the_lock_two_starts_do_not_keep_out_of_each_others_way(
    source: str, clean: Tree, other: Tree, killer: Killer, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError):
        assert kept_out(killer, source, (clean, other), tmp_path, 8, alone=False) > 0
