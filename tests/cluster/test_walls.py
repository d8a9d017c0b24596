"""Nothing on Kubernetes listens beyond its pod without a token or key and a wall around it."""

from __future__ import annotations

import copy
import ipaddress
from typing import Any

import pytest
import yaml

from tests.cluster.documents import Document, changed, named, pods

Named = list[tuple[str, Document]]


def openings(found: Named) -> list[str]:
    """What could be reached that should not be, in words."""
    policies = [d["spec"] for _, d in found if d["kind"] == "NetworkPolicy"]
    said = [] if any(_denies_all(p) for p in policies) else ["what no policy names is open"]
    said += _wide(policies)
    for file, document in found:
        kind, spec = document["kind"], document.get("spec", {})
        if kind == "Service" and spec.get("type", "ClusterIP") != "ClusterIP":
            said.append(f"{file}: a Service of type {spec['type']}")
        for pod in pods(document):
            said += [f"{file}: {fault}" for fault in _of_pod(pod)]
        for cluster in _clusters(document):
            if cluster.get("authOptions", {}).get("mode") != "token":
                said.append(f"{file}: a cluster without a token")
            if not _walled(cluster, policies):
                said.append(f"{file}: no policy is for its pods")
        if kind == "RayService":
            said += [f"{file}: {fault}" for fault in _of_serve(spec["serveConfigV2"])]
        if kind == "Secret":
            said.append(f"{file}: a secret among the files")
    return said


def _clusters(document: Document) -> list[Document]:
    spec = document.get("spec", {})
    return [
        inner
        for kind, inner in (
            ("RayCluster", spec),
            ("RayJob", spec.get("rayClusterSpec")),
            ("RayService", spec.get("rayClusterConfig")),
        )
        if document["kind"] == kind
    ]


def _denies_all(policy: Document) -> bool:
    bare = policy["podSelector"] == {} and not policy.get("ingress") and not policy.get("egress")
    return bare and set(policy["policyTypes"]) == {"Ingress", "Egress"}


def _wide(policies: list[Document]) -> list[str]:
    said = []
    for policy in policies:
        for rule in policy.get("ingress") or []:
            if not rule.get("from") or any(not peer for peer in rule["from"]):
                said.append("a rule lets everybody in")
            for peer in rule.get("from", []):
                if "ipBlock" in peer:
                    said.append("a rule lets addresses in, not pods")
                if peer.get("namespaceSelector") == {}:
                    said.append("a rule lets every namespace in")
        for rule in policy.get("egress") or []:
            for peer in rule.get("to", []):
                block = peer.get("ipBlock")
                if block and not _without_metadata(block):
                    said.append("pods reach the machine's own identity (169.254.169.254)")
    return said


def _without_metadata(block: Document) -> bool:
    address = ipaddress.ip_address("169.254.169.254")
    return any(address in ipaddress.ip_network(net) for net in block.get("except", []))


def _walled(cluster: Document, policies: list[Document]) -> bool:
    """A policy whose selector KubeRay's own label satisfies."""
    labels = {**cluster["headGroupSpec"]["template"]["metadata"]["labels"], "ray.io/cluster": "x"}
    for policy in policies:
        keys = [e["key"] for e in policy["podSelector"].get("matchExpressions", [])]
        if keys and all(key in labels for key in keys) and "Ingress" in policy["policyTypes"]:
            return True
    return False


def _of_pod(pod: Document) -> list[str]:
    said = [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    context = pod.get("securityContext", {})
    if not context.get("runAsNonRoot") or not context.get("runAsUser"):
        said.append("a pod may run as root")
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        said.append("a pod without a seccomp profile")
    for container in pod["containers"]:
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            said.append("a container may get more rights")
        if own.get("capabilities", {}).get("drop") != ["ALL"]:
            said.append("a container keeps capabilities")
        if not own.get("readOnlyRootFilesystem"):
            said.append("a container may change its image")
        if any("hostPort" in port for port in container.get("ports", [])):
            said.append("hostPort")
        if not container.get("resources", {}).get("limits", {}).get("memory"):
            said.append("a container without a limit of memory")
        for entry in container.get("env", []):
            secret = any(word in entry["name"] for word in ("TOKEN", "PASSWORD", "KEY", "SECRET"))
            if secret and "value" in entry:
                said.append(f"{entry['name']} stands in the file")
    return said


def _of_serve(text: str) -> list[str]:
    config = yaml.safe_load(text)
    host = config.get("http_options", {}).get("host", "0.0.0.0")
    said = []
    for application in config["applications"]:
        args = application.get("args", {})
        outward = not ipaddress.ip_address(host).is_loopback
        if outward and not args.get("keys"):
            said.append("the service answers without a key")
        if args.get("door", True) and not ipaddress.ip_address(args["host"]).is_loopback:
            said.append("the service's own door is open")
    return said


def test_nothing_is_open() -> None:
    assert openings(named()) == []


def replaced(kind: str, number: int, path: str, value: Any) -> Named:
    """All documents, one of them changed."""
    found = copy.deepcopy(named())
    places = [k for k, (_, document) in enumerate(found) if document["kind"] == kind]
    file, document = found[places[number]]
    found[places[number]] = (file, changed(document, path, value))
    return found


HEAD = "spec/headGroupSpec/template/spec"


@pytest.mark.parametrize(
    ("kind", "path", "value", "said"),
    [
        ("NetworkPolicy", "spec/policyTypes", ["Ingress"], "no policy names"),
        ("NetworkPolicy", "spec/ingress", [{"ports": [{"port": 8265}]}], "everybody in"),
        (
            "NetworkPolicy",
            "spec/ingress",
            [{"from": [{"namespaceSelector": {}}]}],
            "every namespace",
        ),
        (
            "NetworkPolicy",
            "spec/egress",
            [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}],
            "own identity",
        ),
        ("Service", "spec/type", "LoadBalancer", "LoadBalancer"),
        ("RayCluster", "spec/authOptions", None, "without a token"),
        ("RayCluster", "spec/authOptions/mode", "disabled", "without a token"),
        ("RayCluster", f"{HEAD}/hostNetwork", True, "hostNetwork"),
        ("RayCluster", f"{HEAD}/securityContext/runAsNonRoot", False, "as root"),
        ("RayCluster", f"{HEAD}/containers/0/ports/0/hostPort", 6379, "hostPort"),
        (
            "RayCluster",
            f"{HEAD}/containers/0/env/0",
            {"name": "RAY_AUTH_TOKEN", "value": "abc"},
            "stands in the file",
        ),
        ("RayJob", "spec/rayClusterSpec/authOptions", None, "without a token"),
    ],
)
def test_control_an_opening_is_found(kind: str, path: str, value: Any, said: str) -> None:
    found = openings(replaced(kind, 0, path, value))
    assert any(said in one for one in found), found


def test_control_a_service_without_keys_or_with_an_open_door_is_found() -> None:
    text = named("RayService")[0][1]["spec"]["serveConfigV2"]
    for before, after, said in (
        ("          keys: /keys/keys.json\n", "", "without a key"),
        (
            "          door: false\n          host: 127.0.0.1\n",
            "          host: 0.0.0.0\n",
            "own door",
        ),
    ):
        del_keys = text.replace(
            before.replace("          ", "      "), after.replace("          ", "      ")
        )
        assert del_keys != text
        found = openings(replaced("RayService", 0, "spec/serveConfigV2", del_keys))
        assert any(said in one for one in found), found


def test_control_without_the_policy_for_rays_pods_every_cluster_is_named() -> None:
    found = [(f, d) for f, d in named() if d["metadata"]["name"] not in ("ray-nodes", "prometheus")]
    said = openings(found)
    assert any("raycluster.yaml: no policy" in one for one in said), said


def test_the_head_may_scale_its_cluster_and_nobody_may_read_secrets() -> None:
    for _, role in named("Role"):
        for rule in role["rules"]:
            assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
            assert not {"secrets", "pods/exec", "roles"} & set(rule["resources"])
    binding = named("RoleBinding")[0][1]
    assert [subject["name"] for subject in binding["subjects"]] == ["medray-head"]
