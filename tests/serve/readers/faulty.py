"""What `preload.Forks` runs in children whose disk fails: answers to a store, and its migration."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import event

from serve.readers import schema
from serve.readers.database import open_engine
from tests.serve.readers.writer import answer, opened

NEXT = (*schema.STEPS, ("ALTER TABLE answers ADD COLUMN note TEXT", "CREATE TABLE notes (x TEXT)"))


def url(folder: Path) -> str:
    """The database in a folder."""
    return f"sqlite:///{folder}/readers.sqlite"


def write(folder: Path, count: int, said: str, synchronous: str = "FULL") -> None:
    """Answers `count` cases; the number of what was acknowledged goes to the file `said`."""
    store, reader = opened(url(folder), count)
    event.listen(
        store.engine,
        "checkout",
        lambda c, *_: c.execute(f"PRAGMA synchronous={synchronous}").close(),
    )
    with open(said, "a", buffering=1) as file:
        for number in range(len(store.answers(reader.id)), count):
            store.add_answer(answer(reader, number), None, final=False)
            file.write(f"{number}\n")


def migrate(folder: Path) -> None:
    """Brings the database to a version after this one."""
    engine = open_engine(url(folder))
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        schema.migrate(connection, NEXT)
    engine.dispose()
