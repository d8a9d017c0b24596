"""Curves for TensorBoard beside the run's own log, which stays the truth."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medray.store import Store


class Curves:
    """Scalars by images seen, as event files in the run folder.

    On a URL the event file grows in a temporary folder and is published whole at every checkpoint.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._writer: Any = None
        self._spare: tempfile.TemporaryDirectory[str] | None = None

    @contextlib.contextmanager
    def open(self, images: int) -> Iterator[None]:
        """A file while the context lasts; what earlier ones say past `images` is hidden."""
        from torch.utils.tensorboard.writer import SummaryWriter

        self._spare = None if self.store.is_local else tempfile.TemporaryDirectory()
        self._folder = Path(self._spare.name) if self._spare else self.store.path()
        purge = {"purge_step": images} if images else {}
        self._writer = SummaryWriter(str(self._folder), **purge)
        try:
            yield
            self.publish()
        finally:
            self._writer.close()
            if self._spare:
                self._spare.cleanup()

    def add(self, images: int, row: Mapping[str, float]) -> None:
        """Adds a row."""
        for name, value in row.items():
            self._writer.add_scalar(name, value, images)

    def publish(self) -> None:
        """Makes what was added so far readable by others."""
        self._writer.flush()
        if self._spare:
            for path in self._folder.iterdir():
                self.store.write_bytes(path.name, path.read_bytes())
