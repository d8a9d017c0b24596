"""A folder for databases that many threads write at once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def fast_folder() -> Iterator[Path]:
    """In memory, where there is such a place: a commit waits for no disk that others keep busy."""
    memory = "/dev/shm"
    place = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="medray-readers-", dir=place) as folder:
        yield Path(folder)
