"""What a reader may do: log in by a link, see the next image, answer, pause, finish.

Every object is looked up through its reader, in one place each, so another's are as absent.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from medray.errors import DataError
from medray.evaluate.reader_set import Item, Known, ReaderSet
from serve.problems import Problem, shown, too_many
from serve.readers.database import database_url
from serve.readers.store import Answer, Conflict, Reader, Session, Store, Study

STUDY_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
SESSION_S = 12 * 3600.0
# A sitting ends with this much rest. Readers see less after hours, so it ends after so many images.
REST_S, MOST_OF_SITTING = 600.0, 60
# Answers that are looked at for it: however often a reader corrects himself, it takes as long.
SITTING_SEEN = 10 * MOST_OF_SITTING
OFFER_BREAK_S, OFFER_BREAK_IMAGES = 1200.0, 40
# Failed logins of an address, and of all together, within so long.
LOGIN_S, LOGINS, ALL_LOGINS = 60.0, 10, 200


def hashed(secret: str) -> str:
    """What is kept of a token or a session's id: they have 256 random bits."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Throttle:
    """Counts failed logins by address, in this gate."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now, self._lock = now, threading.Lock()
        self._failed: deque[tuple[float, str]] = deque()

    def check(self, address: str) -> None:
        """429 where an address, or everybody together, failed too often lately."""
        with self._lock:
            now_s = self._now()
            # Also what is later than now: the clock was set back, which makes no wait longer.
            while self._failed and not now_s - LOGIN_S < self._failed[0][0] <= now_s:
                self._failed.popleft()
            own = sum(1 for _, other in self._failed if other == address)
            if own >= LOGINS or len(self._failed) >= ALL_LOGINS:
                raise too_many("login_throttled", "too many failed logins", LOGIN_S)

    def failed(self, address: str) -> None:
        """Counts one."""
        with self._lock:
            self._failed.append((self._now(), address))


@dataclass(frozen=True)
class Given:
    """An answer as a page sends it; `token` is the page's own, `corrects` the id of an answer."""

    item: str
    token: str
    score: int | None = None
    choice: str | None = None
    label: str | None = None
    seconds: float | None = None
    hidden: bool = False
    idle: bool = False
    corrects: int | None = None


class Desk:
    """Studies below `root`, kept in a database that is opened when it is first needed."""

    def __init__(
        self,
        root: str | None,
        database: str | None,
        state_dir: str,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.root, self.now = root, now
        self._url = database_url(database, state_dir)
        self._sets: dict[str, ReaderSet] = {}
        self._truths: dict[str, dict[str, Known]] = {}
        self._lock = threading.Lock()
        self.throttle = Throttle(now)

    @cached_property
    def _opened(self) -> Store:
        return Store(self._url)

    @property
    def store(self) -> Store:
        """The database."""
        with self._lock:
            return self._opened

    def close(self) -> None:
        """Closes the database where it was opened."""
        if "_opened" in self.__dict__:
            self._opened.close()

    # --- studies ------------------------------------------------------------------------------

    def study(self, study_id: str) -> Study:
        """A study; 404 for none."""
        found = self.store.study(study_id) if STUDY_ID.fullmatch(study_id) else None
        if found is None:
            raise Problem(404, "study_unknown", f"given: study {shown(study_id)}; there is no such")
        return found

    def open_set(self, study_id: str) -> ReaderSet:
        """The set below the root of that name; 404 for none, 422 for one that cannot be read."""
        if self.root is None:
            raise Problem(404, "studies_off", "no reader studies here", "start with studies=FOLDER")
        if not STUDY_ID.fullmatch(study_id):
            raise Problem(
                422,
                "study_name",
                f"given: {shown(study_id)}; allowed: the name of a folder below `studies`",
                "lower-case letters, digits, '.', '_', '-'",
            )
        try:
            return ReaderSet.open(f"{self.root.rstrip('/')}/{study_id}")
        except DataError as error:
            unknown = error.code == "MR-D020" and "no reader study" in error.message
            status, code = (404, "study_unknown") if unknown else (422, "study_damaged")
            raise Problem(status, code, f"{shown(study_id)}: {error.message}") from None

    def set_of(self, study: Study) -> ReaderSet:
        """The set of a study; 503 where it is no longer the one that was begun with."""
        found = self._sets.get(study.id)
        if found is None:
            found = self.open_set(study.id)
            if found.sha256 != study.sha256:
                raise Problem(503, "study_changed", "the images are not those of the study's start")
            self._sets[study.id] = found
        return found

    def truth_of(self, study: Study) -> dict[str, Known]:
        """The truth, for the server alone."""
        if study.id not in self._truths:
            try:
                self._truths[study.id] = self.set_of(study).truth()
            except DataError:
                raise Problem(503, "study_damaged", "the study's truth cannot be read") from None
        return self._truths[study.id]

    # --- who it is ----------------------------------------------------------------------------

    def login(self, token: str, address: str) -> tuple[str, Session, Reader]:
        """A session for the reader of a link: its secret id, itself, the reader. 401, 429."""
        self.throttle.check(address)
        reader = self.store.reader_of_token(hashed(token))
        if reader is None or reader.revoked or reader.expires_s <= self.now():
            self.throttle.failed(address)
            raise Problem(
                401, "link_unknown", "the link is not valid, or no longer", "ask for a new one"
            )
        secret = secrets.token_urlsafe(32)
        session = Session(reader.id, secrets.token_urlsafe(32), self.now() + SESSION_S)
        self.store.add_session(hashed(secret), session, self.now())
        self.store.add_event(reader.id, "login", self.now())
        return secret, session, reader

    def who(self, secret: str | None) -> tuple[Session, Reader]:
        """The session and reader of a cookie; 401 for none that is valid."""
        session = self.store.session(hashed(secret), self.now()) if secret else None
        reader = self.store.reader(session.reader) if session else None
        if session is None or reader is None or reader.revoked or reader.expires_s <= self.now():
            raise Problem(401, "not_logged_in", "you are not logged in", "open your link again")
        return session, reader

    def logout(self, secret: str) -> None:
        """Ends the session of a cookie."""
        self.store.end_session(hashed(secret))

    def own_study(self, reader: Reader, study_id: str) -> Study:
        """The reader's study, if that is the one; 404 for any other, there or not."""
        if reader.study != study_id:
            raise Problem(404, "study_unknown", f"given: study {shown(study_id)}; there is no such")
        return self.study(study_id)

    # --- reading ------------------------------------------------------------------------------

    def overview(self, reader: Reader) -> dict[str, Any]:
        """What a page needs to begin or go on."""
        study = self.study(reader.study)
        images = self.set_of(study)
        newest = self.newest(reader)
        return {
            "study": {
                "id": study.id,
                "name": study.name,
                "mode": study.mode,
                "status": study.status,
                "classes": list(images.classes),
                "size_px": images.size_px,
                "bits": images.bits,
            },
            "reader": {"name": reader.name, "finished": reader.finished_s is not None},
            "progress": {"answered": len(newest), "total": len(reader.order)},
            "sitting": self.sitting(reader),
            "not_ready": self.not_ready(reader, newest),
        }

    def newest(self, reader: Reader) -> dict[str, Answer]:
        """The reader's answers by item, corrections applied."""
        return {answer.item: answer for answer in self.store.answers(reader.id)}

    def items(self, reader: Reader) -> list[dict[str, Any]]:
        """The items in the reader's order, with what was answered so far."""
        images, newest = self.set_of(self.study(reader.study)), self.newest(reader)
        found = []
        for position, name in enumerate(reader.order):
            item = images.item(name)
            assert item is not None, "the order is made of the set's items"
            answer = newest.get(name)
            found.append(
                {
                    "item": name,
                    "position": position,
                    "images": len(item.images),
                    "answer": None if answer is None else public(answer),
                }
            )
        return found

    def image(self, reader: Reader, item_id: str, side: int) -> bytes:
        """The file of an item's image; 404 for another's; 429 where a rest is due."""
        item = self._item(reader, item_id)
        if not 0 <= side < len(item.images):
            raise Problem(404, "image_unknown", f"given: image {side} of {len(item.images)}")
        rest_s = self.sitting(reader)["rest_s"]
        if rest_s and not self.store.answered(reader.id, item_id):
            raise too_many("rest_due", f"{MOST_OF_SITTING} images in one sitting", rest_s, "rest")
        try:
            return self.set_of(self.study(reader.study)).image(item.images[side])
        except (DataError, OSError):
            raise Problem(503, "image_damaged", "the image cannot be read; the study's") from None

    def _item(self, reader: Reader, item_id: str) -> Item:
        item = self.set_of(self.study(reader.study)).item(item_id)
        if item is None or item_id not in reader.order:
            raise Problem(404, "item_unknown", f"given: item {shown(item_id)}; there is no such")
        return item

    def answer(self, reader: Reader, given: Given) -> tuple[Answer, bool, dict[str, Any] | None]:
        """Stores an answer once: (as kept, whether it is new, the truth where the mode gives it).

        409 `answered` with the answer that stands where another tab was faster.
        """
        study = self.study(reader.study)
        item = self._item(reader, given.item)
        self._check(study, given)
        new = Answer(
            id=0,
            reader=reader.id,
            item=item.id,
            version=0,
            token=given.token,
            position=reader.order.index(item.id),
            score=given.score,
            choice=given.choice,
            label=given.label,
            seconds=given.seconds,
            hidden=given.hidden,
            idle=given.idle,
            received_s=self.now(),
        )
        feedback = study.mode == "feedback"
        try:
            kept, fresh = self.store.add_answer(new, given.corrects, final=feedback)
        except Conflict as conflict:
            raise Problem(
                409,
                "answered",
                f"the item has answer {conflict.newest.id} already",
                "give its id as `corrects` to correct it" if not feedback else None,
            ) from None
        return kept, fresh, self._told(study, item) if feedback else None

    def _told(self, study: Study, item: Item) -> dict[str, Any]:
        """The truth of one item, for training, after it is answered."""
        known = self.truth_of(study)[item.id]
        return {"synthetic": bool(known.answer), "label": known.label}

    def _check(self, study: Study, given: Given) -> None:
        paired = study.mode == "2afc"
        wanted, other = ("choice", "score") if paired else ("score", "choice")
        if getattr(given, wanted) is None or getattr(given, other) is not None:
            raise Problem(422, "invalid", f"an answer of this study has a {wanted}, no {other}")
        classes = self.set_of(study).classes
        if (given.label is None) == bool(classes) or (classes and given.label not in classes):
            allowed = ", ".join(classes) or "none"
            raise Problem(
                422, "invalid", f"given: label {shown(given.label)}; allowed: {shown(allowed, 400)}"
            )

    def sitting(self, reader: Reader) -> dict[str, Any]:
        """How long the reader has been at it, and how long a rest is due."""
        now_s = self.now()
        # Where the clock was set back, what is later than now is no reason to rest.
        times = [t for t in self.store.latest(reader.id, SITTING_SEEN) if t <= now_s]
        resumed_s = self.store.last_event(reader.id, "resume")
        count, before = 0, now_s
        for at_s in reversed(times):
            if before - at_s > REST_S:
                break
            count, before = count + 1, at_s
        since = [t for t in times[len(times) - count :] if t > resumed_s]
        rest_s = max(0.0, times[-1] + REST_S - now_s) if count >= MOST_OF_SITTING else 0.0
        offered = len(since) >= OFFER_BREAK_IMAGES or (
            bool(since) and now_s - since[0] >= OFFER_BREAK_S
        )
        return {
            "images": count,
            "most": MOST_OF_SITTING,
            "rest_s": rest_s,
            "offer_break": offered,
        }

    def not_ready(self, reader: Reader, newest: dict[str, Answer]) -> list[str]:
        """Why the reader cannot finish yet; nothing where he can."""
        left = len(reader.order) - len(newest)
        return [f"{left} of {len(reader.order)} cases have no answer yet"] if left else []

    def finish(self, reader: Reader) -> None:
        """Ends the reading; 409 with the reasons where it is not complete."""
        reasons = self.not_ready(reader, self.newest(reader))
        if reasons:
            raise Problem(409, "not_ready", "; ".join(reasons))
        self.store.finish(reader.id, self.now())


def public(answer: Answer) -> dict[str, Any]:
    """An answer as its reader sees it."""
    names = ("id", "item", "version", "score", "choice", "label", "seconds")
    return {name: getattr(answer, name) for name in names} | {"saved_s": answer.received_s}
