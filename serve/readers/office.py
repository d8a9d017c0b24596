"""What the administrator of studies may do: begin one, invite, watch, lock, close, take the report.

Nobody sees what was answered before the lock, nor the truth before the close.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

from medray.evaluate import reader_report
from serve.problems import Problem
from serve.readers.desk import Desk, hashed
from serve.readers.store import Reader, Study

DAY_S = 86_400.0


class Office:
    """The administrator's side of the desk."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def begin(self, study_id: str) -> dict[str, Any]:
        """Begins the study of a set below the root; again, it is what it was."""
        images = self.desk.open_set(study_id)
        new = Study(study_id, images.name, images.mode, images.sha256, "open", self.desk.now())
        kept = self.desk.store.add_study(new)
        if kept.sha256 != images.sha256:
            raise Problem(409, "study_exists", "a study of that name began with other images")
        return self.progress(kept)

    def studies(self) -> list[dict[str, Any]]:
        """Every study with its progress."""
        return [self.progress(study) for study in self.desk.store.studies()]

    def progress(self, study: Study) -> dict[str, Any]:
        """How far the readers are; nothing of what they answered."""
        readers: list[dict[str, Any]] = []
        for reader in self.desk.store.readers(study.id):
            answers = self.desk.store.answers(reader.id)
            readers.append(
                {
                    "id": reader.id,
                    "name": reader.name,
                    "answered": len({answer.item for answer in answers}),
                    "total": len(reader.order),
                    "finished": reader.finished_s is not None,
                    "revoked": reader.revoked,
                    "last_s": answers[-1].received_s if answers else None,
                }
            )
        return {
            "id": study.id,
            "name": study.name,
            "mode": study.mode,
            "status": study.status,
            "readers": readers,
            "not_ready": [
                f"{r['name']}: {r['total'] - r['answered']} cases without an answer"
                if r["answered"] < r["total"]
                else f"{r['name']} has not pressed Finish"
                for r in readers
                if not r["finished"] and not r["revoked"]
            ],
        }

    def invite(self, study: Study, name: str, days: float) -> tuple[str, Reader]:
        """A new reader and the token of the link, which is shown once."""
        if study.status != "open":
            raise Problem(409, "study_closed", f"the study is {study.status}")
        images, truth = self.desk.set_of(study), self.desk.truth_of(study)
        repeats = {item: of.repeats for item, of in truth.items() if of.repeats is not None}
        token = secrets.token_urlsafe(32)
        reader = self.desk.store.add_reader(
            study.id,
            name,
            hashed(token),
            self.desk.now() + days * DAY_S,
            lambda number: images.order(number, repeats),
        )
        return token, reader

    def revoke(self, study: Study, reader_id: int) -> None:
        """Ends a reader's access; what was answered stays. 404 for another study's."""
        if reader_id not in [reader.id for reader in self.desk.store.readers(study.id)]:
            raise Problem(404, "reader_unknown", "the study has no such reader")
        self.desk.store.revoke(reader_id)

    def move(self, study: Study, action: str) -> dict[str, Any]:
        """lock, unlock or close; 409 from a state in which that cannot be."""
        status, was = {
            "lock": ("locked", ("open",)),
            "unlock": ("open", ("locked",)),
            "close": ("closed", ("locked",)),
        }[action]
        if study.status != status and not self.desk.store.set_status(study.id, status, was=was):
            raise Problem(
                409, "study_state", f"given: {action} while {study.status}; allowed: {was[0]}"
            )
        return self.progress(self.desk.study(study.id))

    def answers(self, study: Study) -> list[dict[str, Any]]:
        """All answers, corrections too, as `jobs/reader_study.py --report` reads them."""
        if study.status == "open":
            raise Problem(409, "study_open", "answers are shown after the lock", "lock it first")
        found = []
        for reader in self.desk.store.readers(study.id):
            for answer in self.desk.store.answers(reader.id):
                names = ("item", "position", "version", "score", "choice", "label", "seconds")
                row = {"reader": reader.name} | {name: getattr(answer, name) for name in names}
                row |= {"hidden": answer.hidden, "idle": answer.idle}
                found.append(row | {"received_s": answer.received_s})
        return found

    def report(self, study: Study, file: str) -> bytes:
        """A file of the report; 409 before the close."""
        if study.status != "closed":
            raise Problem(409, "study_open", "the report is made after the close", "close it first")
        images, truth = self.desk.set_of(study), self.desk.truth_of(study)
        answers = self.answers(study)
        if not answers:
            raise Problem(409, "no_answers", "nobody has answered: there is nothing to report")
        return reader_report.files(images, truth, answers, only=file)[file]


def lines(rows: list[dict[str, Any]]) -> bytes:
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
