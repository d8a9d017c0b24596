"""Clocks that are wrong: no byte depends on the time of day, and no holder is judged by it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from medray import _parts
from medray import lease as module
from medray.errors import ResourceError
from medray.lease import acquire
from medray.store import Store
from tests import outcomes
from tests.faults import clock, kill, publisher
from tests.faults.clock import HOUR_S
from tests.faults.kill import tree_sha256
from tests.pack import small_pack
from tests.test_rundir_faults import results

ROOT = Path(__file__).resolve().parent.parent
# An hour ahead, an hour behind, and set back and forth between the two.
WRONG = [(HOUR_S, 0), (-HOUR_S, 0), (HOUR_S, 5)]
each_clock = pytest.mark.parametrize("offset_s, turn", WRONG)


def run(command: list[str], offset_s: int = 0, turn: int = 0) -> str:
    """Runs a Python command with such a clock; what it prints."""
    wrong = clock.environment(offset_s, turn=turn) if offset_s else {}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **wrong},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def told(part: str, lost: int = 0, unit: str = "files", recovered_s: float | None = None) -> None:
    more = {"lost": lost, "unit": unit, "recovered_s": recovered_s, "wrong": 0}
    outcomes.record(part=part, fault="clock an hour off", trials=1, **more)


def test_the_clock_of_a_command_is_off_or_goes_back_and_forth() -> None:
    ask = ["-c", "import time; print(*(time.time() for _ in range(12)))"]
    for offset_s, turn in WRONG:
        off = [float(word) - time.time() for word in run(ask, offset_s, turn).split()]
        assert all(abs(abs(error) - HOUR_S) < 60 for error in off)
        assert len({error > 0 for error in off}) == (2 if turn else 1)
    counts = "import time; print(time.monotonic())"
    assert abs(float(run(["-c", counts], HOUR_S)) - time.monotonic()) < 60


# --- no byte ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("clean")
    publisher.train(folder)
    return results(folder)


@each_clock
def test_a_run_under_a_wrong_clock_leaves_the_same_bytes(
    clean: dict[str, str], tmp_path: Path, offset_s: int, turn: int
) -> None:
    run(["-m", "tests.faults.publisher", str(tmp_path)], offset_s, turn)
    assert results(tmp_path) == clean
    told("train")


PACK = """
import sys, time
from pathlib import Path
from tests.pack import small_pack
sys.exit(small_pack.make(Path(sys.argv[1]), sys.argv[2]))
"""


def test_a_pack_under_a_wrong_clock_leaves_the_same_bytes(tmp_path: Path) -> None:
    source = str(small_pack.make_source(tmp_path / "source"))
    for offset_s, turn in ((0, 0), WRONG[-1]):
        run(["-c", PACK, str(tmp_path / f"{offset_s}"), source], offset_s, turn)
    right, wrong = (tree_sha256(tmp_path / f"{offset_s}") for offset_s in (0, HOUR_S))
    assert "set/index.json" in right and wrong == right
    told("pack")


ARCHIVE = """
import sys
from pathlib import Path
from tests.archive import small_archive
sys.exit(small_archive.make(Path(sys.argv[1]), sys.argv[2]))
"""


@pytest.mark.chaos
def test_an_archive_under_a_wrong_clock_leaves_the_same_bytes(tmp_path: Path) -> None:
    from tests.archive.made_parts import is_result, make_parts

    parts = str(make_parts(tmp_path / "parts"))
    for offset_s, turn in ((0, 0), *WRONG):
        folder = tmp_path / f"{offset_s}-{turn}"
        run(["-c", ARCHIVE, str(folder), parts], offset_s, turn)
        found = tree_sha256(folder / "archive", is_result)
        assert found == tree_sha256(tmp_path / "0-0" / "archive", is_result)
    told("archive")


SWEEP = """
import sys
from pathlib import Path
from tests.jobs import sweep_runs
sys.exit(sweep_runs.make(Path(sys.argv[1]), sys.argv[2]))
"""


@pytest.mark.chaos
def test_a_sweep_under_a_wrong_clock_leaves_the_same_bytes(tmp_path: Path) -> None:
    from tests.jobs import sweep_runs

    sweep_runs.features(tmp_path / "sets" / "real", (12, 6, 6))
    for offset_s, turn in ((0, 0), WRONG[-1]):
        run(["-c", SWEEP, str(tmp_path / f"{offset_s}"), str(tmp_path / "sets")], offset_s, turn)
    assert tree_sha256(tmp_path / "0") == tree_sha256(tmp_path / f"{HOUR_S}")
    told("sweep")


# --- no holder ----------------------------------------------------------------------------------

HOLDER = """
import sys, time
from medray import lease as module
from medray.store import Store
module.BEAT_S, module.SETTLE_S = 0.1, 0.05
lease = module.acquire(Store(sys.argv[1]))
print(time.time(), flush=True)
time.sleep(60)
"""


@contextmanager
def holder(url: str, offset_s: int) -> Iterator[subprocess.Popen[bytes]]:
    """Another machine, as it were, that holds the place and whose clock is wrong."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, url],
        cwd=ROOT,
        env={**os.environ, **clock.environment(offset_s)},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        off_s = float(process.stdout.readline()) - time.time()
        assert abs(off_s - offset_s) < 60, "by its time of day it would be dead, or not born yet"
        yield process
    finally:
        kill.kill_group(process)
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize("offset_s", [HOUR_S, -HOUR_S])
@pytest.mark.parametrize("kind", ["store", pytest.param("folder", marks=pytest.mark.chaos)])
def test_a_holder_whose_clock_is_an_hour_off_keeps_others_out_until_it_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset_s: int, kind: str
) -> None:
    monkeypatch.setattr(module, "SETTLE_S", 0.05)
    # So long that a holder that lives, and beats each 0.1 s, is not starved into silence.
    monkeypatch.setattr(module, "EXPIRE_S", 4.0)
    # The second is a folder, too, but one that is treated as objects: leases are heartbeats there.
    (tmp_path / "run" / module.MEMBERS).mkdir(parents=True)
    url = f"{'local://' if kind == 'store' else ''}{tmp_path}/run"
    with holder(url, offset_s) as process:
        # It may be between two beats, so for longer than a silent one would be waited for.
        with pytest.raises(ResourceError, match=f"in use by process {process.pid}"):
            acquire(Store(url), wait_s=4.6)
        kill.kill_group(process)
        started_s = time.monotonic()
        lease = acquire(Store(url), wait_s=20)
        took_s = time.monotonic() - started_s
        assert lease.epoch == 2 and took_s < kill.at_load(10)
        lease.release()
    told("train", unit="images", recovered_s=took_s)


@pytest.mark.parametrize("ahead_s, stays", [(HOUR_S, True), (-HOUR_S, True), (-2 * 86400, False)])
def test_what_another_machine_is_writing_stays_whatever_its_clock_says(
    tmp_path: Path, ahead_s: int, stays: bool
) -> None:
    """What nobody has touched for two days is what it left when it died."""
    path = tmp_path / "train-000000.tar.elsewhere-7-00000000.part"
    path.write_bytes(b"some")
    os.utime(path, (time.time() + ahead_s,) * 2)
    _parts.remove_dead(tmp_path)
    assert path.exists() == stays
