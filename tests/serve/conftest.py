"""One set of small models, and one service of them, for all tests of a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serve.small_service import Places, Service, make_models, running


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """Models on disk."""
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def service(small_models: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running service; nothing of it changes from test to test."""
    with running(small_models, tmp_path_factory.mktemp("service")) as found:
        yield found
