"""`cluster/local.yaml` with Ray's own fake machines: one node grows to three on demand and back.

All of it is inside a host of its own, so the ports of this machine play no part.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.archive import made_parts
from tests.faults.kill import tree_sha256, wait_for
from tests.nodes.hosts import PORT, Network, network, token
from tests.nodes.jobs import Archiving
from tests.nodes.rig import ROOT, Job

__all__ = ["network"]
pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(600)]
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
COUNT = 9000
IDLE_MINUTES = 0.1


def counts(watch: Job) -> list[tuple[int, float]]:
    """(nodes, when) of each change."""
    lines = [json.loads(line) for line in watch.said().splitlines() if line.startswith("{")]
    return [(line["nodes"], line["s"]) for line in lines]


def test_an_archive_grows_the_cluster_to_three_nodes_and_it_shrinks_back(
    network: Network, tmp_path: Path
) -> None:
    shipped = yaml.safe_load((ROOT / "cluster" / "local.yaml").read_text())
    assert shipped["max_workers"] == 2 and shipped["idle_timeout_minutes"] > IDLE_MINUTES
    (tmp_path / "local.yaml").write_text(
        yaml.safe_dump({**shipped, "idle_timeout_minutes": IDLE_MINUTES})
    )
    parts = made_parts.make_parts(tmp_path / "parts")
    assert made_parts.run(parts, tmp_path / "clean", "--count", COUNT) == 0
    host, secret = network.host(), token()
    environment = {
        **secret, "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    }  # fmt: skip
    more = (f"--autoscaling-config={tmp_path / 'local.yaml'}", "--dashboard-host=127.0.0.1")
    host.ray(tmp_path / "head.log", *more, cpus=0, **environment)
    address = f"{host.address}:{PORT}"
    words = [sys.executable, "-W", "ignore", "-m", "tests.nodes.watch", address]
    wait_for(lambda: "Ray runtime started" in (tmp_path / "head.log").read_text(), 90)
    watch = host.start(words, tmp_path / "watch.log", **secret)
    watch.until(lambda: counts(watch), 60)
    assert counts(watch)[0][0] == 1
    job = Archiving.on(
        address, parts, tmp_path / "archive", "--count", COUNT, "--workers", 4,
        prefix=host.within(), **secret,
    )  # fmt: skip
    asked_s = time.monotonic()
    assert job.run() == 0, job.said()[-3000:]
    ended_s = time.monotonic()
    watch.until(lambda: counts(watch)[-1][0] == 1, 120)
    found = counts(watch)
    grown_s = next(s for nodes, s in found if nodes == 3) - asked_s
    back_s = found[-1][1] - ended_s
    print(
        f"1 -> 3 nodes {grown_s:.1f} s after the start of a job of {ended_s - asked_s:.1f} s; "
        f"back to 1 {back_s:.1f} s after its end (idle for {60 * IDLE_MINUTES:g} s): {found}"
    )
    assert max(nodes for nodes, _ in found) == 3
    assert grown_s < ended_s - asked_s, "the cluster grew while the job went on"
    assert job.results() == tree_sha256(tmp_path / "clean", made_parts.is_result)
