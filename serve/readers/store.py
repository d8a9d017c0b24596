"""What is kept of reader studies: SQLite (WAL, every commit on the disk) or Postgres by URL.

An answer is stored exactly once: (reader, item, the page's token) and (reader, item, version) are
unique, a correction is a new row with the next version.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from serve.problems import Problem
from serve.readers import schema
from serve.readers.database import open_engine, told

ANSWER_COLUMNS = (
    *("id", "reader", "item", "version", "token", "position", "score", "choice", "label"),
    *("seconds", "hidden", "idle", "received_s"),
)
# What an answer says; the rest is where and when it came.
SAID = ("score", "choice", "label", "seconds", "hidden", "idle")


@dataclass(frozen=True)
class Study:
    """A study; `status` open (answers are taken), locked, or closed (the truth is out)."""

    id: str
    name: str
    mode: str
    sha256: str
    status: str
    created_s: float


@dataclass(frozen=True)
class Reader:
    """A reader of one study, with the order of the items."""

    id: int
    study: str
    number: int
    name: str
    expires_s: float
    revoked: bool
    finished_s: float | None
    order: tuple[str, ...]


@dataclass(frozen=True)
class Session:
    """A logged-in reader; `csrf` is what a page must send along with every change."""

    reader: int
    csrf: str
    expires_s: float


@dataclass(frozen=True)
class Answer:
    """One row of the answers."""

    id: int
    reader: int
    item: str
    version: int
    token: str
    position: int
    score: int | None
    choice: str | None
    label: str | None
    seconds: float | None
    hidden: bool
    idle: bool
    received_s: float

    @property
    def said(self) -> tuple[Any, ...]:
        """What it says."""
        return tuple(getattr(self, name) for name in SAID)


Kept = tuple[Answer, bool]


class Conflict(Exception):
    """The item has another answer already: `newest`."""

    def __init__(self, newest: Answer) -> None:
        super().__init__("answered already")
        self.newest = newest


class Store:
    """The tables. Every method is one transaction; 503 where the database cannot serve it."""

    def __init__(self, url: str) -> None:
        self.engine = open_engine(url)
        self.dialect = self.engine.dialect.name
        with self.writing() as connection:
            schema.migrate(connection)

    def close(self) -> None:
        """Gives every connection back."""
        self.engine.dispose()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads: it works while others write, and on a full disk."""
        with told(), self.engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes; its end is on the disk when this returns."""
        with told(), self.engine.connect().execution_options(writes=True) as connection:
            with connection.begin():
                yield connection

    # --- studies ------------------------------------------------------------------------------

    def add_study(self, study: Study) -> Study:
        """The study as it is kept: one of the same id and content is given back as it is."""
        with self.writing() as connection:
            connection.execute(
                text(
                    "INSERT INTO studies VALUES (:id, :name, :mode, :sha256, :status, :created_s) "
                    "ON CONFLICT (id) DO NOTHING"
                ),
                {name: getattr(study, name) for name in Study.__dataclass_fields__},
            )
        kept = self.study(study.id)
        assert kept is not None, "it was written just now"
        return kept

    def study(self, study_id: str) -> Study | None:
        """A study by id."""
        found = [study for study in self.studies() if study.id == study_id]
        return found[0] if found else None

    def studies(self) -> list[Study]:
        """All studies, by id."""
        with self.reading() as connection:
            rows = connection.execute(text("SELECT * FROM studies ORDER BY id"))
            return [Study(**row) for row in map(dict, rows.mappings())]

    def set_status(self, study_id: str, status: str, *, was: Sequence[str]) -> bool:
        """Moves a study on; False where it is in none of the states `was`."""
        allowed = ", ".join(f"'{state}'" for state in was)
        with self.writing() as connection:
            done = connection.execute(
                text(f"UPDATE studies SET status = :s WHERE id = :id AND status IN ({allowed})"),
                {"s": status, "id": study_id},
            )
            return done.rowcount == 1

    # --- readers ------------------------------------------------------------------------------

    def add_reader(
        self,
        study_id: str,
        name: str,
        token_sha256: str,
        expires_s: float,
        order: Callable[[int], list[str]],
    ) -> Reader:
        """A new reader; `order(number)` gives the items' order. 409 for a name that is taken."""
        with self.writing() as connection:
            number = connection.execute(
                text("SELECT count(*) FROM readers WHERE study = :s"), {"s": study_id}
            ).scalar_one()
            try:
                connection.execute(
                    text(
                        "INSERT INTO readers (study, number, name, token_sha256, expires_s, "
                        "item_order) VALUES (:study, :number, :name, :token, :expires, :items)"
                    ),
                    {
                        "study": study_id,
                        "number": number,
                        "name": name,
                        "token": token_sha256,
                        "expires": expires_s,
                        "items": json.dumps(order(int(number))),
                    },
                )
            except IntegrityError:
                raise Problem(
                    409, "reader_exists", "the study has a reader of that name", "take another name"
                ) from None
        return next(reader for reader in self.readers(study_id) if reader.name == name)

    def readers(self, study_id: str) -> list[Reader]:
        """The readers of a study, in the order in which they were added."""
        return self._readers("study = :value", study_id)

    def reader(self, reader_id: int) -> Reader | None:
        """A reader by id."""
        return next(iter(self._readers("id = :value", reader_id)), None)

    def reader_of_token(self, token_sha256: str) -> Reader | None:
        """Whose link holds the token of this hash."""
        return next(iter(self._readers("token_sha256 = :value", token_sha256)), None)

    def _readers(self, where: str, value: object) -> list[Reader]:
        query = (
            "SELECT id, study, number, name, expires_s, revoked, finished_s, item_order "
            f"FROM readers WHERE {where} ORDER BY number"
        )
        with self.reading() as connection:
            rows = connection.execute(text(query), {"value": value}).all()
        return [
            Reader(
                id=row.id,
                study=row.study,
                number=row.number,
                name=row.name,
                expires_s=row.expires_s,
                revoked=bool(row.revoked),
                finished_s=row.finished_s,
                order=tuple(json.loads(row.item_order)),
            )
            for row in rows
        ]

    def revoke(self, reader_id: int) -> None:
        """Ends a reader's access and every session."""
        with self.writing() as connection:
            named = {"id": reader_id}
            connection.execute(text("UPDATE readers SET revoked = 1 WHERE id = :id"), named)
            connection.execute(text("DELETE FROM sessions WHERE reader = :id"), named)

    def finish(self, reader_id: int, now_s: float) -> None:
        """The reader is done: what is answered stays so."""
        with self.writing() as connection:
            connection.execute(
                text("UPDATE readers SET finished_s = :now WHERE id = :id AND finished_s IS NULL"),
                {"id": reader_id, "now": now_s},
            )

    # --- sessions and events ------------------------------------------------------------------

    def add_session(self, id_sha256: str, session: Session, now_s: float) -> None:
        """Keeps a session; those that have ended go."""
        with self.writing() as connection:
            connection.execute(text("DELETE FROM sessions WHERE expires_s <= :t"), {"t": now_s})
            connection.execute(
                text("INSERT INTO sessions VALUES (:id, :reader, :csrf, :expires)"),
                {
                    "id": id_sha256,
                    "reader": session.reader,
                    "csrf": session.csrf,
                    "expires": session.expires_s,
                },
            )

    def session(self, id_sha256: str, now_s: float) -> Session | None:
        """The session of this hash, unless it has ended."""
        query = "SELECT reader, csrf, expires_s FROM sessions WHERE id_sha256 = :id"
        with self.reading() as connection:
            row = connection.execute(text(query), {"id": id_sha256}).first()
        return Session(*row) if row is not None and row[2] > now_s else None

    def end_session(self, id_sha256: str) -> None:
        """Logs out."""
        with self.writing() as connection:
            connection.execute(text("DELETE FROM sessions WHERE id_sha256 = :i"), {"i": id_sha256})

    def add_event(self, reader_id: int, kind: str, now_s: float) -> None:
        """Something that a reader did at a time, such as a pause."""
        with self.writing() as connection:
            connection.execute(
                text("INSERT INTO events (reader, kind, at_s) VALUES (:r, :k, :t)"),
                {"r": reader_id, "k": kind, "t": now_s},
            )

    def last_event(self, reader_id: int, kind: str) -> float:
        """When the reader last paused or resumed; 0 for never."""
        query = "SELECT MAX(at_s) FROM events WHERE reader = :r AND kind = :k"
        with self.reading() as connection:
            found = connection.execute(text(query), {"r": reader_id, "k": kind}).scalar_one()
        return float(found or 0)

    # --- answers ------------------------------------------------------------------------------

    def add_answer(self, answer: Answer, corrects: int | None, *, final: bool) -> Kept:
        """Stores an answer once, and gives it as it is kept, and whether it is new.

        The same token again gives what was stored then. Conflict where the item has another answer,
        unless `corrects` is that one's id and answers are not `final`. 409 where the study is not
        open or the reader has finished.
        """
        try:
            with self.writing() as connection:
                return _add(connection, answer, corrects, final)
        except IntegrityError:
            # Another request of this reader was faster (Postgres; SQLite writes one by one).
            with self.writing() as connection:
                return _add(connection, answer, corrects, final)

    def answers(self, reader_id: int) -> list[Answer]:
        """Every answer of a reader, corrections too, in the order in which they came."""
        with self.reading() as connection:
            return _answers(connection, reader_id)

    def answered(self, reader_id: int, item: str) -> bool:
        """Whether the reader has answered the item."""
        query = "SELECT 1 FROM answers WHERE reader = :r AND item = :i LIMIT 1"
        with self.reading() as connection:
            row = connection.execute(text(query), {"r": reader_id, "i": item}).first()
        return row is not None

    def latest(self, reader_id: int, most: int) -> list[float]:
        """When the reader's newest answers came, the oldest of so many first."""
        query = "SELECT received_s FROM answers WHERE reader = :r ORDER BY id DESC LIMIT :most"
        with self.reading() as connection:
            rows = connection.execute(text(query), {"r": reader_id, "most": most}).all()
        return [float(row[0]) for row in reversed(rows)]


def _add(connection: Connection, answer: Answer, corrects: int | None, final: bool) -> Kept:
    stored = [a for a in _answers(connection, answer.reader, answer.item)]
    same = [a for a in stored if a.token == answer.token]
    if same:
        if same[0].said != answer.said:
            raise Problem(409, "token_reused", "the token came before with another answer")
        return same[0], False
    _open_or_problem(connection, answer.reader)
    newest = stored[-1] if stored else None
    if newest is not None and (final or corrects != newest.id):
        raise Conflict(newest)
    if newest is None and corrects is not None:
        raise Problem(409, "nothing_to_correct", "the item has no answer yet")
    new = replace(answer, version=0 if newest is None else newest.version + 1)
    names = ANSWER_COLUMNS[1:]
    values = {name: getattr(new, name) for name in names}
    values |= {"hidden": int(new.hidden), "idle": int(new.idle)}
    query = (
        f"INSERT INTO answers ({', '.join(names)}) VALUES ({', '.join(':' + n for n in names)}) "
        "RETURNING id"
    )
    return replace(new, id=int(connection.execute(text(query), values).scalar_one())), True


def _open_or_problem(connection: Connection, reader_id: int) -> None:
    """409 unless the reader's study takes answers and the reader has not finished."""
    query = (
        "SELECT s.status, r.finished_s FROM studies s JOIN readers r ON r.study = s.id "
        "WHERE r.id = :r"
    )
    # On Postgres a lock of the study waits for answers that are being stored.
    query += " FOR SHARE OF s" if connection.dialect.name == "postgresql" else ""
    status, finished_s = connection.execute(text(query), {"r": reader_id}).one()
    if status != "open":
        raise Problem(409, "study_closed", f"the study is {status}: it takes no more answers")
    if finished_s is not None:
        raise Problem(409, "reader_finished", "you have finished: answers stay as they are")


def _answers(connection: Connection, reader_id: int, item: str | None = None) -> list[Answer]:
    query = f"SELECT {', '.join(ANSWER_COLUMNS)} FROM answers WHERE reader = :reader"
    query += " AND item = :item ORDER BY version" if item is not None else " ORDER BY id"
    rows = connection.execute(text(query), {"reader": reader_id, "item": item}).all()
    return [
        Answer(**{**row._mapping, "hidden": bool(row.hidden), "idle": bool(row.idle)})
        for row in rows
    ]
