"""The PGGAN job on a cluster whose machines come and go: some are lost, others come.

Raylets on this machine: the driver's, without a CPU for workers, and two or four of one CPU.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.kill import wait_for
from tests.jobs import pggan_runs, recording
from tests.jobs.test_pggan_ray import Driver
from tests.nodes.rig import long

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(900)]

TOTAL_IMAGES, SAVE_IMAGES = 1200, 80
# Up to here what rounds otherwise is still as small as it was; every change comes before.
EARLY = 640
FLAGS = (
    *("--total-images", f"{TOTAL_IMAGES}", "--checkpoint-images", f"{SAVE_IMAGES}"),
    *("--snapshot-images", "600", "--log-images", "80", "--resize-every-s", "2"),
)
PATIENCE_S = 240.0
STEP_S, HELD_AT = 0.15, 560

MEMORY_BYTES = 80 * 2**20


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head for the driver alone; that a machine is gone is found in seconds, not in 15."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": MEMORY_BYTES, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(pggan_runs.ROOT))
        for name, value in (("initial_delay", 1000), ("period", 500), ("timeout", 1000)):
            patch.setenv(f"RAY_health_check_{name}_ms", str(value))
        found = Cluster(initialize_head=True, head_node_args=head)
        yield found
        found.shutdown()


@pytest.fixture
def machines(cluster: Any, request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    """Two machines of one CPU, or as many as asked; those left at the end are taken away."""
    found = [machine(cluster) for _ in range(getattr(request, "param", 2))]
    cluster.wait_for_nodes()
    yield found
    for one in list(cluster.worker_nodes):
        cluster.remove_node(one)


def machine(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=MEMORY_BYTES)


def rows(folder: Path) -> dict[int, dict[str, float]]:
    """The losses and scores by images."""
    found: dict[int, dict[str, float]] = {}
    for row in pggan_runs.metrics(folder):
        found.setdefault(row["images"], {}).update(row)
    return found


def worlds(notes: Path) -> dict[int, int]:
    """How many workers took each image number the last time it was trained on."""
    found: dict[int, int] = {}
    for path in sorted(notes.glob("*.jsonl"), key=lambda path: path.stat().st_mtime):
        for line in path.read_text().splitlines():
            found[json.loads(line)[0]] = int(path.name.partition("-")[0])
    return found


def gap(one: dict[int, dict[str, float]], other: dict[int, dict[str, float]]) -> float:
    """The largest relative difference of a figure."""
    assert one.keys() == other.keys() and all(one[n].keys() == other[n].keys() for n in one)
    pairs = [(one[n][name], other[n][name]) for n in one for name in one[n]]
    return max(abs(a - b) / max(abs(a), 1e-3) for a, b in pairs)


def table(notes: Path, calm: dict[int, Any], moved: dict[int, Any]) -> str:
    """The two curves beside each other, for people."""
    took = worlds(notes)
    lines = [f"{'images':>7} {'workers':>7} {'loss_d':>19} {'loss_g':>19}"]
    for images in sorted(n for n in calm if "train/loss_d" in calm[n]):
        pair = [[run[images][f"train/loss_{name}"] for run in (calm, moved)] for name in "dg"]
        figures = " ".join(f"{a:9.6f} {b:9.6f}" for a, b in pair)
        lines.append(f"{images:7} {took[images - 1]:7} {figures}")
    return "\n".join(lines)


def until(driver: Driver, text: str) -> float:
    """Seconds until the run has said `text`."""
    begun_s = time.monotonic()
    wait_for(lambda: text in driver.said() or driver.process.poll() is not None, PATIENCE_S)
    assert text in driver.said(), driver.said()[-3000:]
    return time.monotonic() - begun_s


class Pair:
    """A run on machines that stay, and the same one on machines that come and go."""

    def __init__(self, cluster: Any, folder: Path, workers: int) -> None:
        self.calm, self.moved = (
            Driver(folder / name, cluster.address, folder / "cache") for name in ("calm", "moved")
        )
        self.flags = (*FLAGS, "--workers", f"{workers}")
        # Until this is there the run cannot end: the machines that come shall meet it.
        self.grown = folder / "grown"
        for driver in (self.calm, self.moved):
            self.notes(driver).mkdir()

    def notes(self, driver: Driver) -> Path:
        return driver.folder.with_name(f"{driver.folder.name}-notes")

    def start(self) -> Driver:
        """The calm run to its end; the other is begun."""
        calm = self.calm.start(*self.flags, patch=f"note={self.notes(self.calm)}")
        assert calm.wait(PATIENCE_S) == 0, calm.said()
        patch = f"pace={STEP_S},note={self.notes(self.moved)},hold={HELD_AT}:{self.grown}"
        return self.moved.start(*self.flags, "--min-workers", "1", patch=patch)

    def repeated(self) -> int:
        """Images that the moved run trained on once more."""
        seen = recording.noted(self.notes(self.moved))
        return len(seen) - len(set(seen))

    def compare(self, repeated: int, losses: int) -> None:
        """The moved run, which ends, is the calm one; `repeated` is of before it grew."""
        self.grown.touch()
        assert self.moved.wait(PATIENCE_S) == 0, self.moved.said()[-3000:]
        seen, wanted = (recording.noted(self.notes(run)) for run in (self.moved, self.calm))
        calm, moved = rows(self.calm.folder), rows(self.moved.folder)
        print(table(self.notes(self.moved), calm, moved))
        assert [number for number, _ in wanted] == list(range(TOTAL_IMAGES))
        assert sorted(set(seen)) == wanted, "every image number is trained on, as the same sample"
        most = losses * SAVE_IMAGES
        assert 0 < repeated <= most, "a lost machine costs what came after the checkpoint"
        assert len(seen) == TOTAL_IMAGES + repeated, "growing costs nothing"
        early = [{n: row for n, row in run.items() if n <= EARLY} for run in (calm, moved)]
        same = weights(self.calm.folder) == weights(self.moved.folder)
        print(
            f"largest relative difference of a figure: {gap(*early):.1e} up to {EARLY} images, "
            f"{gap(calm, moved):.1e} in all; equal weights: {same}"
        )
        assert gap(*early) < 1e-5

    def gap(self, other: Driver | None = None) -> float:
        """The largest relative difference of a figure of the moved run, or another, to the calm."""
        return gap(rows(self.calm.folder), rows((other or self.moved).folder))

    def stop(self) -> None:
        self.calm.stop()
        self.moved.stop()


def test_a_run_that_shrank_and_grew_is_the_run_that_did_not(
    cluster: Any, machines: list[Any], tmp_path: Path
) -> None:
    """One machine of two is killed, later another comes: the same samples, the same curve."""
    pair = Pair(cluster, tmp_path, 2)
    try:
        driver = pair.start()
        driver.wait_for_images(2 * SAVE_IMAGES)
        cluster.remove_node(machines[1], allow_graceful=False)
        shrunk_s = until(driver, "1 workers after 2")
        driver.wait_for_images(driver.saved() + SAVE_IMAGES)
        repeated = pair.repeated()
        machine(cluster)
        grown_s = until(driver, "2 workers after 1")
        print(f"\nshrunk after {shrunk_s:.0f} s, {repeated} images again; grown: {grown_s:.0f} s")
        pair.compare(repeated, losses=1)
        assert pair.gap() < 1e-5
    finally:
        pair.stop()


@long
@pytest.mark.parametrize("machines", [1], indirect=True)
def test_four_machines_that_became_one_and_four_again_leave_the_run_of_four(
    cluster: Any, machines: list[Any], tmp_path: Path
) -> None:
    """Two of four are killed at once, then one of those that are left; then three come.

    Sums of four round otherwise than those of one, and a GAN makes more of it with every step: in
    the end the runs may differ as those of four and of one do to which nothing happens, or a bit
    more.
    """
    pair = Pair(cluster, tmp_path, 4)
    alone = Driver(tmp_path / "alone", cluster.address, tmp_path / "cache")
    try:
        # One machine does what is meant for four, in their pieces.
        flags = (*FLAGS, "--workers", "4", "--min-workers", "1")
        assert alone.start(*flags).wait(PATIENCE_S) == 0, alone.said()
        machines += [machine(cluster) for _ in range(3)]
        cluster.wait_for_nodes()
        driver = pair.start()
        driver.wait_for_images(2 * SAVE_IMAGES)
        for one in machines[2:]:
            cluster.remove_node(one, allow_graceful=False)
        times_s = [until(driver, "2 workers after 4")]
        driver.wait_for_images(driver.saved() + SAVE_IMAGES)
        cluster.remove_node(machines[1], allow_graceful=False)
        times_s.append(until(driver, "1 workers after 2"))
        driver.wait_for_images(driver.saved() + SAVE_IMAGES)
        repeated = pair.repeated()
        for _ in range(3):
            machine(cluster)
        times_s.append(until(driver, "4 workers after"))
        print(f"\n2, 1 and 4 after {[round(s) for s in times_s]} s; {repeated} images again")
        pair.compare(repeated, losses=3)
        print(f"four and one to which nothing happened: {pair.gap(alone):.1e}")
        assert pair.gap() < 10 * pair.gap(alone)
    finally:
        pair.stop()
        alone.stop()


def test_a_run_without_machines_waits_and_can_be_stopped_and_goes_on_when_one_comes(
    cluster: Any, machines: list[Any], tmp_path: Path
) -> None:
    driver = Driver(tmp_path / "run", cluster.address, tmp_path / "cache")
    flags = (*FLAGS, "--total-images", "400", "--snapshot-images", "400", "--min-workers", "1")
    try:
        driver.start(*flags, patch=f"pace={STEP_S}")
        driver.wait_for_images(SAVE_IMAGES)
        for one in machines:
            cluster.remove_node(one, allow_graceful=False)
        until(driver, "no room for 1 workers: waiting")
        os.kill(driver.process.pid, signal.SIGTERM)
        assert driver.wait(60) == 75, driver.said()[-3000:]
        # Ray's controller may tell of the machines that it lost.
        own = [line for line in driver.said().splitlines() if " pid=" not in line]
        assert not any("Traceback" in line for line in own)
        assert "SIGTERM of the driver" in driver.said()
        machine(cluster)
        assert driver.start(*flags).wait(PATIENCE_S) == 0, driver.said()[-3000:]
        assert "1 workers after 2" in driver.said()
    finally:
        driver.stop()


def weights(folder: Path) -> bytes:
    """The last checkpoint's tensors."""
    return (folder / f"checkpoints/{TOTAL_IMAGES:010d}/state.safetensors").read_bytes()
