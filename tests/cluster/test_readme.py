"""cluster/README.md: its sums are right, its commands parse, what it names is there."""

from __future__ import annotations

import ast
import operator
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cluster.documents import CLUSTER, KUBERAY, MANIFESTS, RAY_UP, ROOT, named, of
from tests.cluster.test_kuberay import parsed

OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv
}  # fmt: skip
# Words that the reader fills in.
BLANKS = {"REGISTRY", "BUCKET", "AMI", "SECURITY_GROUP", "SUBNET", "PROJECT", "IMAGE"}
# Words of the clouds and of Kubernetes.
WORDS = {
    "CPU",
    "GPU",
    "ALL",
    "TCP",
    "UDP",
    "HOME",
    "SPOT",
    "PERSISTENT",
    "TERMINATE",
    "NAT",
    "JSON",
}
WORDS |= {"ONE_TO_ONE_NAT", "INFO", "REDIS_PASSWORD", "RUN"}


def readme() -> str:
    return (CLUSTER / "README.md").read_text(encoding="utf-8")


def value(text: str) -> float:
    """An expression of numbers and + - * /."""

    def of_node(node: ast.expr) -> float:
        if isinstance(node, ast.BinOp):
            return float(OPERATORS[type(node.op)](of_node(node.left), of_node(node.right)))
        assert isinstance(node, ast.Constant), text
        return float(node.value)

    return of_node(ast.parse(text.strip(), mode="eval").body)


def sums(text: str) -> list[tuple[str, str]]:
    """Left and right side of every sum: a line of a block, or in backquotes."""
    side = r"([-\d.e+*/() ]*[*/+][-\d.e+*/() ]*) = ([\d.e]+)"
    return re.findall(rf"^{side}(?=\s|$)", text, re.M) + re.findall(rf"`{side}`", text)


def wrong(found: list[tuple[str, str]]) -> list[str]:
    return [f"{a} = {b}" for a, b in found if abs(value(a) / float(b) - 1) > 0.005]


def test_every_sum_is_right() -> None:
    found = sums(readme())
    assert len(found) >= 30 and wrong(found) == []
    assert wrong(sums("12e6 / 2 = 7e6  images\n`2 * 3 = 6`")) == ["12e6 / 2 = 7e6"]  # the control


def test_the_figures_called_measured_are_those_of_the_projects_pages() -> None:
    project = (ROOT / "README.md").read_text()
    assert "164 images/s on 2 workers" in project and "after 49,200 images" in project
    assert "139,294 tried" in project and "1.39 images are tried" in readme()


def blocks() -> Iterator[str]:
    yield from re.findall(r"^ *```sh\n(.*?)^ *```", readme(), re.M | re.S)


@pytest.mark.parametrize("block", list(blocks()), ids=lambda block: block.split("\n")[0][:40])
def test_a_shell_block_is_a_shell_block(block: str) -> None:
    assert subprocess.run(["bash", "-n"], input=block, text=True).returncode == 0


def test_jobs_that_are_submitted_take_their_flags() -> None:
    text = "\n".join(blocks()).replace("\\\n", " ")
    found = re.findall(r"^medray submit (.+)$", text, re.M)
    assert len(found) >= 2
    for line in found:
        name, *flags = shlex.split(line.replace("$BUCKET", "BUCKET"))
        words = [flag.replace("jobs/configs", "/opt/medray/jobs/configs") for flag in flags]
        parsed(shlex.join(["python", f"/opt/medray/jobs/{name}.py", *words]))


def test_what_is_filled_in_is_named_and_nothing_else_is_left_open() -> None:
    text, used = readme(), set()
    for path in [*RAY_UP, *MANIFESTS]:
        body = re.sub(r"#.*", "", path.read_text())
        words = set(re.findall(r"(?<![\w@.\-])[A-Z][A-Z_]{2,}(?![\w@])", body))
        left = {word for word in words - WORDS if not word.startswith(("RAY_", "MEDRAY_"))}
        assert left <= BLANKS, f"{path.name}: {left - BLANKS}"
        used |= left
    assert used == BLANKS and all(word in text for word in BLANKS)


def test_files_and_objects_that_it_names_are_there() -> None:
    text = readme()
    for name in re.findall(r"(?:cluster|deploy)/([\w./-]+\.(?:yaml|py))", text):
        assert (CLUSTER / name).exists() or (KUBERAY / name).exists(), name
    for name in re.findall(r"^\| `([^`]+)`", text, re.M):
        assert list(CLUSTER.glob(name.rstrip("/"))), name
    names = {document["metadata"]["name"] for _, document in named()}
    assert {"medray", "medray-head", "medray-user"} <= names and "medray-user" in text
    order = re.search(r"Order: ([a-z, ]+);", text)
    assert order is not None
    for job in order[1].split(", "):
        assert (KUBERAY / "jobs" / f"{job}.yaml").exists(), job


def test_the_walls_name_the_namespaces_that_it_makes() -> None:
    text = readme()
    wanted = set()
    for _, policy in named("NetworkPolicy"):
        for rule in policy["spec"].get("ingress") or []:
            for peer in rule["from"]:
                wanted |= set(peer.get("namespaceSelector", {}).get("matchLabels", {}).values())
    assert {"kuberay-operator", "monitoring", "true"} == wanted
    assert "-n kuberay-operator --create-namespace" in text and "`monitoring`" in text
    assert "medray-client=true" in text


def test_local_yaml_gives_the_head_the_name_that_rays_provider_gives_it() -> None:
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    assert f"RAY_CLOUD_INSTANCE_ID={FAKE_HEAD_NODE_ID}\n" in readme()
    assert of(CLUSTER / "local.yaml")[0]["head_node_type"] == "ray.head.default"


def test_what_security_md_rests_on_is_there() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    named_tests = [
        w for row in re.findall(r"^\|.*\|$", text, re.M) for w in re.findall(r"`([^`]+)`", row)
    ]
    found = [name for name in named_tests if name.startswith(("tests/", "test_"))]
    assert len(found) >= 15
    for name in found:
        there = (ROOT / name).exists() or (ROOT / "tests" / "cluster" / name).exists()
        assert there, name
    for name in re.findall(r"MEDRAY_[A-Z_]+", text):
        assert name in (ROOT / "medray" / "submit.py").read_text(), name
