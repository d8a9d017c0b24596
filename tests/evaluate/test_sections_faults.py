"""A report that is killed, torn or out of room at any operation: never taken for finished."""

from __future__ import annotations

import pytest

from medray.evaluate.sections import CACHE, kept
from medray.store import Store
from tests import outcomes
from tests.evaluate import small_report
from tests.evaluate.small_report import leave, make
from tests.faults import preload, stores
from tests.faults.kill import tree_sha256
from tests.faults.operations import each_cut, each_operation


@pytest.fixture(scope="module")
def forks():
    with preload.Forks(small_report.leave) as found:
        yield found


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean")
    assert leave(folder) == 2
    return tree_sha256(folder)


def finished(folder):
    return (folder / "out" / "summary.json").exists()


def whole(folder):
    """The files without those that a killed writer left unfinished."""
    return tree_sha256(folder, lambda name: ".part" not in name)


def kept_outcome(fault, count, note=""):
    """Keeps what came of `count` faults: nothing was wrong, or the test would not be here."""
    note = f"{note} lost: by design".strip()
    more = {"lost": 1, "unit": "sections", "recovered_s": None, "wrong": 0, "note": note}
    outcomes.record(part="evaluate", fault=fault, trials=count, **more)


@pytest.mark.parametrize("action", ["exit", "torn"])
def test_killed_at_any_operation_the_same_command_ends_with_the_same_bytes(
    action, forks, clean, tmp_path
):
    def trial(folder, outcome):
        if finished(folder):
            assert whole(folder) == clean, "a summary stands for a whole report"
        leave(folder)
        assert whole(folder) == clean

    count = each_operation(forks, tmp_path, trial, action=action)
    assert count >= 20
    kept_outcome("killed at the k-th I/O operation", count)


@pytest.mark.parametrize("action", ["enospc", "eio"])
def test_a_full_or_failing_disk_is_a_named_error_and_a_rerun_is_equal(
    action, forks, clean, tmp_path
):
    errors = []

    def trial(folder, outcome):
        assert outcome.error in ("", "ResourceError"), outcome
        errors.append(outcome.error)
        leave(folder)
        assert whole(folder) == clean

    each_operation(forks, tmp_path, trial, action=action)
    assert errors.count("ResourceError") >= 5
    kept_outcome("disk full, EIO", errors.count("ResourceError"), action)


def test_a_power_cut_leaves_no_summary_without_its_report(forks, clean, tmp_path):
    count = 0
    for folder, acknowledged in each_cut(forks, tmp_path):
        count += 1
        assert not acknowledged or finished(folder)
        if finished(folder):
            assert whole(folder) == clean, "a summary stands for a whole report"
        leave(folder)
        assert whole(folder) == clean
    kept_outcome("power cut", count)


def test_control_without_fsync_a_power_cut_halves_what_was_acknowledged(forks, clean, tmp_path):
    left = [
        whole(folder) == clean
        for folder, acknowledged in each_cut(forks, tmp_path, cuts=5, step=1000, durable=False)
        if acknowledged
    ]
    assert left and not all(left)


def test_control_a_summary_written_first_is_taken_for_a_report(forks, clean, tmp_path):
    wrong = []

    def trial(folder, outcome):
        wrong.append(finished(folder) and tree_sha256(folder) != clean)

    each_operation(forks, tmp_path, trial, action="exit", summary_first=True)
    assert sum(wrong) >= 5


def test_a_finished_section_is_taken_as_it_is_and_a_damaged_one_made_again(tmp_path):
    assert leave(tmp_path) == 2 and leave(tmp_path) == 0
    (tmp_path / "out" / "first.png").write_bytes(b"other")
    assert leave(tmp_path) == 1
    (tmp_path / "out" / CACHE / "section-second.json").write_text('{"digest": 3')
    assert leave(tmp_path) == 1
    assert (tmp_path / "out" / "first.png").read_bytes() == b"first" * 9


def test_other_inputs_make_another_section(tmp_path):
    store, made = Store(tmp_path), []

    def fresh():
        made.append(1)
        return make("first")

    for seed in (0, 0, 1, 0):
        kept(store, "first", {"seed": seed}, fresh)
    assert len(made) == 3


def test_a_figure_that_is_not_a_number_is_not_written(tmp_path):
    def spoilt():
        section = make("first")
        section.figures["fid"] = float("nan")
        return section

    with pytest.raises(ValueError, match="JSON"):
        kept(Store(tmp_path), "first", {}, spoilt)
    assert not (tmp_path / CACHE).exists()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_store_that_fails_now_and_then_gets_the_same_report(seed, clean, monkeypatch):
    stores.register()
    url = f"{stores.PROTOCOL}://report-{seed}"
    rates = {"unavailable": 0.05, "reset": 0.05, "short_read": 0.05, "seed": seed}
    monkeypatch.setattr("medray.store.time.sleep", lambda s: None)
    with stores.faults(**rates) as found:
        for _ in range(3):
            for name in small_report.NAMES:
                section = kept(Store(url), name, {"seed": 0}, lambda n=name: make(n))
                assert section.html() == make(name).html()
    assert found.total > 0


def test_the_page_escapes_words_and_embeds_pictures():
    page = make("first").html()
    assert "&lt;words&gt;" in page and "data:image/png;base64," in page
    assert "1 (0.5 to 1.5)" in page and "not defined" in page
