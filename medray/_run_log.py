"""`train.log` in a run folder: the lines of the driver and of the one worker that writes.

On a folder a line is one append, which a file system does whole; on an object store the lines are
gathered and added when `publish` is called. Who has lost the lease writes none.
"""

from __future__ import annotations

import contextlib
import os

from medray import log
from medray.errors import MedrayError, ResourceError
from medray.lease import Lease
from medray.store import Store

NAME = "train.log"


class RunLog:
    """Writes every line of this process to the run folder's log from `start` to `close`."""

    def __init__(self, store: Store, lease: Lease) -> None:
        self._store, self._lease = store, lease
        self._context = contextlib.ExitStack()
        self._handle = -1
        self._lines: list[bytes] = []

    def start(self) -> None:
        """Begins; ResourceError where the file cannot be opened."""
        if self._store.is_local:
            path = self._store.path(NAME)
            try:
                self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            except OSError as error:
                raise ResourceError(f"cannot write {path}: {error.strerror}") from error
            self._context.callback(os.close, self._handle)
        self._context.enter_context(log.also_to(self._add))

    def _add(self, line: bytes) -> None:
        if not self._store.is_local:
            self._lines.append(line)
            return
        # A worker that was thought dead, or a driver whose run goes on elsewhere, adds nothing.
        with contextlib.suppress(MedrayError):
            self._lease.check()
            os.write(self._handle, line)

    def publish(self) -> None:
        """Adds the gathered lines to the object; on a folder they are there already."""
        lines, self._lines = self._lines, []
        if not lines:
            return
        self._lease.check()
        before = self._store.read_bytes(NAME) if self._store.exists(NAME) else b""
        self._store.write_bytes(NAME, before + b"".join(lines))

    def close(self) -> None:
        """Ends it; what cannot be written any more is told, not raised."""
        try:
            self.publish()
        except MedrayError as error:
            log.warn("train_log", f"{NAME} could not be written: {error}")
        finally:
            self._context.close()
