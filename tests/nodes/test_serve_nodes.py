"""The service over two nodes: a replica on each, the same address the same bytes, one node lost."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from serve import keys
from serve.callers import Callers
from serve.client import Client
from tests import outcomes
from tests.archive.made_parts import make_generator
from tests.faults.kill import kill_group
from tests.faults.proxy import free_port
from tests.nodes.rig import ROOT, Node, Nodes, environment
from tests.serve.test_deployments import until

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(600)]
PART = "serve"
IMAGES, CALLERS = 16, 8


@dataclass
class Service:
    """The service, its nodes and its keeper."""

    nodes: Nodes
    others: list[Node]
    door: int
    token: str
    keeper: subprocess.Popen[str]

    def client(self, patience_s: float = 0) -> Client:
        return Client(f"http://127.0.0.1:{self.door}", self.token, patience_s=patience_s)

    def replicas(self, deployment: str = "Models") -> list[dict[str, Any]]:
        """Node and process of each running replica."""
        assert self.keeper.stdin is not None and self.keeper.stdout is not None
        print(deployment, file=self.keeper.stdin, flush=True)
        return list(json.loads(_line(self.keeper, "[")))

    def images(self) -> dict[int, bytes]:
        """What every address gives."""
        with self.client(60) as client:
            return {
                n: image.data for n, image in enumerate(client.generate(IMAGES, seed=Callers.SEED))
            }


def _line(process: subprocess.Popen[str], start: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return line
    raise AssertionError(f"the service has ended with {process.wait()}")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A replica of the models fills a node; the head has room for none."""
    folder = tmp_path_factory.mktemp("served")
    make_generator(folder / "one", seed=0)
    token, key = keys.make("tester", ["admin"], rate_per_s=1e5)
    keys.write(folder / "keys.json", [key])
    door = free_port()
    settings = {
        "proxy": free_port(), "port": str(door), "generator": str(folder / "one"), "gates": 2,
        "keys": str(folder / "keys.json"), "state_dir": str(folder / "state"), "min_replicas": 2,
        "max_replicas": 2, "replica_cpus": 1, "drain_s": 5, "window_ms": 2,
    }  # fmt: skip
    with Nodes(0) as nodes, (folder / "log").open("w") as log:
        others = [nodes.add(1), nodes.add(1)]
        keeper = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.nodes.served", json.dumps(settings)],
            cwd=ROOT, env=environment(RAY_ADDRESS=nodes.address), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            _line(keeper, '{"ready"')
            yield Service(nodes, others, door, token, keeper)
        finally:
            kill_group(keeper)  # type: ignore[arg-type]
            for pipe in (keeper.stdin, keeper.stdout):
                assert pipe is not None
                pipe.close()


def test_a_lost_node_costs_only_what_was_in_flight_on_it_and_each_gives_the_same_bytes(
    service: Service,
) -> None:
    """First one of two is lost, under load; another comes; then the other one of the two is."""
    names = {node.name for node in service.others}
    assert {replica["node"] for replica in service.replicas()} == names
    expected = service.images()
    assert len(set(expected.values())) == IMAGES
    with Callers(service.client, CALLERS, expected, reconnect=True) as callers:
        until(lambda: callers.statuses[200] > 50)
        begun_s = time.monotonic()
        service.nodes.lose(service.others.pop(0))
        until(lambda: time.monotonic() - begun_s > 5)
        there = callers.statuses[200]
        until(lambda: callers.statuses[200] > there + 50)
        until(lambda: [one["node"] for one in service.replicas()] == [service.others[0].name], 60)
        service.others.append(service.nodes.add(1))
        both_s = until(lambda: len(service.replicas()) == 2, 90)
        time.sleep(1)
    last_s = max((at_s - begun_s for at_s in callers.failed_s), default=0.0)
    print(
        f"{callers.statuses} {callers.codes}; longest pause {callers.pause_s:.1f} s, last failure "
        f"after {last_s:.1f} s, two again {both_s:.1f} s after another came"
    )
    outcomes.record(
        part=PART, fault="node (of 2) lost, another comes", trials=1, lost=callers.failed,
        unit="requests", recovered_s=callers.pause_s, wrong=callers.wrong,
    )  # fmt: skip
    # A gate that is new has no share of a key's rate yet: its callers are told to wait.
    failed = callers.failed - callers.codes["rate_exceeded"]
    assert callers.wrong == 0 and failed <= 4 * CALLERS, callers.codes
    assert {one["node"] for one in service.replicas()} == {node.name for node in service.others}
    service.nodes.lose(service.others.pop(0))
    # Now the new one answers alone.
    assert service.images() == expected
    until(lambda: [one["node"] for one in service.replicas()] == [service.others[0].name], 60)
