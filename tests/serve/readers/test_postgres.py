"""The same store on Postgres, where one is installed; else these tests skip and say so."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from serve.problems import Problem
from serve.readers.store import Conflict, Store
from tests.serve.readers.writer import answer, opened


def _somebody() -> str | None:
    """A user that is not root, which Postgres refuses to run as."""
    if os.getuid() != 0:
        return None
    names = {user.pw_name for user in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a fresh Postgres on a socket of its own, and on no port."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    if not shutil.which("initdb") or not shutil.which("postgres"):
        pytest.skip("Postgres is not installed")
    user = _somebody()
    # A path of a socket has 107 bytes at most, which pytest's own folders may exceed.
    with tempfile.TemporaryDirectory(prefix="mrpg") as place:
        folder = Path(place)
        shutil.chown(folder, user) if user else None
        made = ["initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "medray", "--no-sync"]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, user=user, cwd=folder)
        command = ["postgres", "-D", f"{folder}/data", "-k", str(folder), "-c", "listen_addresses="]
        running = subprocess.Popen(command, user=user, cwd=folder, stderr=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 30
            while not _answers(folder):
                assert time.monotonic() < until and running.poll() is None, "it does not start"
                time.sleep(0.05)
            yield f"postgresql+psycopg://medray@/postgres?host={folder}"
        finally:
            # A fast end: by SIGTERM it would wait until the last client is gone.
            running.send_signal(signal.SIGINT)
            running.wait(20)


def _answers(folder: Path) -> bool:
    """Whether it takes a client: its socket is there before it does."""
    import psycopg

    try:
        psycopg.connect(host=str(folder), dbname="postgres", user="medray").close()
    except psycopg.OperationalError:
        return False
    return True


def test_answers_are_kept_once_and_only_added_on_postgres_too(server) -> None:
    store, reader = opened(server, 60)
    first, fresh = store.add_answer(answer(reader, 0), None, final=False)
    assert fresh and store.add_answer(answer(reader, 0), None, final=False) == (first, False)
    with pytest.raises(Conflict):
        store.add_answer(answer(reader, 0, "other-token"), None, final=False)
    second, _ = store.add_answer(answer(reader, 0, "third-token"), first.id, final=False)
    assert second.version == 1
    with pytest.raises((Problem, DBAPIError)):
        with store.writing() as connection:
            connection.execute(text("UPDATE answers SET score = 1"))
    conflicts = []

    def tab(name: str) -> None:
        for number in range(1, 60):
            try:
                store.add_answer(answer(reader, number, f"{name}-{number:06d}"), None, final=False)
            except Conflict:
                conflicts.append(number)

    tabs = [threading.Thread(target=tab, args=(name,)) for name in ("one", "two")]
    for thread in tabs:
        thread.start()
    for thread in tabs:
        thread.join()
    assert len(store.answers(reader.id)) == 61 and len(conflicts) == 59
    assert store.set_status("s", "locked", was=("open",))
    with pytest.raises(Problem, match="locked"):
        store.add_answer(answer(reader, 0, "late-token"), second.id, final=False)
    store.close()
    again = Store(server)
    assert again.reader(reader.id) == reader
    again.close()


def test_a_database_that_went_away_is_503_without_its_name(server) -> None:
    with pytest.raises(Problem) as caught:
        Store(server.replace("medray@", "nobody:secret@"))
    assert caught.value.status == 503 and "secret" not in str(caught.value)
