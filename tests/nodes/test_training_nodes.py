"""Training over two nodes: the weights of one node, whatever happens to a node or the head."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.nodes.jobs import LOG_IMAGES, SAVE_IMAGES, TOTAL_IMAGES, Cost, Training
from tests.nodes.rig import Node, Nodes, children, long

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(900)]
PART = "train"
# A whole node each: the ranks cannot share one.
APART = ("--cpus-per-worker", "2")


class Pair:
    """A head and a node of two CPUs each; whatever a test did, there are two again."""

    def __init__(self, nodes: Nodes, cache: Path) -> None:
        self.nodes, self.cache = nodes, cache
        self.other = nodes.add(2)

    def training(self, folder: Path, *more: str, **named: Any) -> Training:
        named = {"MEDRAY_CACHE_DIR": str(self.cache), **named}
        return Training.on(self.nodes.address, folder, *(more or APART), **named)

    def lose(self) -> None:
        """The other node is gone; a new one comes."""
        self.nodes.lose(self.other)
        self.other = self.nodes.add(2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def pair(cache: Path) -> Iterator[Pair]:
    with Nodes(2) as nodes:
        yield Pair(nodes, cache)


@pytest.fixture(scope="module")
def clean(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks leave without Ray."""
    job = Training.here(tmp_path_factory.mktemp("clean") / "run", MEDRAY_CACHE_DIR=str(cache))
    assert job.run() == 0, job.said()[-3000:]
    return job.results()


@pytest.fixture
def job(pair: Pair, clean: Any, tmp_path: Path) -> Iterator[Training]:
    """A run over both nodes, not yet started."""
    found = pair.training(tmp_path / "run")
    yield found
    found.stop()


def test_two_nodes_give_the_weights_of_one(
    pair: Pair, job: Training, clean: dict[str, Any], tmp_path: Path
) -> None:
    one = pair.training(tmp_path / "one", "--cpus-per-worker", "1")
    assert one.run() == 0, one.said()[-3000:]
    assert one.results() == clean
    job.start().wait_for_images(SAVE_IMAGES)
    ranks, nodes = job.members(), (pair.nodes.head, pair.other)
    assert len(ranks) == 2
    # One rank below each raylet.
    assert [len(ranks & set(children(node.raylet))) for node in nodes] == [1, 1]
    assert job.wait() == 0, job.said()[-3000:]
    assert job.results() == clean


def test_a_lost_node_costs_the_images_since_the_checkpoint_and_no_byte(
    pair: Pair, job: Training, clean: dict[str, Any]
) -> None:
    job.start().wait_for_images(2 * SAVE_IMAGES)
    cost = job.goes_on(pair.lose)
    assert job.wait() == 0, job.said()[-3000:]
    cost.record(PART, "node (of 2) lost, another comes", wrong=int(job.results() != clean))
    assert cost.lost <= SAVE_IMAGES + LOG_IMAGES and job.results() == clean


@long
def test_a_killed_raylet_costs_no_byte(pair: Pair, job: Training, clean: dict[str, Any]) -> None:
    def kill() -> None:
        os.kill(pair.other.raylet, signal.SIGKILL)
        pair.lose()

    job.start().wait_for_images(2 * SAVE_IMAGES)
    cost = job.goes_on(kill)
    assert job.wait() == 0, job.said()[-3000:]
    cost.record(PART, "kill -9 of a raylet (2 nodes)", wrong=int(job.results() != clean))
    assert job.results() == clean


@long
def test_a_node_that_stands_still_for_some_seconds_is_waited_for(
    pair: Pair, job: Training, clean: dict[str, Any]
) -> None:
    still_s = 6.0
    job.start().wait_for_images(SAVE_IMAGES)
    with pair.other.frozen():
        time.sleep(still_s)
    begun_s, there = time.monotonic(), job.saved()
    job.until(lambda: job.saved() > there)
    cost = Cost(0, "images", time.monotonic() - begun_s)
    assert job.wait() == 0, job.said()[-3000:]
    assert job.resumed() == []
    cost.record(
        PART, f"node (of 2) stands still for {still_s:g} s", wrong=int(job.results() != clean)
    )
    assert job.results() == clean


@long
def test_a_notice_of_preemption_saves_first_and_loses_no_image(
    pair: Pair, cache: Path, tmp_path: Path
) -> None:
    """Longer than the others: the notice is asked for every five seconds."""
    total = 2 * TOTAL_IMAGES
    whole = Training.here(tmp_path / "whole", total=total, MEDRAY_CACHE_DIR=str(cache))
    assert whole.run() == 0, whole.said()[-3000:]
    job = pair.training(tmp_path / "run", total=total)
    try:
        job.start().wait_for_images(SAVE_IMAGES)
        pair.nodes.notice(pair.other, 60)
        # It saves, and waits for the node to be taken.
        job.until(lambda: job.rests(10), 60)
        saved = job.saved()
        assert job.reached() <= saved < total, "the notice was not heeded"
        cost = job.goes_on(pair.lose)
        assert job.resumed() == [saved]
        assert job.wait() == 0, job.said()[-3000:]
    finally:
        job.stop()
    cost.lost = 0
    wrong = int(job.results() != whole.results())
    cost.record(PART, "notice of preemption, then the node (of 2) is taken", wrong=wrong)
    assert not wrong


@long
def test_a_lost_head_ends_the_driver_and_the_same_command_goes_on_elsewhere(
    cache: Path, clean: dict[str, Any], tmp_path: Path
) -> None:
    with Nodes(2) as first:
        job = Training.on(
            first.address, tmp_path / "run", "--cpus-per-worker", "1", MEDRAY_CACHE_DIR=str(cache)
        ).start()
        try:
            job.wait_for_images(2 * SAVE_IMAGES)
            reached, begun_s = job.reached(), time.monotonic()
            _kill_head(first.head)
            code = job.wait(180)
            ended_s = time.monotonic() - begun_s
        finally:
            job.stop()
        assert code != 0
    with Nodes(2) as second:
        job.env["RAY_ADDRESS"] = second.address
        begun_s = time.monotonic()
        job.start().until(lambda: job.resumed())
        again_s = time.monotonic() - begun_s
        assert job.wait() == 0, job.said()[-3000:]
    print(f"the driver ended with {code} after {ended_s:.1f} s: {job.said()[-2000:]}")
    wrong = int(job.results() != clean)
    cost = Cost(max(0, reached + LOG_IMAGES - job.resumed()[-1]), "images", ended_s + again_s)
    cost.record(PART, "head lost, the same command on a new one", wrong=wrong)
    assert not wrong


def _kill_head(head: Node) -> None:
    """The head's own services at once; the driver is left."""
    for pid in (*head.pids.values(), *children(head.raylet)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
