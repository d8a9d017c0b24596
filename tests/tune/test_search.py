"""Rounds: what is tried and what is given up follow from finished rounds alone."""

import errno

import pytest

from medray.errors import DataError, ResourceError, Stopped, UsageError
from medray.store import Store
from medray.tune import spaces
from medray.tune.cells import Cell, cells_of
from medray.tune.journal import Journal
from medray.tune.search import Record, Search, cutoffs_of, rungs_of
from medray.tune.trial import run_here
from tests.tune.toys import Formula, records, searches


def quiet(trial, record):
    pass


def test_a_search_finds_better_settings_than_it_starts_with():
    found = searches(Formula(), ("none",), count=24)
    run_here(Formula(), found, quiet)
    search = next(iter(found))
    assert search.done and search.best().scores > search.records[0].scores
    assert abs(search.best().settings["lr"] - 0.004) < abs(0.01 - 0.004)
    assert search.records[0].settings == spaces.start_of(search.space)


def test_hopeless_trials_are_given_up_and_never_chosen():
    trials = Formula(length=9)
    found = searches(trials, ("none",), count=20)
    run_here(trials, found, quiet)
    states = [r.state for r in next(iter(found)).records.values()]
    assert "stopped" in states and states[:2] == ["complete", "complete"]
    assert next(iter(found)).best().state == "complete"
    assert len(trials.calls) < 20 * 9


def test_results_that_come_in_another_order_lead_to_the_same_search():
    one, other = (searches(Formula(), ("none", "smote"), count=8) for _ in range(2))
    run_here(Formula(), one, quiet)
    # Two workers: two trials are taken before the first comes back, the second comes first.
    while not other.done:
        taken = [t for t in (other.next(), other.next()) if t is not None]
        for trial in reversed(taken):
            cell = next(s for s in one if s.cell == trial.cell)
            other.take(trial.cell, cell.records[trial.number])
            assert trial.settings == cell.records[trial.number].settings
    assert records(one) == records(other)


def test_the_next_round_waits_for_the_one_under_way():
    search = next(iter(searches(Formula(), ("none",), count=4)))
    first, second = search.next(), search.next()
    assert search.next() is None
    search.take(Record(second.number, second.settings, (0.1,) * 4, "complete"))
    assert search.next() is None
    search.take(Record(first.number, first.settings, (0.2,) * 4, "complete"))
    assert search.next().number == 2


def test_finished_trials_are_read_back_and_not_run_again(tmp_path):
    whole = searches(Formula(), count=6)
    run_here(Formula(), whole, quiet)
    journal = Journal(Store(tmp_path))
    half = searches(Formula(), count=6)
    count = 0

    class Stop(BaseException):
        pass

    def told(trial, record):
        nonlocal count
        journal.add(trial.cell, record)
        count += 1
        if count == 5:
            raise Stop

    with pytest.raises(Stop):
        run_here(Formula(), half, told)
    again, trials = searches(Formula(), count=6), Formula()
    assert journal.replay(again) == 5
    run_here(trials, again, lambda t, r: journal.add(t.cell, r))
    assert records(again) == records(whole)
    done = {(arm, r.number) for arm in ("none",) for r in whole[Cell("none", 1.0)].records.values()}
    assert len(trials.calls) < 12 * 4 - 5 and len(done) == 6


def test_a_damaged_record_is_named(tmp_path):
    found = searches(Formula(), count=2)
    run_here(Formula(), found, lambda t, r: Journal(Store(tmp_path)).add(t.cell, r))
    (tmp_path / "trials/none-1/001.json").write_text("{")
    with pytest.raises(DataError, match="record of a trial") as caught:
        Journal(Store(tmp_path)).replay(searches(Formula(), count=2))
    assert "none-1/001.json" in str(caught.value)


def test_a_trial_that_crashes_fails_alone_and_the_search_goes_on():
    found = searches(Formula(), ("none", "smote"), count=4)
    run_here(Formula(broken=("smote",)), found, quiet)
    broken = found[Cell("smote", 1.0)]
    assert {r.state for r in broken.records.values()} == {"failed"} and broken.best() is None
    assert broken.records[0].error == "RuntimeError: planted"
    assert found[Cell("none", 1.0)].best() is not None


@pytest.mark.parametrize(
    "error",
    [Stopped("asked to"), ResourceError("the store is away"), OSError(errno.ENOSPC, "no space")],
)
def test_what_passes_ends_the_search_and_fails_no_trial(error):
    class Refused(Formula):
        def score(self, cell, settings, step):
            raise error

    found, told = searches(Refused(), ("none",), count=2), []
    with pytest.raises(type(error)):
        run_here(Refused(), found, lambda t, r: told.append(t))
    assert told == [] and not next(iter(found)).records


def test_a_score_that_is_not_finite_is_a_failed_trial():
    class Nan(Formula):
        def score(self, cell, settings, step):
            return float("nan")

    found = searches(Nan(), ("none",), count=2)
    run_here(Nan(), found, quiet)
    assert "validation score is nan" in next(iter(found)).records[0].error


def test_rungs_and_cutoffs_are_those_of_successive_halving():
    assert rungs_of(9, 3) == [1, 3] and rungs_of(1, 3) == [] and rungs_of(10, 3) == [1, 3, 9]
    known = [Record(n, {}, (n / 10,) * 4, "complete") for n in range(4)]
    known.append(Record(4, {}, (9.0,), "failed", "planted"))
    assert cutoffs_of(known, 4, 2) == pytest.approx({1: 0.15, 2: 0.15})


def test_the_same_round_is_proposed_whatever_ran_before_in_the_process():
    cell, space = Cell("smote", 1.0), spaces.space_of("smote", (1, 4))
    settings = []
    for _ in range(2):
        search = Search(cell, space, 1, trials=4, width=2)
        for number in range(2):
            trial = search.next()
            search.take(Record(number, trial.settings, (0.1 * number,), "complete"))
        settings.append([search.next().settings, search.next().settings])
    assert settings[0] == settings[1]
    assert settings[0][0] != settings[0][1]


@pytest.mark.parametrize("ratios", [(-1.0,), (float("nan"),), ()])
def test_ratios_below_zero_or_none_at_all_are_refused(ratios):
    with pytest.raises(UsageError, match="0 or more"):
        spaces.space_of("smote", ratios)


def test_arms_have_the_same_freedom_but_for_what_makes_them():
    none, weights = (spaces.space_of(arm, (1, 2)) for arm in ("none", "class-weights"))
    smote, archive = (spaces.space_of(arm, (1, 2)) for arm in ("smote", "archive"))
    assert none == weights == {n: p for n, p in smote.items() if n != "ratio"}
    assert set(archive) - set(smote) == {"threshold"}
    with pytest.raises(UsageError, match="no arm 'magic'"):
        spaces.space_of("magic", (1,))
    with pytest.raises(UsageError, match="no arm 'smote' on images"):
        spaces.space_of("smote", (1,), images=True)


def test_cells_keep_whole_comparisons_together():
    cells = cells_of(("none", "smote"), (0.1, 1.0), 2)
    assert [c.name for c in cells[:3]] == ["none-0.1-fold0", "smote-0.1-fold0", "none-0.1-fold1"]
    assert len(cells) == 8 and cells_of(("none",), (1.0,), 0) == [Cell("none", 1.0, None)]
