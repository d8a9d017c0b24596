"""Training between hosts with addresses of their own: over TCP, cut off and back, without power."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.kill import wait_for
from tests.nodes.hosts import PORT, Host, Network, network, token
from tests.nodes.jobs import SAVE_IMAGES, Cost, Training
from tests.nodes.rig import long
from tests.nodes.test_autoscaling import counts

__all__ = ["network"]
pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(900)]
PART = "train"
CUT_S = 30.0
APART = ("--cpus-per-worker", "2")


class Hosts:
    """A head, and hosts that join it; Ray is started again wherever it ends."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network, self.folder, self.secret = network, folder, token()
        self.head = network.host()
        log = folder / "head.log"
        self.head.ray(log, "--include-dashboard=false", **self.secret)
        wait_for(lambda: "Ray runtime started" in log.read_text(), 90)
        words = [sys.executable, "-W", "ignore", "-m", "tests.nodes.watch", self.address]
        self.watch = self.head.start(words, folder / "watch.log", **self.secret)
        self.other = self.add()

    @property
    def address(self) -> str:
        return f"{self.head.address}:{PORT}"

    def alive(self) -> int:
        """Nodes that Ray thinks alive."""
        found = counts(self.watch)
        return found[-1][0] if found else 0

    def add(self) -> Host:
        """A host more, once Ray knows it."""
        before, made = self.alive(), self.network.host()
        made.ray(self.folder / f"{made.name}.log", head=self.head, again=True, **self.secret)
        self.watch.until(lambda: self.alive() > before, 90)
        return made

    def training(self, folder: Path, cache: Path) -> Training:
        """A run over two hosts, not yet started."""
        named = {"MEDRAY_CACHE_DIR": str(cache), **self.secret}
        return Training.on(self.address, folder, *APART, prefix=self.head.within(), **named)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def hosts(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Hosts:
    return Hosts(network, tmp_path_factory.mktemp("hosts"))


@pytest.fixture(scope="module")
def clean(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks of this machine leave, without Ray."""
    job = Training.here(tmp_path_factory.mktemp("clean") / "run", MEDRAY_CACHE_DIR=str(cache))
    assert job.run() == 0, job.said()[-3000:]
    return job.results()


@pytest.fixture
def job(hosts: Hosts, cache: Path, clean: Any, tmp_path: Path) -> Iterator[Training]:
    hosts.watch.until(lambda: hosts.alive() == 2, 90)
    found = hosts.training(tmp_path / "run", cache)
    yield found
    found.stop()


def test_ranks_on_two_hosts_meet_over_tcp_and_give_the_weights_of_one_machine(
    hosts: Hosts, job: Training, clean: dict[str, Any]
) -> None:
    job.start().wait_for_images(SAVE_IMAGES)
    # Networks of their own: neither a file nor loopback joins them.
    assert len({os.readlink(f"/proc/{pid}/ns/net") for pid in job.members()}) == 2
    assert job.wait() == 0, job.said()[-3000:]
    assert job.results() == clean and job.resumed() == []


@long
def test_a_host_cut_off_for_half_a_minute_costs_no_byte(
    hosts: Hosts, job: Training, clean: dict[str, Any]
) -> None:
    job.start().wait_for_images(2 * SAVE_IMAGES)

    def cut() -> None:
        with hosts.other.cut_off(CUT_S):
            pass

    cost = job.goes_on(cut)
    assert job.wait() == 0, job.said()[-3000:]
    wrong = int(job.results() != clean)
    cost.record(PART, f"host (of 2) cut off for {CUT_S:g} s", wrong=wrong)
    print(f"running again {cost.seconds - CUT_S:.1f} s after it was back; {counts(hosts.watch)}")
    assert not wrong


@long
def test_a_host_without_power_is_missed_and_another_takes_its_place(
    hosts: Hosts, job: Training, clean: dict[str, Any]
) -> None:
    job.start().wait_for_images(2 * SAVE_IMAGES)

    def lose() -> None:
        begun_s = time.monotonic()
        hosts.other.power_off()
        hosts.watch.until(lambda: hosts.alive() == 1, 120)
        print(f"missed after {time.monotonic() - begun_s:.1f} s")
        hosts.other = hosts.add()

    cost: Cost = job.goes_on(lose)
    assert job.wait() == 0, job.said()[-3000:]
    wrong = int(job.results() != clean)
    cost.record(PART, "power of a host (of 2) lost, another comes", wrong=wrong)
    assert not wrong
