"""Fixtures shared by all tests: the real data sets, and one Ray for the session."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medray import log
from tests.chaos_budget import pytest_runtest_logreport, pytest_runtest_setup

__all__ = ["pytest_runtest_logreport", "pytest_runtest_setup"]

# Equal threads on every machine: results depend on them bit for bit.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# Ray starts its workers at niceness 15: on a busy machine they would hardly run, and time out.
os.environ.setdefault("RAY_worker_niceness", "0")

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start Ray come first: of files side by side the longest must not be last.

    Of chaos tests, which run one after another for a limited time, they come last.
    """

    def later(item: pytest.Item) -> bool:
        with_ray = item.get_closest_marker("ray") is not None
        return with_ray == (item.get_closest_marker("chaos") is not None)

    items.sort(key=later)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets beside the checkout; where absent, tests skip."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.exists():
        pytest.skip("the real data sets (../shared/data) are not here")
    return folder


@pytest.fixture(scope="session")
def unpacked(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Unpacks one of the data sets once and gives its folder."""
    done: dict[str, Path] = {}

    def unpack(name: str) -> Path:
        if name not in done:
            target = tmp_path_factory.mktemp(name)
            with tarfile.open(data_dir / f"{name}.tar") as tar:
                tar.extractall(target, filter="data")
            done[name] = target / name
        return done[name]

    return unpack


@pytest.fixture(autouse=True)
def usual_log() -> None:
    """What a job before said with --quiet or --json is no concern of the next test."""
    log.setup()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own; paths are relative to where the test runs."""
    monkeypatch.setenv("MEDRAY_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("MEDRAY_SUBMIT_DIR", raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """A Ray of two CPUs for the session, without a dashboard; its address."""
    import ray

    # One of its own, whatever other Ray is on this machine.
    context = ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        configure_logging=False,
        object_store_memory=200 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()
