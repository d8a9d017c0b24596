"""The engine behind the store: SQLite in WAL with every commit on the disk, or Postgres."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from medray.errors import UsageError
from medray.store import make_folder
from serve.problems import busy
from serve.readers import schema

DATABASE_URL = "MEDRAY_DATABASE_URL"
BUSY_TIMEOUT_MS = 10_000
BUSY_PAUSE_S = 0.01


def database_url(given: str | None, state_dir: str) -> str:
    """The database of a service: as given, as the environment says, or a file of its state."""
    url = given or os.environ.get(DATABASE_URL)
    return url or f"sqlite:///{Path(state_dir).absolute()}/readers.sqlite"


def open_engine(url: str) -> Engine:
    """The engine of a URL, nothing read yet; UsageError for another kind of database."""
    if url.startswith("sqlite:///"):
        make_folder(Path(url.removeprefix("sqlite:///")).parent)
    try:
        engine = create_engine(url, pool_size=8, max_overflow=32, pool_pre_ping="sqlite" not in url)
    except (SQLAlchemyError, ImportError) as error:
        # The URL is not repeated: it may hold a password.
        raise UsageError(
            f"the database of the reader studies cannot be opened: {type(error).__name__}",
            hint=f"${DATABASE_URL}: sqlite:////FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME",
        ) from None
    if engine.dialect.name not in schema.KEYS:
        raise UsageError(
            f"reader studies are kept in SQLite or Postgres, not in {engine.dialect.name}"
        )
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, record: ConnectionPoolEntry) -> None:
    # The driver's own transactions begin too late for changes of tables: they are begun below.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}").close()
    _use_wal(connection)
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _use_wal(connection: Any) -> None:
    """Where two connections switch a fresh file at once, SQLite refuses one without any wait."""
    until_s = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until_s:
                raise
        time.sleep(BUSY_PAUSE_S)


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextlib.contextmanager
def told() -> Iterator[None]:
    """What the database cannot do now is 503, without a word of its own."""
    try:
        yield
    except IntegrityError:
        raise
    except OperationalError as error:
        if _is_full(error):
            raise busy(
                "storage_full",
                "nothing was stored: the disk of the database is full",
                60.0,
                "answers wait in the page until there is room",
            ) from None
        raise busy("storage_unavailable", "the database does not answer", 5.0) from None
    except SQLAlchemyError:
        raise busy("storage_unavailable", "the database does not answer", 5.0) from None


def _is_full(error: OperationalError) -> bool:
    name = str(getattr(error.orig, "sqlite_errorname", ""))
    return name in ("SQLITE_FULL", "SQLITE_IOERR_WRITE") or (
        getattr(error.orig, "sqlstate", "") == "53100"
    )
