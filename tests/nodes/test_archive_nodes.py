"""An archive over three nodes: the bytes of one process, whatever is killed, frozen or full."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import archive as archive_job
from tests.archive import made_parts
from tests.faults.kill import tree_sha256
from tests.nodes.jobs import Archiving, Cost
from tests.nodes.rig import Job, Node, Nodes, children, environment, long

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(900)]
PART = "archive"
COUNT = 4000
LONGER = 12
SHARDS = COUNT // 8
# A whole node each.
APART = ("--count", COUNT, "--workers", 3, "--min-workers", 3, "--cpus-per-worker", 2)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_parts.make_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def clean(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one process makes, without Ray."""
    out = tmp_path_factory.mktemp("clean") / "archive"
    assert made_parts.run(parts, out, "--count", COUNT) == 0
    return tree_sha256(out, made_parts.is_result)


class Three:
    """A head and two nodes of two CPUs each; what a test takes away is put back."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.others = [nodes.add(2), nodes.add(2)]

    @property
    def all(self) -> list[Node]:
        return [self.nodes.head, *self.others]

    def lose(self) -> None:
        """One of the nodes is gone for good."""
        self.nodes.lose(self.others.pop())

    def mend(self) -> None:
        """There are three again."""
        while len(self.others) < 2:
            self.others.append(self.nodes.add(2))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Three]:
    with Nodes(2) as nodes:
        yield Three(nodes)


@pytest.fixture
def job(cluster: Three, parts: Path, clean: Any, tmp_path: Path) -> Iterator[Archiving]:
    """An archive over all three, not yet started."""
    cluster.mend()
    found = Archiving.on(cluster.nodes.address, parts, tmp_path / "archive", *APART)
    yield found
    found.stop()


def actors(node: Node) -> list[int]:
    """Process ids of the archive's workers on a node."""
    found = []
    for pid in children(node.raylet):
        with contextlib.suppress(OSError):
            if "_Worker" in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
    return found


def at_work(job: Archiving, *nodes: Node) -> None:
    """Returns once each node has a worker and shards come; the job still goes on."""
    job.until(lambda: [len(actors(node)) for node in nodes] == [1] * len(nodes))
    job.meet(job.shards() + 3)


def ended(job: Archiving, cost: Cost, fault: str, clean: dict[str, str]) -> None:
    """The job goes on to its end with the bytes of an undisturbed one."""
    assert job.wait() == 0, job.said()[-3000:]
    cost.record(PART, fault, wrong=int(job.results() != clean))
    assert job.results() == clean


def test_three_nodes_give_the_bytes_of_one_process(
    cluster: Three, job: Archiving, clean: dict[str, str]
) -> None:
    at_work(job.start(), *cluster.all)
    assert job.wait() == 0, job.said()[-3000:]
    assert job.lost() == 0 and job.results() == clean


def test_a_lost_node_costs_the_shard_in_the_making(
    cluster: Three, job: Archiving, clean: dict[str, str]
) -> None:
    at_work(job.start(), *cluster.all)
    cost = job.goes_on(cluster.lose)
    ended(job, cost, "node (of 3) lost", clean)
    assert cost.lost <= 1


@pytest.fixture
def long_job(cluster: Three, parts: Path, tmp_path: Path) -> Iterator[Archiving]:
    """Many times the archive: what is noticed after a quarter of a minute must meet it alive."""
    cluster.mend()
    more = ("--count", LONGER * COUNT, *APART[2:])
    found = Archiving.on(cluster.nodes.address, parts, tmp_path / "archive", *more)
    yield found
    found.stop()


def remade(job: Archiving, cost: Cost, fault: str) -> None:
    """It is whole at the end, and images that are made once more are the same."""
    assert job.wait() == 0, job.said()[-3000:]
    assert job.shards() == LONGER * SHARDS
    wrong = archive_job.main(["--out", str(job.out), "--verify", "--sample", "200"])
    cost.record(PART, fault, wrong=wrong)
    assert wrong == 0 and cost.lost <= 1


@long
def test_a_killed_raylet_is_missed_after_fifteen_seconds_and_costs_a_shard(
    cluster: Three, long_job: Archiving
) -> None:
    """Its worker works on until then."""
    at_work(long_job.start(), *cluster.all)
    try:
        cost = long_job.goes_on(lambda: os.kill(cluster.others[-1].raylet, signal.SIGKILL))
    finally:
        cluster.lose()
    remade(long_job, cost, "kill -9 of a raylet (3 nodes)")


@long
def test_a_killed_actor_costs_the_shard_in_the_making(
    cluster: Three, job: Archiving, clean: dict[str, str]
) -> None:
    at_work(job.start(), *cluster.all)
    cost = job.goes_on(lambda: os.kill(actors(cluster.others[0])[0], signal.SIGKILL))
    ended(job, cost, "kill -9 of an actor (3 nodes)", clean)
    assert cost.lost <= 1


@long
def test_a_node_that_stands_still_for_some_seconds_loses_nothing(
    cluster: Three, job: Archiving, clean: dict[str, str]
) -> None:
    still_s = 6.0
    at_work(job.start(), *cluster.all)
    with cluster.others[0].frozen():
        there = job.shards()
        time.sleep(still_s)
        assert job.shards() > there, "the others went on"
    ended(job, Cost(0, "shards", 0.0), f"node (of 3) stands still for {still_s:g} s", clean)
    assert job.lost() == 0


@long
def test_a_notice_of_preemption_and_a_node_that_is_then_taken_cost_a_shard(
    cluster: Three, long_job: Archiving
) -> None:
    at_work(long_job.start(), *cluster.all)

    def take() -> None:
        cluster.nodes.notice(cluster.others[-1], 2)
        time.sleep(2)
        cluster.lose()

    cost = long_job.goes_on(take)
    remade(long_job, cost, "notice of preemption, then the node (of 3) is taken")


FILL = """
import ray, time, numpy as np
ray.init(address="auto", logging_level="error")
kept = [ray.put(np.full(2**23, number, np.uint8)) for number in range(12)]
print("full", flush=True)
time.sleep(3600)
"""


def test_a_full_object_store_is_no_concern_of_it(
    cluster: Three, job: Archiving, clean: dict[str, str], tmp_path: Path
) -> None:
    """Somebody else's 96 MB in a store of 80 MB: what the workers answer does not go there."""
    words = [sys.executable, "-W", "ignore", "-c", FILL]
    filler = Job(words, environment(RAY_ADDRESS=cluster.nodes.address), tmp_path / "filler.log")
    try:
        filler.start().until(lambda: "full" in filler.said(), 60)
        assert job.run() == 0, job.said()[-3000:]
    finally:
        filler.stop()
    assert job.lost() == 0
    ended(job, Cost(0, "shards", 0.0), "object store full", clean)


def test_a_lost_head_ends_the_driver_and_the_same_command_goes_on_elsewhere(
    parts: Path, clean: dict[str, str], tmp_path: Path
) -> None:
    one = ("--count", COUNT, "--workers", 2)
    with Nodes(2) as first:
        job = Archiving.on(first.address, parts, tmp_path / "archive", *one).start()
        try:
            job.meet(SHARDS // 10)
            begun_s = time.monotonic()
            for pid in (*first.head.pids.values(), *children(first.head.raylet)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            code = job.wait(180)
            ended_s = time.monotonic() - begun_s
        finally:
            job.stop()
        assert code == 4 and "the same command goes on" in job.said(), job.said()[-1500:]
    print(f"the driver ended with {code} after {ended_s:.1f} s: {job.said()[-1500:]}")
    there = job.shards()
    with Nodes(2) as second:
        job.env["RAY_ADDRESS"] = second.address
        begun_s = time.monotonic()
        job.start().until(lambda: job.shards() > there)
        cost = Cost(2, "shards", ended_s + time.monotonic() - begun_s)
        ended(job, cost, "head lost, the same command on a new one", clean)


@long
def test_where_memory_runs_out_the_job_ends_and_the_same_command_goes_on(
    parts: Path, clean: dict[str, str], tmp_path: Path
) -> None:
    """Ray ends workers as soon as a node uses more than a hundredth of its memory: at once."""
    one = ("--count", COUNT, "--workers", 2)
    full = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
    with Nodes(2, **full) as first:
        job = Archiving.on(first.address, parts, tmp_path / "archive", *one)
        assert job.run() == 4, job.said()[-3000:]
        said, there = job.said(), job.shards()
    assert "workers died" in said and "Ray's log folder says why" in said, said[-2000:]
    assert "Traceback" not in said
    with Nodes(2) as second:
        job.env["RAY_ADDRESS"] = second.address
        begun_s = time.monotonic()
        job.start().until(lambda: job.shards() > there)
        cost = Cost(0, "shards", time.monotonic() - begun_s)
        ended(job, cost, "out of memory, the same command with more", clean)
