"""A report that is killed, torn or out of room at any operation: never taken for finished."""

from __future__ import annotations

import shutil

import pytest

from medray.evaluate.sections import CACHE, kept
from medray.store import Store
from tests.evaluate import small_report
from tests.evaluate.small_report import leave, make
from tests.faults import preload, stores
from tests.faults.kill import tree_sha256


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


def each(forks, base, action, trial, **named):
    """The fault at operation 1, 2, ... until it is past; how many there are."""
    at = 0
    while True:
        at += 1
        folder = base / "work"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        outcome = forks.run(folder, at=at, action=action, **named)
        trial(folder, outcome)
        if outcome.operations and outcome.operations < at:
            return at - 1


@pytest.mark.parametrize("action", ["exit", "torn"])
def test_killed_at_any_operation_the_same_command_ends_with_the_same_bytes(
    action, forks, clean, tmp_path
):
    def trial(folder, outcome):
        if finished(folder):
            found = tree_sha256(folder, lambda name: ".part" not in name)
            assert found == clean, "a summary stands for a whole report"
        leave(folder)
        assert tree_sha256(folder, lambda name: ".part" not in name) == clean

    assert each(forks, tmp_path, action, trial) >= 20


@pytest.mark.parametrize("action", ["enospc", "eio"])
def test_a_full_or_failing_disk_is_a_named_error_and_a_rerun_is_equal(
    action, forks, clean, tmp_path
):
    errors = []

    def trial(folder, outcome):
        assert outcome.error in ("", "ResourceError"), outcome
        errors.append(outcome.error)
        leave(folder)
        assert tree_sha256(folder, lambda name: ".part" not in name) == clean

    each(forks, tmp_path, action, trial)
    assert errors.count("ResourceError") >= 5


def test_control_a_summary_written_first_is_taken_for_a_report(forks, clean, tmp_path):
    wrong = []

    def trial(folder, outcome):
        wrong.append(finished(folder) and tree_sha256(folder) != clean)

    each(forks, tmp_path, "exit", trial, summary_first=True)
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
