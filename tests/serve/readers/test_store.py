"""Answers are kept exactly once, only added, whatever is killed, doubled or full."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from medray.errors import DataError, UsageError
from serve.problems import Problem
from serve.readers import schema
from serve.readers.database import DATABASE_URL, database_url
from serve.readers.store import Conflict, Store
from tests.serve.readers.writer import answer, opened

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/readers.sqlite"


def test_an_answer_comes_back_as_it_was_given_and_the_commit_is_on_the_disk(url) -> None:
    store, reader = opened(url, 3)
    kept, fresh = store.add_answer(answer(reader, 1), None, final=False)
    assert fresh and kept.id > 0 and store.answers(reader.id) == [kept]
    with store.reading() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    assert reader.order == tuple(f"{n:016x}" for n in range(3))


def test_the_same_token_again_gives_the_answer_that_is_there(url) -> None:
    store, reader = opened(url, 3)
    first, fresh = store.add_answer(answer(reader, 0), None, final=False)
    again, fresh_again = store.add_answer(answer(reader, 0), None, final=False)
    assert fresh and not fresh_again and first == again and len(store.answers(reader.id)) == 1
    with pytest.raises(Problem, match="another answer"):
        store.add_answer(answer(reader, 0, score=5), None, final=False)


def test_a_second_answer_is_a_conflict_unless_it_corrects_the_newest(url) -> None:
    store, reader = opened(url, 3)
    first, _ = store.add_answer(answer(reader, 0), None, final=False)
    with pytest.raises(Conflict) as caught:
        store.add_answer(answer(reader, 0, "other-token"), None, final=False)
    assert caught.value.newest == first
    second, _ = store.add_answer(answer(reader, 0, "third-token", score=5), first.id, final=False)
    assert (second.version, [a.version for a in store.answers(reader.id)]) == (1, [0, 1])
    for corrects in (first.id, None, 99):
        with pytest.raises(Conflict):
            store.add_answer(answer(reader, 0, "fourth-tok"), corrects, final=False)
    with pytest.raises(Conflict):
        store.add_answer(answer(reader, 0, "fourth-tok"), second.id, final=True)
    with pytest.raises(Problem, match="no answer yet"):
        store.add_answer(answer(reader, 1), 7, final=False)


def test_nothing_is_added_after_the_lock_or_the_finish_but_what_was_stored_is_told(url) -> None:
    store, reader = opened(url, 3)
    store.add_answer(answer(reader, 0), None, final=False)
    assert store.set_status("s", "locked", was=("open",))
    assert not store.set_status("s", "closed", was=("open",))
    with pytest.raises(Problem, match="locked"):
        store.add_answer(answer(reader, 1), None, final=False)
    assert not store.add_answer(answer(reader, 0), None, final=False)[1]
    store.set_status("s", "open", was=("locked",))
    store.finish(reader.id, 5.0)
    with pytest.raises(Problem, match="finished"):
        store.add_answer(answer(reader, 1), None, final=False)


@pytest.mark.parametrize("statement", ["UPDATE answers SET score = 1", "DELETE FROM answers"])
def test_the_database_itself_refuses_to_change_answers(url, statement) -> None:
    store, reader = opened(url, 3)
    store.add_answer(answer(reader, 0), None, final=False)
    raw = sqlite3.connect(url.removeprefix("sqlite:///"))
    with pytest.raises(sqlite3.IntegrityError, match="only ever added"):
        raw.execute(statement)
    raw.close()
    with pytest.raises((Problem, DBAPIError)):
        with store.writing() as connection:
            connection.execute(text(statement))
    assert len(store.answers(reader.id)) == 1


def doubled(url, count, tokens):
    """Submits of two tabs at once: what was stored, how many conflicts."""
    store, reader = opened(url, count)
    conflicts = []

    def tab(name):
        for number in range(count):
            try:
                store.add_answer(answer(reader, number, tokens(name, number)), None, final=False)
            except Conflict:
                conflicts.append(number)

    tabs = [threading.Thread(target=tab, args=(name,)) for name in ("one", "two")]
    for thread in tabs:
        thread.start()
    for thread in tabs:
        thread.join()
    return [a.item for a in store.answers(reader.id)], conflicts


def test_two_tabs_that_submit_two_hundred_answers_each_leave_one_of_each(
    fast_folder: Path,
) -> None:
    items, conflicts = doubled(
        f"sqlite:///{fast_folder}/a.sqlite", 200, lambda tab, n: f"{tab}-token-{n}"
    )
    assert sorted(items) == [f"{n:016x}" for n in range(200)] and len(conflicts) == 200
    items, conflicts = doubled(
        f"sqlite:///{fast_folder}/b.sqlite", 200, lambda tab, n: f"token-{n:05d}"
    )
    assert sorted(items) == [f"{n:016x}" for n in range(200)] and not conflicts


@pytest.mark.parametrize("same", ["version", "token"])
def test_the_database_itself_refuses_a_double_answer(url, same) -> None:
    store, reader = opened(url, 1)
    store.add_answer(answer(reader, 0), None, final=False)
    columns = "reader, item, version, token, position, score, hidden, idle, received_s"
    version, token = (0, "other") if same == "version" else (1, "token-00000000")
    values = (reader.id, f"{0:016x}", version, token, 0, 1, 0, 0, 0.0)
    raw = sqlite3.connect(url.removeprefix("sqlite:///"))
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        raw.execute(f"INSERT INTO answers ({columns}) VALUES (?,?,?,?,?,?,?,?,?)", values)
    # The control: a row that is double in neither is taken.
    raw.execute(
        f"INSERT INTO answers ({columns}) VALUES (?,?,?,?,?,?,?,?,?)",
        (reader.id, f"{0:016x}", 1, "other", 0, 1, 0, 0, 0.0),
    )
    raw.close()


def killed(url: str, seed: int, times: int) -> tuple[int, int]:
    """Kills a writer at random moments; (answers acknowledged, of those lost or double)."""
    generator, acknowledged = np.random.default_rng(seed), set()
    command = [sys.executable, "-m", "tests.serve.readers.writer", url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as forks:
        for _ in range(times):
            print("go", file=forks.stdin, flush=True)
            child, line = 0, forks.stdout.readline()
            while line != "end\n":
                if line.startswith("child"):
                    child = int(line.split()[1])
                else:
                    acknowledged.add(int(line))
                    # It writes: some time later it is killed, in the middle of whatever it does.
                    if child:
                        time.sleep(generator.uniform(0, 0.05))
                        os.kill(child, signal.SIGKILL)
                    child = 0
                line = forks.stdout.readline()
        forks.stdin.close()
    store, reader = opened(url, 10)
    found = [a.position for a in store.answers(reader.id)]
    wrong = len(acknowledged - set(found)) + len(found) - len(set(found))
    return len(acknowledged), wrong


def test_no_acknowledged_answer_is_lost_when_the_process_is_killed(url) -> None:
    acknowledged, wrong = killed(url, 0, 10)
    assert acknowledged >= 10 and wrong == 0


@pytest.mark.chaos
def test_no_acknowledged_answer_is_lost_over_two_hundred_kills(url) -> None:
    acknowledged, wrong = killed(url, 1, 200)
    assert acknowledged >= 200 and wrong == 0


def full(store: Store, pages_more: int) -> Callable[[], None]:
    """From now on the database may grow by so many pages, as on a full disk; what ends it."""
    from sqlalchemy import event

    with store.reading() as connection:
        now = connection.exec_driver_sql("PRAGMA page_count").scalar()

    most = [now + pages_more]

    def limit(connection, record, proxy):
        connection.execute(f"PRAGMA max_page_count={most[0]}").close()

    event.listen(store.engine, "checkout", limit)
    return lambda: most.append(most.pop() + 10**6)


def test_on_a_full_disk_an_answer_is_503_and_reading_goes_on(url) -> None:
    store, reader = opened(url, 10)
    store.add_answer(answer(reader, 0), None, final=False)
    full(store, 0)
    stored = 1
    with pytest.raises(Problem) as caught:
        for number in range(1, 5000):
            store.add_answer(answer(reader, number, label="x" * 90), None, final=False)
            stored += 1
    assert (caught.value.status, caught.value.code) == (503, "storage_full")
    assert "retry-after" in caught.value.headers
    assert len(store.answers(reader.id)) == stored and store.reader(reader.id) == reader


def test_a_failed_migration_leaves_what_was_there(url) -> None:
    store, reader = opened(url, 3)
    store.add_answer(answer(reader, 0), None, final=False)
    broken = (*schema.STEPS, ("ALTER TABLE answers ADD COLUMN note TEXT", "CREATE TABL x"))
    with pytest.raises((Problem, DBAPIError)):
        with store.writing() as connection:
            schema.migrate(connection, broken)
    with store.reading() as connection:
        assert schema.version(connection) == len(schema.STEPS)
        columns = {row[1] for row in connection.exec_driver_sql("PRAGMA table_info(answers)")}
    assert "note" not in columns
    good = (*schema.STEPS, ("ALTER TABLE answers ADD COLUMN note TEXT",))
    with store.writing() as connection:
        assert schema.migrate(connection, good) == len(schema.STEPS)
    with store.writing() as connection:
        assert schema.migrate(connection, good) == len(good)
    assert len(store.answers(reader.id)) == 1
    with pytest.raises(DataError, match="update medray"):
        Store(url)


def test_several_processes_that_start_at_once_make_the_tables_once(url) -> None:
    errors, together = [], threading.Barrier(6)

    def start():
        together.wait()
        try:
            Store(url).close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and opened(url, 2)[1].number == 0


def test_who_comes_while_another_makes_the_tables_waits_for_it(url: str) -> None:
    """SQLite tells who would switch a fresh file that is locked to WAL so at once, without a wait.

    Of several who start at once it hits one now and then; held locked, it hits every time.
    """
    other = sqlite3.connect(
        url.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False
    )
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, other.execute, args=("COMMIT",))
    release.start()
    Store(url).close()
    release.join()
    other.close()


def test_which_database_is_taken_and_which_is_refused(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv(DATABASE_URL, raising=False)
    assert database_url(None, str(tmp_path)) == f"sqlite:///{tmp_path}/readers.sqlite"
    monkeypatch.setenv(DATABASE_URL, "postgresql+psycopg://h/n")
    assert database_url(None, "x") == "postgresql+psycopg://h/n"
    assert database_url("sqlite:////a", "x") == "sqlite:////a"
    for wrong in ("mysql://u:secret@h/n", "nonsense"):
        with pytest.raises(UsageError) as caught:
            Store(wrong)
        assert "secret" not in str(caught.value)
