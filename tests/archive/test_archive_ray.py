"""Archives by workers on Ray: any number of them, killed ones, a killed driver, a lost node."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import _archive_run as archive_run
from medray.archive.worker import make_shard
from medray.shards import INDEX
from tests.archive.made_parts import arguments, is_result, make_parts, run
from tests.faults.kill import kill_group, tree_sha256, wait_for
from tests.faults.preload import ROOT


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return make_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def clean(parts, tmp_path_factory):
    out = tmp_path_factory.mktemp("clean") / "archive"
    assert run(parts, out, "--count", 48) == 0
    return tree_sha256(out, is_result)


class DiesOnce:
    """`make_shard` whose first worker at every third shard dies when the tar is all written."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, worker, number):
        flag = Path(self.folder, str(number))
        if number % 3 == 1 and not flag.exists():
            flag.touch()
            worker.lease.check = lambda: os.kill(os.getpid(), signal.SIGKILL)
        return make_shard(worker, number)


@pytest.mark.ray
def test_workers_change_no_byte_and_dead_ones_cost_none(
    ray_cluster, parts, clean, tmp_path, monkeypatch, capsys
):
    assert run(parts, tmp_path / "two", "--count", 48, "--workers", 2) == 0
    assert tree_sha256(tmp_path / "two", is_result) == clean
    (tmp_path / "flags").mkdir()
    monkeypatch.setattr(archive_run, "make_shard", DiesOnce(str(tmp_path / "flags")))
    capsys.readouterr()
    assert run(parts, tmp_path / "killed", "--count", 48, "--workers", 2, "--min-workers", 2) == 0
    assert len(list((tmp_path / "flags").iterdir())) == 2
    assert capsys.readouterr().err.count("a worker was lost") == 2
    assert tree_sha256(tmp_path / "killed", is_result) == clean


def command(parts, out, *more):
    return [sys.executable, "-m", "jobs.archive", *arguments(parts, out, "--count", 48, *more)]


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.parametrize("shards", [1, 3])
def test_a_killed_driver_leaves_what_the_rerun_finishes(parts, clean, tmp_path, shards):
    out = tmp_path / "archive"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    words = command(parts, out, "--workers", 2)
    process = subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True)
    wait_for(lambda: len(list(out.glob("*.tar"))) >= shards, 120)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    try:
        done = subprocess.run(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 0, done.stderr
        assert tree_sha256(out, is_result) == clean
    finally:
        kill_group(process)


class WaitsOn:
    """`make_shard` whose worker on one node begins a shard and ends none.

    Those of other nodes begin after it: however fast they are, it has a shard when it is lost.
    """

    def __init__(self, node, flag):
        self.node, self.flag = node, Path(flag)

    def __call__(self, worker, number):
        import ray

        if ray.get_runtime_context().get_node_id() == self.node:
            worker.lease.check = self.wait
        else:
            wait_for(self.flag.exists, 120)
        return make_shard(worker, number)

    def wait(self):
        self.flag.touch()
        time.sleep(3600)


NODES = """
import json, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
words, out = json.loads(sys.argv[1]), Path(sys.argv[2])
environment = {"env_vars": {"PYTHONPATH": sys.argv[3], "OMP_NUM_THREADS": "1"}}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
lost = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, runtime_env=environment, logging_level="warning")
from jobs import _archive_run, archive
from tests.archive.test_archive_ray import WaitsOn
begun = out.parent / "begun"
_archive_run.make_shard = WaitsOn(lost.node_id, str(begun))
def lose():
    while not (begun.exists() and list(out.glob("*.tar"))):
        time.sleep(0.02)
    cluster.remove_node(lost, allow_graceful=False)
losing = threading.Thread(target=lose, daemon=True)
losing.start()
code = archive.main(words)
losing.join(60)
ray.shutdown()
cluster.shutdown()
sys.exit(code)
"""


@pytest.mark.chaos
@pytest.mark.ray
def test_a_lost_node_costs_its_shard_in_the_making_and_no_byte(parts, clean, tmp_path):
    out = tmp_path / "archive"
    words = arguments(parts, out, "--count", 48, "--workers", 2, "--min-workers", 2)
    done = subprocess.run(
        [sys.executable, "-c", NODES, json.dumps(words), str(out), str(ROOT)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "begun").exists() and (out / INDEX).exists()
    assert done.stderr.count("a worker was lost") == 1, done.stderr
    assert tree_sha256(out, is_result) == clean
