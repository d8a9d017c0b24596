"""The files for `ray up`: Ray's own schema, spot before on demand, nothing open."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest

from tests.cluster.documents import CLUSTER, RAY_UP, Document, changed, of

CLOUDS = [path for path in RAY_UP if path.stem != "local"]


def checked(config: Document) -> Document:
    """What `ray up` makes of a configuration before it asks a cloud anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: Document = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.name)
def test_ray_takes_the_file(path: Path) -> None:
    prepared = checked(of(path)[0])
    assert prepared["head_node_type"] in prepared["available_node_types"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("idle_timeout_minutes", "five"),
        ("available_node_types/gpu-spot/resources", {"GPU": -1}),
        ("available_node_types/gpu-spot/min_wokers", 1),
        ("head_node_type", "haed"),
        ("available_node_types/head/node_config", None),
    ],
)
def test_control_a_broken_copy_is_refused(path: str, value: Any) -> None:
    broken = changed(of(CLUSTER / "aws.yaml")[0], path, value)
    with pytest.raises((jsonschema.ValidationError, ValueError, KeyError)):
        checked(broken)


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.name)
def test_ray_tries_spot_first_and_on_demand_when_there_is_none(path: Path) -> None:
    """With Ray's own order of candidates (autoscaler v2), which knows what could not be had."""
    types = of(path)[0]["available_node_types"]
    assert first_choice(types, unavailable=set()) == "gpu-spot"
    assert first_choice(types, unavailable={"gpu-spot"}) == "gpu-on-demand"
    types["gpu-spot"]["priority"] = 0
    types["gpu-on-demand"]["priority"] = 10
    assert first_choice(types, unavailable=set()) == "gpu-on-demand"  # the control


def first_choice(types: Document, unavailable: set[str]) -> str:
    """The type that Ray's scheduler launches for one request of a GPU."""
    from ray.autoscaler._private.constants import AUTOSCALER_CONSERVE_GPU_NODES
    from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
    from ray.autoscaler.v2.scheduler import (
        ResourceDemandScheduler,
        ResourceRequestSource,
        SchedulingNode,
    )
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    assert AUTOSCALER_CONSERVE_GPU_NODES
    workers = {name: t for name, t in types.items() if name != "head"}
    nodes = [
        SchedulingNode.from_node_config(
            NodeTypeConfig(
                name=name,
                min_worker_nodes=0,
                max_worker_nodes=each["max_workers"],
                resources=each["resources"],
                priority=each.get("priority", 0),
            ),
            status=None,
            node_kind=None,
        )
        for name, each in workers.items()
    ]
    # The newest failure weighs nothing, as `CloudResourceMonitor` has it.
    scores = {name: 0.0 for name in unavailable}
    request = ResourceRequestUtil.make({"CPU": 7, "GPU": 1})
    best, rest, _ = ResourceDemandScheduler._sched_best_node(
        [request], nodes, ResourceRequestSource.PENDING_DEMAND, scores, scores
    )
    assert best is not None and not rest
    return str(best.node_type)


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.name)
def test_the_head_is_on_demand_and_works_for_nobody(path: Path) -> None:
    config = of(path)[0]
    head = config["available_node_types"]["head"]
    assert head["resources"] == {"CPU": 0} and head["max_workers"] == 0
    assert "spot" not in str(head["node_config"]).lower()
    for name, node in config["available_node_types"].items():
        assert ("spot" in str(node["node_config"]).lower()) == name.endswith("spot"), name


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.name)
def test_machines_go_when_they_idle_and_there_is_a_most(path: Path) -> None:
    config = of(path)[0]
    assert 0 < config["idle_timeout_minutes"] <= 15 and config["max_workers"] <= 32
    for name, node in config["available_node_types"].items():
        assert node["min_workers"] == 0, f"{name} costs money while nothing runs"


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.name)
def test_ray_start_knows_every_flag(path: Path) -> None:
    config = of(path)[0]
    for command in [config["head_start_ray_commands"][1], config["worker_start_ray_commands"][1]]:
        start_of(command)
    with pytest.raises(click.NoSuchOption):
        start_of(command + " --dashbord-host=127.0.0.1")  # the control


def start_of(command: str) -> Document:
    """The flags of the `ray start` in a command, as Ray's own command line reads them."""
    from ray.scripts.scripts import start

    words = shlex.split(command.partition("ray start")[2])
    return start.make_context("ray start", words).params


def openings(config: Document) -> list[str]:
    """What others than the nodes and their owner could reach, or find out."""
    found = []
    for command in config["head_start_ray_commands"]:
        if "ray start" in command and "--dashboard-host=127.0.0.1" not in command:
            found.append("the dashboard is not on loopback")
    for command in [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]:
        if "ray start" in command and "RAY_AUTH_MODE=token" not in command:
            found.append("a node starts without a token")
        if re.search(r"RAY_AUTH_TOKEN=\S", command):
            found.append("the token stands in a command line")
    if any(
        re.search(r"(^|\s)(-p|--publish)\b", option) for option in config["docker"]["run_options"]
    ):
        found.append("the container publishes a port")
    for name, node in config["available_node_types"].items():
        closed = {"aws": "SecurityGroupIds", "gcp": "networkInterfaces"}[config["provider"]["type"]]
        if not node["node_config"].get(closed):
            found.append(f"{name} has the walls that Ray makes: ssh from anywhere")
    if "0.0.0.0/0" in str(config) or "security_group" in config["provider"]:
        found.append("a rule lets the world in")
    return found


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.name)
def test_nothing_is_open(path: Path) -> None:
    assert openings(of(path)[0]) == []


START = "RAY_AUTH_MODE=token ray start --head --dashboard-host={}"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("head_start_ray_commands/1", START.format("0.0.0.0"), "dashboard"),
        ("head_start_ray_commands/1", START.format("127.0.0.1")[20:], "without a token"),
        ("head_start_ray_commands/1", "RAY_AUTH_TOKEN=abc " + START, "command line"),
        ("docker/run_options", ["-p 8265:8265"], "publishes"),
        ("available_node_types/gpu-spot/node_config/SecurityGroupIds", None, "gpu-spot"),
        ("provider/security_group", {"GroupName": "ray"}, "world"),
    ],
)
def test_control_an_opening_is_found(path: str, value: Any, said: str) -> None:
    found = openings(changed(of(CLUSTER / "aws.yaml")[0], path, value))
    assert any(said in one for one in found), found


def test_ray_itself_would_open_ssh_to_the_world() -> None:
    """Why aws.yaml names a group of its own: when this fails, Ray has become careful."""
    import ray

    source = Path(ray.__file__).parent / "autoscaler" / "_private" / "aws" / "config.py"
    body = source.read_text().partition("def _create_default_ssh_inbound_rules")[2]
    assert '"CidrIp": "0.0.0.0/0"' in body.partition("\ndef ")[0]
