"""Trials on Ray Tune find what one process finds; a crash or a death fails its trial alone."""

import os
import time
from dataclasses import dataclass

import pytest

from medray.errors import ResourceError
from medray.tune.on_ray import run_on_ray
from medray.tune.trial import run_here
from tests.tune.toys import Formula, records, searches

pytestmark = pytest.mark.ray


@dataclass
class Deadly(Formula):
    """Dies with its process in the arm class-weights, at the second step of the first trial."""

    def score(self, cell, settings, step):
        if cell.arm == "class-weights" and step == 1 and settings["lr"] == 0.01:
            os._exit(3)
        return super().score(cell, settings, step)


def test_tune_finds_what_one_process_finds_and_gives_back_its_resources(ray_cluster):
    import ray

    arms = ("none", "smote", "mixup")
    trials = Formula(length=9, broken=("mixup",))
    here, there = (searches(trials, arms, count=8) for _ in range(2))
    run_here(trials, here, lambda t, r: None)
    told = []
    spent = run_on_ray(trials, there, lambda t, r: told.append(t.name))
    assert records(here) == records(there)
    states = [r.state for search in there for r in search.records.values()]
    assert {"complete", "stopped", "failed"} == set(states)
    assert len(told) == len(set(told)) == spent.trials == 24 and spent.side_by_side == 2
    for _ in range(100):
        if ray.available_resources().get("CPU") == 2:
            break
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 2
    # Nothing is left to do: nothing is started.
    assert run_on_ray(trials, there, lambda t, r: told.append("again")).trials == 0
    assert "again" not in told


@dataclass
class Refused(Formula):
    """Finds its store away in the arm class-weights."""

    def score(self, cell, settings, step):
        if cell.arm == "class-weights":
            raise ResourceError("the store is away")
        return super().score(cell, settings, step)


@pytest.mark.chaos
def test_an_outage_in_a_trial_ends_the_search_and_fails_no_trial(ray_cluster):
    found, told = searches(Refused(), ("none", "class-weights"), count=3), []
    with pytest.raises(ResourceError, match="the store is away"):
        run_on_ray(Refused(), found, lambda t, r: told.append(r.state))
    assert "failed" not in told and not list(found)[1].records


@pytest.mark.chaos
def test_a_trial_whose_worker_dies_twice_fails_alone(ray_cluster):
    found = searches(Deadly(), ("none", "class-weights"), count=3)
    run_on_ray(Deadly(), found, lambda t, r: None)
    # By number: one that is tried again ends after the others.
    none, weights = ([search.records[n] for n in sorted(search.records)] for search in found)
    assert [r.state for r in none[:2]] == ["complete"] * 2 and not any(r.error for r in none)
    assert (weights[0].state, weights[0].error) == ("failed", "the worker died")
    assert "complete" in {r.state for r in weights[1:]}
