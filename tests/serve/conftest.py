"""One set of small models, and one service of them, for all tests of a session."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from medray import store
from tests.serve.small_service import Places, Service, make_models, running

FullDisk = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    """`with full_disk(after=n)`: n files can still be written, no more."""

    @contextlib.contextmanager
    def full(after: int = 0) -> Iterator[None]:
        left, opened = after, store.open_part

        def open_part(part: Path) -> Any:
            nonlocal left
            if left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))
            left -= 1
            return opened(part)

        with monkeypatch.context() as patch:
            patch.setattr(store, "open_part", open_part)
            yield

    return full


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """Models on disk."""
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def service(small_models: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running service; nothing of it changes from test to test."""
    with running(small_models, tmp_path_factory.mktemp("service")) as found:
        yield found
