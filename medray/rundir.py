"""A run's folder: configuration, curves, pictures, versions, state, checkpoints, and who may write.

`config.yaml command.txt env.json status.json metrics.jsonl summary.json train.log DONE
checkpoints/`; on an object store each is a whole object, rewritten when it grows.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from medray import _run_entry, _run_info, log
from medray._run_entry import CONFIG, numbered, stored_config
from medray._run_log import RunLog
from medray.config import OPERATIONAL
from medray.errors import DataError, MedrayError, ResourceError, Stopped, of_machine
from medray.lease import WAIT_S, Lease, LeaseLost, acquire, join
from medray.store import Store, fsync_folder

__all__ = ["RunDir", "numbered", "stored_config"]

COMMAND, ENV, STATUS = "command.txt", "env.json", "status.json"
METRICS, SUMMARY, DONE = "metrics.jsonl", "summary.json", "DONE"
STATUS_SCHEMA = "medray.status/1"
STATES = ("running", "complete", "stopped", "failed", "interrupted")


class RunDir:
    """An open run folder. `start` is for the driver, `attach` for its workers."""

    def __init__(
        self, store: Store, lease: Lease, *, config_hash: str = "", resume: str = ""
    ) -> None:
        self.store, self.lease = store, lease
        self.config_hash, self._resume_command = config_hash, resume
        self._is_driver = bool(config_hash)
        self._metrics: bytes | None = None
        self._log = RunLog(store, lease)
        self._is_writer = False

    @classmethod
    def start(
        cls,
        url: str,
        *,
        config_yaml: str,
        config_hash: str,
        command: str | Sequence[str],
        resume: bool = False,
        overwrite: bool = False,
        changeable: frozenset[str] = frozenset(),
        wait_s: float = WAIT_S,
    ) -> RunDir:
        """Opens a run folder to train in it, as its only driver.

        UsageError: not empty and neither `resume` nor `overwrite`; resumed with another value of a
        field outside `changeable`. ResourceError: another holder is alive after `wait_s`.
        """
        store = Store(url)
        given = _run_info.parsed(config_yaml.encode(), "the configuration")
        may_change = changeable | OPERATIONAL
        _run_entry.check_entry(store, given, resume, overwrite, may_change)
        lease = acquire(store, wait_s=wait_s)
        try:
            # Another start may have been here while this one waited.
            _run_entry.check_entry(store, given, resume, overwrite, may_change)
            words = shlex.split(command) if isinstance(command, str) else list(command)
            run = cls(store, lease, config_hash=config_hash, resume=_run_info.resume_command(words))
            if not (resume and run.complete):
                run._open(given, words, overwrite, may_change)
        except BaseException:
            lease.release()
            raise
        return run

    @classmethod
    def attach(cls, url: str, lease_epoch: int, *, writer: bool = False) -> RunDir:
        """Opens the run folder of a driver as its worker; LeaseLost where that start is over.

        `writer` is for the one rank that publishes: it fences an earlier one that hangs. Used as a
        context, its lines go to the run's log, too.
        """
        store = Store(url)
        run = cls(store, join(store, lease_epoch, writer=writer))
        run._is_writer = writer
        return run

    @property
    def complete(self) -> bool:
        """Whether the run has ended."""
        return self.store.exists(DONE)

    def _open(
        self, given: dict[str, Any], words: list[str], overwrite: bool, may_change: frozenset[str]
    ) -> None:
        if overwrite:
            _run_entry.clear(self.store)
        _run_entry.remove_parts(self.store)
        before = _run_entry.stored_config(self.store)
        config = given if before is None else _run_info.merged(before, given, may_change)
        if config != before:
            text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
            self.store.write_bytes(CONFIG, text.encode())
        earlier = _read(self.store, COMMAND).decode()
        self.store.write_bytes(COMMAND, f"{earlier}{shlex.join(words)}\n".encode())
        self._write_environment()
        self._log.start()
        self.status("running")
        # On an object store the writing worker adds its lines to those that are there.
        self._log.publish()

    def _write_environment(self) -> None:
        found, before = _run_info.environment(), self._environment()
        changed = _run_info.changes(before, found) if before else []
        if changed:
            log.warn(
                "environment_changed",
                "resumed in another environment, results may differ in the last bits: "
                + "; ".join(changed),
            )
        self.write_json(ENV, found)

    def _environment(self) -> dict[str, Any]:
        data = _read(self.store, ENV) or b"{}"
        return _run_info.parsed_json(data, f"{self.store.url}/{ENV}")

    def config(self) -> dict[str, Any]:
        """The stored configuration."""
        return _run_info.parsed(_read(self.store, CONFIG), f"{self.store.url}/{CONFIG}")

    # --- what grows ---------------------------------------------------------------------------

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Adds a row, which must have `images`; it is durable when this returns.

        What belongs to a checkpoint's images must be added before the checkpoint is saved.
        """
        if "images" not in row:
            raise ValueError(f"a row of metrics must have 'images', got {sorted(row)}")
        line = (json.dumps(row) + "\n").encode()
        self.lease.check()
        if self.store.is_local:
            _append(self.store.path(METRICS), line)
            return
        if self._metrics is None:
            self._metrics = _read(self.store, METRICS)
        self._metrics += line
        self.store.write_bytes(METRICS, self._metrics)
        self._log.publish()

    def cut_metrics(self, images: int) -> None:
        """Drops the rows past `images` and a torn last line, as if they had never been written."""
        self.lease.check()
        before = _read(self.store, METRICS)
        whole = [line for line in before.splitlines(keepends=True) if line.endswith(b"\n")]
        kept = b"".join(line for line in whole if self._images_of(line) <= images)
        if kept != before:
            self.store.write_bytes(METRICS, kept)
        self._metrics = None

    def _images_of(self, line: bytes) -> float:
        row = _run_info.parsed_json(line, f"{self.store.url}/{METRICS}")
        if not isinstance(row.get("images"), int | float):
            raise DataError(
                f"a row must have its number of images, got {sorted(row)}",
                code="MR-D046",
                where=f"{self.store.url}/{METRICS}",
                hint="remove the rows that are not whole",
            )
        return float(row["images"])

    def metrics(self) -> list[dict[str, Any]]:
        """All rows."""
        return [json.loads(line) for line in _read(self.store, METRICS).splitlines()]

    # --- what is written whole ----------------------------------------------------------------

    def write_picture(self, name: str, png_bytes: bytes) -> None:
        """Writes a picture (or replaces it)."""
        self._write(name, png_bytes)

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file (or replaces it)."""
        self._write(name, text.encode())

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Writes a JSON file (or replaces it)."""
        self._write(name, (json.dumps(content, indent=1) + "\n").encode())

    def _write(self, name: str, data: bytes) -> None:
        parts = name.split("/")
        if not name or name.startswith("/") or {"", ".", ".."} & set(parts):
            raise ValueError(f"a name in the run folder must be relative, got {name!r}")
        self.lease.check()
        self.store.write_bytes(name, data)

    def status(self, state: str, **fields: Any) -> None:
        """Writes status.json; `fields`: exit_code, reason, hint and what else is worth saying."""
        if state not in STATES:
            raise ValueError(f"state must be one of {', '.join(STATES)}, got {state!r}")
        body = {
            "schema": STATUS_SCHEMA,
            "state": state,
            "exit_code": 0 if state == "complete" else None,
            "reason": "",
            "hint": "",
            "resume_command": "" if state == "complete" else self._resume_command,
            "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "config_sha256": self.config_hash,
            "epoch": self.lease.epoch,
            **fields,
        }
        self.write_json(STATUS, body)

    def summary(self, figures: dict[str, Any]) -> None:
        """Writes summary.json: the figures of the run with versions and hardware."""
        self.write_json(SUMMARY, {**figures, "environment": self._environment()})

    def finish(self, figures: dict[str, Any] | None = None) -> None:
        """Marks the run as complete; nothing is written into it any more."""
        if figures is not None:
            self.summary(figures)
        self.status("complete")
        self._write(DONE, b"")

    # --- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends the log and lets the folder go."""
        try:
            self._log.close()
        finally:
            self.lease.release()

    def __enter__(self) -> RunDir:
        if self._is_writer:
            self._log.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and self._is_driver:
            self._write_end(error)
        self.close()

    def _write_end(self, error: BaseException) -> None:
        try:
            self.status(**_ending(error))
        except (LeaseLost, ResourceError) as second:
            # The first error is the one to see; the second often has the same cause (a full disk).
            log.warn("status", f"{STATUS} could not be written: {second}")


def _ending(error: BaseException) -> dict[str, Any]:
    """State, exit code, reason and hint for a run that an exception ended."""
    error = of_machine(error) or error
    if isinstance(error, MedrayError):
        state = "stopped" if isinstance(error, Stopped) else "failed"
        code, text, hint = error.exit_code, error.message, error.hint
    elif isinstance(error, KeyboardInterrupt):
        state, code, text, hint = "interrupted", 130, "interrupted", ""
    elif isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
        state, text, hint = "interrupted", f"ended with exit code {code}", ""
    else:
        state, code, text, hint = "failed", 1, f"{type(error).__name__}: {error}", ""
    return {"state": state, "exit_code": code, "reason": text, "hint": hint}


def _read(store: Store, name: str) -> bytes:
    """The content of `name`, empty where it is absent."""
    try:
        return store.read_bytes(name)
    except FileNotFoundError:
        return b""


def _append(path: Path, line: bytes) -> None:
    is_new = not path.exists()
    try:
        with path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            fsync_folder(path.parent)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from error
