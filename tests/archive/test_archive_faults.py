"""An archive that is killed, out of room, cut off from power or started twice: the same bytes."""

import signal
import subprocess
import sys
import time
from hashlib import sha256

import pytest

from medray import lease as lease_module
from medray import store as store_module
from medray.archive.archive import holding
from medray.shards import INDEX
from medray.store import Store
from tests import outcomes
from tests.archive import small_archive
from tests.archive.made_parts import arguments, is_result, make_parts, run
from tests.chaos_budget import trials
from tests.faults import preload, stores
from tests.faults.kill import at_load, tree_sha256, wait_for
from tests.faults.killer import Cost, Killer, there
from tests.faults.operations import each_cut, each_operation, fresh

PUBLISHED = (".tar", ".idx", ".json", ".png")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return make_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def clean(parts, tmp_path_factory):
    """The files of an undisturbed run."""
    out = tmp_path_factory.mktemp("clean") / "archive"
    assert run(parts, out) == 0
    return tree_sha256(out, is_result)


@pytest.fixture(scope="module")
def killer():
    with Killer(small_archive.make) as found:
        yield found


@pytest.fixture(scope="module")
def forks():
    with preload.Forks(small_archive.make) as found:
        yield found


def half_written(folder, clean):
    """Names that a reader takes for finished files though they are not."""
    out = folder / "archive"
    there = tree_sha256(out, is_result) if out.exists() else {}
    return [n for n, d in there.items() if n.endswith(PUBLISHED) and d != clean[n]]


def kept(fault, count, lost, unit="shards", recovered_s=None, note=""):
    """Keeps what came of `count` faults: nothing was wrong, or the test would not be here."""
    more = {"lost": lost, "unit": unit, "recovered_s": recovered_s, "note": note}
    outcomes.record(part="archive", fault=fault, trials=count, wrong=0, **more)


@pytest.mark.parametrize("kills", [20, pytest.param(trials(60, 200), marks=pytest.mark.chaos)])
def test_killed_at_random_instants_the_rerun_gives_the_same_bytes(
    parts, clean, killer, tmp_path, kills
):
    def nothing_half(folder):
        assert half_written(folder, clean) == []

    def same(folder):
        assert tree_sha256(folder / "archive", is_result) == clean

    cost = killer.kill_at_random(tmp_path, kills, check=nothing_half, done=same, parts=str(parts))
    kept("kill -9 at a random instant", cost.kills, cost.lost, recovered_s=cost.recovered_s)


STEPS = [11, pytest.param(trials(3, 1), marks=pytest.mark.chaos)]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("action", ["exit", "torn"])
def test_killed_at_the_kth_operation_nothing_is_half_and_the_rerun_is_equal(
    parts, clean, forks, tmp_path, action, step
):
    cost = Cost()

    def trial(folder, outcome):
        assert half_written(folder, clean) == []
        before = there(folder)
        assert forks.run(folder, parts=str(parts)).result == 0
        cost.lose(before, there(folder))
        assert tree_sha256(folder / "archive", is_result) == clean

    fault = {"action": action, "parts": str(parts)}
    count = each_operation(forks, tmp_path, trial, step=step, **fault)
    assert count * step > 60
    kept("killed at the k-th I/O operation", count, cost.lost)


@pytest.mark.chaos
def test_control_without_part_and_digests_half_a_shard_bears_its_name(
    parts, clean, forks, tmp_path
):
    found = []

    def trial(folder, outcome):
        found.extend(half_written(folder, clean))

    fault = {"action": "exit", "parts": str(parts), "guarded": False}
    each_operation(forks, tmp_path, trial, step=5, **fault)
    assert any(name.endswith(".tar") for name in found)


@pytest.mark.parametrize("step", [19, pytest.param(trials(7, 2), marks=pytest.mark.chaos)])
@pytest.mark.parametrize("action", ["enospc", "eio"])
def test_a_full_or_failing_disk_is_exit_code_4_and_the_rerun_is_equal(
    parts, clean, forks, tmp_path, action, step
):
    codes, cost = [], Cost()

    def trial(folder, outcome):
        codes.append(outcome.result)
        assert half_written(folder, clean) == []
        before = there(folder)
        assert forks.run(folder, parts=str(parts)).result == 0
        cost.lose(before, there(folder))
        assert tree_sha256(folder / "archive", is_result) == clean

    each_operation(forks, tmp_path, trial, step=step, action=action, parts=str(parts))
    assert set(codes) <= {0, 4} and codes.count(4) >= 3
    kept("disk full, EIO", codes.count(4), cost.lost, note=action)


@pytest.mark.parametrize("offsets", [4, pytest.param(trials(10, 20), marks=pytest.mark.chaos)])
def test_a_disk_that_fills_up_is_named_and_publishes_nothing_half(
    parts, clean, forks, tmp_path, offsets
):
    whole = forks.run(fresh(tmp_path / "whole"), parts=str(parts))
    assert whole.result == 0
    total = sum(path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file())
    cost = Cost()
    for number in range(offsets):
        folder = fresh(tmp_path / "full")
        room_bytes = total * (number + 1) // (offsets + 2)
        assert forks.run(folder, parts=str(parts), room_bytes=room_bytes).result == 4
        assert half_written(folder, clean) == []
        assert not (folder / "archive" / INDEX).exists()
        before = there(folder)
        assert forks.run(folder, parts=str(parts)).result == 0
        cost.lose(before, there(folder))
        assert tree_sha256(folder / "archive", is_result) == clean
    kept("disk full, EIO", offsets, cost.lost, note="after so many bytes")


@pytest.mark.parametrize("step", [23, pytest.param(trials(7, 1), marks=pytest.mark.chaos)])
def test_a_power_cut_publishes_nothing_bad_and_keeps_what_was_acknowledged(
    parts, clean, forks, tmp_path, step
):
    count = 0
    for folder, acknowledged in each_cut(forks, tmp_path, step=step, parts=str(parts)):
        assert half_written(folder, clean) == []
        if acknowledged:
            there = tree_sha256(folder / "archive", is_result)
            assert there == clean, "acknowledged, so all of it is there"
        assert forks.run(folder, parts=str(parts)).result == 0
        assert tree_sha256(folder / "archive", is_result) == clean
        count += 1
    kept("power cut", count, lost=0, unit="published files")


def test_control_without_fsync_a_power_cut_loses_what_was_acknowledged(
    parts, clean, forks, tmp_path
):
    more = {"parts": str(parts), "durable": False, "cuts": 1, "step": 1000}
    left = [folder for folder, acknowledged in each_cut(forks, tmp_path, **more) if acknowledged]
    assert left and tree_sha256(left[0], is_result) != clean


def test_a_second_start_on_the_same_place_is_refused_while_the_first_runs(parts, tmp_path, capsys):
    out = tmp_path / "archive"
    with holding(Store(out), 0):
        assert run(parts, out, "--wait-s", 0) == 4
        said = capsys.readouterr().err
        assert "in use by process" in said and "another --out" in said
    assert run(parts, out, "--wait-s", 0) == 0


@pytest.fixture(scope="module")
def other(killer, parts, tmp_path_factory):
    """The files of an undisturbed run with another seed."""
    folder = tmp_path_factory.mktemp("other")
    assert killer.run(folder, parts=str(parts), seed=1)[0] == 0
    return tree_sha256(folder / "archive", is_result)


def kept_out(killer, parts, clean, other, tmp_path, count, **more):
    """How many of two starts at once the lock kept out; nothing is mixed, whoever was first."""

    def refused(folder, ended):
        assert sorted(code for code, _ in ended) in ([0, 0], [0, 2], [0, 4]), ended
        assert tree_sha256(folder / "archive", is_result) in (clean, other)
        assert all("another plan" in said for code, said in ended if code == 2), ended
        return any(code == 4 and "in use by" in said for code, said in ended)

    first = {"parts": str(parts), "wait_s": 0, **more}
    return killer.kept_out(tmp_path, first, {**first, "seed": 1}, count, refused)


@pytest.mark.parametrize("count", [2, pytest.param(trials(20, 60), marks=pytest.mark.chaos)])
def test_of_two_starts_on_one_place_one_is_refused_and_nothing_is_mixed(
    parts, clean, other, killer, tmp_path, count
):
    assert kept_out(killer, parts, clean, other, tmp_path, count) > 0
    kept("two starts on one output", count, 0)


@pytest.mark.chaos
def test_control_without_the_lock_two_starts_do_not_keep_out_of_each_others_way(
    parts, clean, other, killer, tmp_path
):
    with pytest.raises(AssertionError):
        assert kept_out(killer, parts, clean, other, tmp_path, 8, alone=False) > 0


RATES = {"unavailable": 0.05, "reset": 0.05, "short_read": 0.05, "stall": 0.05, "stall_s": 0.01}


@pytest.mark.parametrize("seeds", [2, pytest.param(trials(15, 50), marks=pytest.mark.chaos)])
def test_on_a_store_that_fails_the_bytes_are_the_same(parts, clean, monkeypatch, seeds):
    monkeypatch.setattr(store_module, "RETRY_DELAYS_S", (0.0,) * 4)
    monkeypatch.setattr(lease_module, "SETTLE_S", 0.0)
    # No thread beats between the seeded draws of a run that takes longer.
    monkeypatch.setattr(lease_module, "BEAT_S", 3600.0)
    for seed in range(seeds):
        stores.register()
        with stores.faults(seed=seed, **RATES) as faults:
            codes = [run(parts, "faulty://bucket/archive")]
            while codes[-1] == 4 and len(codes) < 5:
                codes.append(run(parts, "faulty://bucket/archive"))
        assert codes[-1] == 0 and set(codes) <= {0, 4}
        assert faults.total > 5
        store = Store("faulty://bucket/archive")
        found = {n: sha256(store.read_bytes(n)).hexdigest() for n in store.names() if is_result(n)}
        assert found == clean
    stores.register()
    kept("storage faults", seeds, 0)


@pytest.mark.parametrize("times", [1, pytest.param(trials(5, 20), marks=pytest.mark.chaos)])
def test_sigterm_ends_with_75_within_ten_seconds_and_the_rerun_is_equal(
    parts, clean, tmp_path, times
):
    longest_s = 0.0
    for trial in range(times):
        out = tmp_path / f"archive{trial}"
        command = [sys.executable, "-m", "jobs.archive", *arguments(parts, out)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=preload.ROOT)
        wait_for(lambda out=out: list(out.glob("*.part")) or list(out.glob("*.tar")), 60)
        start_s = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        longest_s = max(longest_s, time.monotonic() - start_s)
        assert longest_s < at_load(10)
        # So small an archive may be done before it hears of it.
        assert process.returncode == 75 or "done" in said or (out / INDEX).exists(), said
        assert run(parts, out) == 0
        assert tree_sha256(out, is_result) == clean
    kept("SIGTERM, preemption", times, 1, note=f"ended within {longest_s:.1f} s; lost: by design")
