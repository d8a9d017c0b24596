"""A sweep on Ray whose driver is killed goes on, repeats no trial and ends with the same bytes."""

import json
import os
import subprocess
import sys

import pytest

from jobs.sweep import main
from tests.conftest import ROOT
from tests.faults.kill import kill_group, tree_sha256, wait_for
from tests.jobs.sweep_runs import features, words

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

# The job, which waits for good once it has kept three trials: however fast, it is met there.
KEEPS_THREE = """
import sys, time
from jobs import sweep
from medray.tune.journal import Journal
add, kept = Journal.add, []
def waiting(self, cell, record):
    add(self, cell, record)
    kept.append(record)
    time.sleep(3600 * (len(kept) == 3))
Journal.add = waiting
sys.exit(sweep.main(sys.argv[1:]))
"""


def test_a_driver_killed_in_the_middle_repeats_no_finished_trial(
    ray_cluster, tmp_path, monkeypatch
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    features(tmp_path / "real", (12, 6, 6))
    command = words(tmp_path, tmp_path / "whole", "--arms", "none,smote,gaussian")
    assert main(command) == 0
    ray = [word for word in words(tmp_path, tmp_path / "cut", "--arms", "none,smote,gaussian")]
    ray[ray.index("local")] = "ray"
    env = {**os.environ, "RAY_ADDRESS": ray_cluster}
    program = [sys.executable, "jobs/sweep.py", *ray]
    held = [sys.executable, "-c", KEEPS_THREE, *ray]
    first = subprocess.Popen(held, cwd=ROOT, env=env, start_new_session=True)
    kept = tmp_path / "cut/trials"
    wait_for(lambda: len(list(kept.rglob("*.json"))) == 3, timeout_s=300)
    kill_group(first)
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*.json")}
    assert len(before) == 3 and not (tmp_path / "cut/summary.json").exists()
    assert subprocess.run(program, cwd=ROOT, env=env).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads((tmp_path / "cut/summary.json").read_text())["verdict"]
    assert tree_sha256(tmp_path / "cut") == tree_sha256(tmp_path / "whole")
