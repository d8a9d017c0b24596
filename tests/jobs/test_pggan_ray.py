"""The PGGAN job on Ray, two workers: killed, stopped, hung, or on a cluster that is too small."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.chaos_budget import trials
from tests.faults.kill import at_load, frozen, kill_group, wait_for
from tests.jobs import pggan_runs

pytestmark = [pytest.mark.ray, pytest.mark.slow]
# Long enough to be met alive: some seconds of steps.
TOTAL_IMAGES, SAVE_IMAGES = 960, 96
FLAGS = (
    *("--backend", "ray", "--workers", "2", "--total-images", f"{TOTAL_IMAGES}"),
    *("--checkpoint-images", f"{SAVE_IMAGES}", "--snapshot-images", f"{TOTAL_IMAGES // 2}"),
    *("--log-images", "48"),
)


# For a busy machine; an undisturbed run takes a tenth of it.
PATIENCE_S = 300.0


@dataclass
class Driver:
    """The command, running or ended, on the cluster at `address`."""

    folder: Path
    address: str
    cache: Path

    def start(self, *more: str, patch: str = "") -> Driver:
        """Starts it, its workers patched; the same line starts a run and goes on with it."""
        flags = [*FLAGS, "--cache-dir", str(self.cache), *more]
        command = pggan_runs.command(self.folder, *flags)
        if patch:
            patched = [sys.executable, "-m", "tests.jobs.patched_workers", patch]
            command = [*patched, *pggan_runs.arguments(self.folder, *flags)]
        environment = pggan_runs.environment(self.cache)
        environment |= {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "disabled"}
        self.log = self.folder.with_suffix(".log")
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=pggan_runs.ROOT,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return self

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """The exit code."""
        return self.process.wait(timeout_s)

    def stop(self) -> None:
        """Kills it if it runs."""
        kill_group(self.process)

    def run(self) -> int:
        """Starts it and waits."""
        return self.start().wait()

    def said(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")

    def resumed(self) -> int:
        """How often it has gone on, as its own log says: Ray may hand on workers' lines late."""
        log = self.folder / "train.log"
        return log.read_text(errors="replace").count("resumed at") if log.exists() else 0

    def saved(self) -> int:
        """Images of the newest complete checkpoint, 0 before the first."""
        manifests = self.folder.glob("checkpoints/*/manifest.json")
        return max((int(path.parent.name) for path in manifests), default=0)

    def wait_for_images(self, images: int) -> None:
        """Returns once a checkpoint at `images` or beyond is there; the run must still go on."""
        wait_for(lambda: self.saved() >= images or self.process.poll() is not None, PATIENCE_S)
        assert self.process.poll() is None, self.said()[-3000:]
        assert self.saved() < TOTAL_IMAGES, "the run was over before it could be met"

    def held(self, saves: int) -> str:
        """The patch by which it waits after so many checkpoints: a fault meets it there."""
        file = self.folder.with_name(f"{self.folder.name}-go-on-{saves}")
        return f"hold={saves * SAVE_IMAGES + 24}:{file}"

    def let_go(self, hold: str) -> None:
        """It need not wait any more."""
        Path(hold.partition(":")[2]).touch()

    def workers(self) -> dict[str, int]:
        """Process ids of the rank that writes and of the other one."""
        writer = pggan_runs.writer(self.folder)["pid"]
        members = pggan_runs.members(self.folder) - {self.process.pid}
        assert len(members) == 2 and writer in members, (writer, members)
        return {"writer": writer, "other": (members - {writer}).pop()}

    def results(self) -> dict[str, Any]:
        """What the run left."""
        return pggan_runs.results(self.folder, TOTAL_IMAGES)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def too_small(
    ray_cluster: str, tmp_path_factory: pytest.TempPathFactory, cache: Path
) -> Iterator[Driver]:
    """A run that asks for more than there is; it waits while the other tests go on."""
    folder = tmp_path_factory.mktemp("large") / "run"
    found = Driver(folder, ray_cluster, cache).start("--cpus-per-worker", "64")
    yield found
    found.stop()


@pytest.fixture(scope="module")
def clean(
    ray_cluster: str, too_small: Driver, tmp_path_factory: pytest.TempPathFactory, cache: Path
) -> dict[str, Any]:
    """What the run leaves that nothing happened to."""
    driver = Driver(tmp_path_factory.mktemp("clean") / "run", ray_cluster, cache)
    assert driver.run() == 0, driver.said()[-3000:]
    return driver.results()


@pytest.fixture
def driver(ray_cluster: str, cache: Path, clean: Any, tmp_path: Path) -> Iterator[Driver]:
    found = Driver(tmp_path / "run", ray_cluster, cache)
    yield found
    found.stop()


def test_a_run_whose_workers_are_killed_recovers_by_itself_with_the_same_bytes(
    driver: Driver, clean: dict[str, Any]
) -> None:
    """First the rank that writes nothing, then the one that writes."""
    first, second = driver.held(3), driver.held(7)
    driver.start(patch=f"{first},{second}")
    driver.wait_for_images(SAVE_IMAGES)
    os.kill(driver.workers()["other"], signal.SIGKILL)
    driver.let_go(first)
    wait_for(lambda: pggan_runs.writer(driver.folder)["number"] == 2, PATIENCE_S)
    driver.wait_for_images(driver.saved() + SAVE_IMAGES)
    os.kill(driver.workers()["writer"], signal.SIGKILL)
    driver.let_go(second)
    assert driver.wait() == 0, driver.said()[-3000:]
    assert driver.resumed() == 2, driver.said()
    assert driver.results() == clean


def test_a_killed_driver_started_again_ends_with_the_same_bytes(
    driver: Driver, clean: dict[str, Any]
) -> None:
    driver.start(patch=driver.held(3))
    driver.wait_for_images(2 * SAVE_IMAGES)
    os.kill(driver.process.pid, signal.SIGKILL)
    driver.wait()
    # At once: the old workers may still be alive, and must be out before a new start writes.
    assert driver.run() == 0, driver.said()[-3000:]
    assert driver.resumed() == 1
    assert driver.results() == clean


def test_sigterm_of_the_driver_saves_and_the_same_command_goes_on(
    driver: Driver, clean: dict[str, Any]
) -> None:
    driver.start(patch=driver.held(3))
    driver.wait_for_images(SAVE_IMAGES)
    os.kill(driver.process.pid, signal.SIGTERM)
    assert driver.wait() == 75, driver.said()[-3000:]
    status = json.loads((driver.folder / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("stopped", 75)
    assert "SIGTERM of the driver" in driver.said() and "--resume" in driver.said()
    assert pggan_runs.sound_checkpoints(driver.folder)[-1] == driver.saved() < TOTAL_IMAGES
    assert driver.run() == 0, driver.said()[-3000:]
    assert driver.results() == clean


def test_a_cluster_that_is_too_small_ends_with_a_clear_error_within_two_minutes(
    too_small: Driver, clean: dict[str, Any]
) -> None:
    assert too_small.wait(120) == 4, too_small.said()
    said = too_small.said()
    assert "waiting for 128 CPU, cluster has 2" in said and "fewer workers" in said
    assert "Traceback" not in said and len(said.splitlines()) <= 15, said
    status = json.loads((too_small.folder / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 4)


# --- many times over --------------------------------------------------------------------------


@pytest.mark.chaos
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", range(trials(2, 5)))
def test_drivers_and_workers_killed_at_random_change_nothing(
    seed: int, driver: Driver, clean: dict[str, Any]
) -> None:
    draw = random.Random(seed)
    for _ in range(2):
        driver.start()
        time.sleep(draw.uniform(0, 25))
        victims = [driver.process.pid, *pggan_runs.members(driver.folder)]
        victim = draw.choice(victims)
        print(f"seed {seed}: {victim} of {victims}")
        if driver.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        driver.wait()
    assert driver.run() == 0, driver.said()[-3000:]
    assert driver.results() == clean


FOUND_S, RUNNING_S = 30.0, 60.0


@pytest.mark.chaos
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("who", ["writer", "other"])
def test_a_hung_worker_is_replaced_and_writes_nothing_after_it_wakes(
    who: str, driver: Driver, clean: dict[str, Any]
) -> None:
    hold = driver.held(3)
    driver.start(patch=hold)
    driver.wait_for_images(SAVE_IMAGES)
    both = driver.workers()
    with frozen(both[who]):
        driver.let_go(hold)
        begun_s = time.monotonic()
        left = {both["writer"], both["other"]} - {both[who]}
        # The group is given up: the rank that did not hang is gone.
        wait_for(lambda: not left & pggan_runs.members(driver.folder), PATIENCE_S)
        found_s = time.monotonic() - begun_s
        wait_for(lambda: driver.resumed() == 1, PATIENCE_S)
        running_s = time.monotonic() - begun_s
        print(f"{who}: found after {found_s:.0f} s, running again after {running_s:.0f} s")
        assert found_s < at_load(FOUND_S) and running_s < at_load(RUNNING_S)
        assert driver.wait() == 0, driver.said()[-3000:]
        there = driver.results()
        print(f"the old worker {_woken(both[who])}")
    assert driver.results() == there == clean


def _woken(pid: int) -> str:
    """Wakes a worker that hung, where Ray has not killed it; what became of it."""
    if not _stopped_pid(pid):
        return "was killed by Ray before it could wake"
    os.kill(pid, signal.SIGCONT)
    until_s = time.monotonic() + 15
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until_s:
        time.sleep(0.1)
    return "woke"


@pytest.mark.chaos
@pytest.mark.timeout(1500)
def test_a_writer_that_hung_in_a_save_is_replaced_and_takes_nothing_away(
    driver: Driver, clean: dict[str, Any]
) -> None:
    """It stops just before it would publish (tests/test_checkpoints.py has the control)."""
    driver.start(patch=f"hang_in_save={3 * SAVE_IMAGES}")
    wait_for(lambda: _stopped(driver), PATIENCE_S)
    (old,) = _stopped(driver)
    assert driver.wait() == 0, driver.said()[-3000:]
    assert driver.resumed() == 1 and driver.results() == clean
    print(f"the old writer {_woken(old)}")
    assert driver.results() == clean


def _stopped(driver: Driver) -> list[int]:
    """The run's workers that are stopped."""
    assert driver.process.poll() is None, driver.said()[-3000:]
    return [pid for pid in pggan_runs.members(driver.folder) if _stopped_pid(pid)]


def _stopped_pid(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


@pytest.mark.chaos
@pytest.mark.timeout(1500)
def test_control_a_resume_on_ray_that_forgets_the_optimisers_is_caught(
    driver: Driver, clean: dict[str, Any]
) -> None:
    hold = driver.held(3)
    driver.start(patch=f"forget_adam,{hold}")
    driver.wait_for_images(SAVE_IMAGES)
    os.kill(driver.workers()["other"], signal.SIGKILL)
    driver.let_go(hold)
    assert driver.wait() == 0, driver.said()[-3000:]
    found, final = driver.results(), f"checkpoints/{TOTAL_IMAGES:010d}/state.safetensors"
    assert found["metrics"] != clean["metrics"] and found[final] != clean[final]
