"""The tables of the reader studies, and how an older database becomes this version's.

A step of the migration is whole or not at all: both databases take changes of tables back with the
transaction. Answers and events are only ever added; triggers refuse anything else.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from medray.errors import DataError

# What numbers rows, by dialect.
KEYS = {
    "sqlite": "INTEGER PRIMARY KEY AUTOINCREMENT",
    "postgresql": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
}
# Anything agreed on: who holds it migrates, the others wait.
_ADVISORY_LOCK = 0x6D656472

FIRST = (
    """CREATE TABLE studies (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, mode TEXT NOT NULL, sha256 TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('open', 'locked', 'closed')),
        created_s DOUBLE PRECISION NOT NULL)""",
    """CREATE TABLE readers (
        id {key}, study TEXT NOT NULL REFERENCES studies (id), number INTEGER NOT NULL,
        name TEXT NOT NULL, token_sha256 TEXT NOT NULL UNIQUE, expires_s DOUBLE PRECISION NOT NULL,
        revoked INTEGER NOT NULL DEFAULT 0, finished_s DOUBLE PRECISION, item_order TEXT NOT NULL,
        UNIQUE (study, number), UNIQUE (study, name))""",
    """CREATE TABLE sessions (
        id_sha256 TEXT PRIMARY KEY, reader BIGINT NOT NULL REFERENCES readers (id),
        csrf TEXT NOT NULL, expires_s DOUBLE PRECISION NOT NULL)""",
    """CREATE TABLE answers (
        id {key}, reader BIGINT NOT NULL REFERENCES readers (id), item TEXT NOT NULL,
        version INTEGER NOT NULL, token TEXT NOT NULL, position INTEGER NOT NULL, score INTEGER,
        choice TEXT, label TEXT, seconds DOUBLE PRECISION, hidden INTEGER NOT NULL,
        idle INTEGER NOT NULL, received_s DOUBLE PRECISION NOT NULL,
        UNIQUE (reader, item, version), UNIQUE (reader, item, token))""",
    """CREATE TABLE events (
        id {key}, reader BIGINT NOT NULL REFERENCES readers (id), kind TEXT NOT NULL,
        at_s DOUBLE PRECISION NOT NULL)""",
)
# Each step makes the next version of the one before; the tables above are version 1.
STEPS: tuple[Sequence[str], ...] = (FIRST,)


def version(connection: Connection) -> int:
    """The version of a database's tables, 0 for an empty one."""
    found = connection.execute(text("SELECT max(version) FROM schema_version")).scalar()
    return int(found or 0)


def migrate(connection: Connection, steps: Sequence[Sequence[str]] = STEPS) -> int:
    """Brings the tables to this version within the caller's transaction; which they had before.

    DataError for tables of a newer version than is known here.
    """
    dialect = connection.dialect.name
    if dialect == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _ADVISORY_LOCK})
    connection.execute(
        text("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY)")
    )
    before = version(connection)
    if before > len(steps):
        raise DataError(
            f"the database of the reader studies has version {before}, {len(steps)} is known here",
            hint="update medray, or take another database",
        )
    for number in range(before, len(steps)):
        for statement in steps[number]:
            connection.exec_driver_sql(statement.replace("{key}", KEYS[dialect]))
        if number == 0:
            for statement in _append_only(dialect):
                connection.exec_driver_sql(statement)
        connection.execute(
            text("INSERT INTO schema_version (version) VALUES (:n)"), {"n": number + 1}
        )
    return before


def _append_only(dialect: str) -> list[str]:
    if dialect == "sqlite":
        return [
            f"CREATE TRIGGER {table}_no_{what} BEFORE {what} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} are only ever added'); END"
            for table in ("answers", "events")
            for what in ("UPDATE", "DELETE")
        ]
    return [
        "CREATE FUNCTION only_added() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'rows are only ever added'; END $$",
        *(
            f"CREATE TRIGGER {table}_only_added BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION only_added()"
            for table in ("answers", "events")
        ),
    ]
