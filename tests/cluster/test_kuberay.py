"""The Kubernetes files: KubeRay's schemas, the few core kinds, entrypoints, jobs, budgets."""

from __future__ import annotations

import importlib
import inspect
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.cluster.documents import (
    KUBERAY,
    MANIFESTS,
    ROOT,
    Document,
    changed,
    clusters,
    errors_of,
    named,
    of,
    pods,
    schema,
)

RAY_KINDS = ("RayCluster", "RayJob", "RayService")
# Of each core kind: its version, and the fields that its specification (or itself) must have.
CORE: dict[str, tuple[str, str, set[str]]] = {
    "Namespace": ("v1", "", {"metadata"}),
    "ServiceAccount": ("v1", "", {"metadata"}),
    "Service": ("v1", "spec", {"selector", "ports"}),
    "StatefulSet": ("apps/v1", "spec", {"serviceName", "selector", "template"}),
    "Role": ("rbac.authorization.k8s.io/v1", "", {"rules"}),
    "RoleBinding": ("rbac.authorization.k8s.io/v1", "", {"roleRef", "subjects"}),
    "NetworkPolicy": ("networking.k8s.io/v1", "spec", {"podSelector", "policyTypes"}),
    "PodDisruptionBudget": ("policy/v1", "spec", {"selector", "minAvailable"}),
    "PodMonitor": ("monitoring.coreos.com/v1", "spec", {"selector", "podMetricsEndpoints"}),
    "ServiceMonitor": ("monitoring.coreos.com/v1", "spec", {"selector", "endpoints"}),
    "PrometheusRule": ("monitoring.coreos.com/v1", "spec", {"groups"}),
}


def faults(document: Document) -> list[str]:
    """What is wrong with a document of a core kind."""
    kind = document.get("kind", "")
    if kind not in CORE:
        return [f"kind {kind!r} is not known here"]
    version, key, needed = CORE[kind]
    found = []
    if document.get("apiVersion") != version:
        found.append(f"apiVersion must be {version}, got {document.get('apiVersion')}")
    if not document.get("metadata", {}).get("name"):
        found.append("it has no name")
    body = document.get(key, {}) if key else document
    found += [f"it lacks {name}" for name in sorted(needed - set(body))]
    for pod in pods(body):
        template = schema("RayCluster")["properties"]["spec"]["properties"]["headGroupSpec"]
        rules = template["properties"]["template"]["properties"]["spec"]
        validator = jsonschema.Draft7Validator(rules)
        found += [f"{e.json_path}: {e.message[:200]}" for e in validator.iter_errors(pod)]
    return found


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.relative_to(KUBERAY).as_posix())
def test_every_document_is_what_kubernetes_and_kuberay_take(path: Path) -> None:
    for document in of(path):
        check = errors_of if document["kind"] in RAY_KINDS else faults
        assert check(document) == [], document["metadata"]["name"]


CLUSTER_OF = "spec/rayClusterSpec"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec/backofLimit", 3),
        ("spec/backoffLimit", "three"),
        (f"{CLUSTER_OF}/authOptions/mode", "tokens"),
        (f"{CLUSTER_OF}/headGroupSpec/template", None),
        (f"{CLUSTER_OF}/workerGroupSpecs/0/maxReplicas", "8"),
        (f"{CLUSTER_OF}/workerGroupSpecs/0/template/spec/containers/0/imge", "x"),
        (f"{CLUSTER_OF}/autoscalerOptions/version", "v3"),
    ],
)
def test_control_a_broken_job_is_refused(path: str, value: Any) -> None:
    job = of(KUBERAY / "jobs" / "pggan.yaml")[0]
    assert errors_of(changed(job, path, value)) != []


@pytest.mark.parametrize(
    ("file", "number", "path", "value"),
    [
        ("redis.yaml", 1, "spec/serviceName", None),
        ("redis.yaml", 1, "spec/template/spec/containers/0/readOnly", True),
        ("networkpolicy.yaml", 0, "apiVersion", "networking.k8s.io/v1beta1"),
        ("rbac.yaml", 3, "metadata/name", None),
        ("monitoring.yaml", 0, "kind", "PodMonitr"),
    ],
)
def test_control_a_broken_core_document_is_refused(
    file: str, number: int, path: str, value: Any
) -> None:
    document = of(KUBERAY / file)[number]
    assert faults(document) == [] and faults(changed(document, path, value)) != []


def test_the_kustomization_names_files_that_are_there_and_starts_no_job() -> None:
    found = yaml.safe_load((KUBERAY / "kustomization.yaml").read_text())
    for name in found["resources"]:
        kinds = {document["kind"] for document in of(KUBERAY / name)}
        assert not kinds & {"RayJob", "RayService"}
    for made in found["configMapGenerator"]:
        for file in made["files"]:
            assert (KUBERAY / file.partition("=")[2]).exists(), file


def test_every_name_is_given_once_and_everything_is_in_one_namespace() -> None:
    seen = set()
    for file, document in named():
        key = (document["kind"], document["metadata"]["name"])
        assert key not in seen, f"{key} is given twice, again in {file}"
        seen.add(key)
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == "medray", file


def test_what_is_referred_to_is_there_or_made_by_hand_as_the_readme_says() -> None:
    readme = (KUBERAY.parent / "README.md").read_text()
    accounts = {d["metadata"]["name"] for _, d in named("ServiceAccount")}
    secrets = set()
    for _, document in named():
        for pod in pods(document):
            assert pod.get("serviceAccountName", "medray") in accounts
            for container in pod["containers"]:
                for entry in container.get("env", []):
                    source = entry.get("valueFrom", {}).get("secretKeyRef")
                    secrets |= {source["name"]} if source else set()
            for volume in pod.get("volumes", []):
                secrets |= {volume["secret"]["secretName"]} if "secret" in volume else set()
    for _, cluster in clusters():
        secrets.add(cluster["authOptions"]["secretName"])
    assert secrets == {
        "medray-ray-token", "medray-redis", "medray-secret-key", "medray-serve-keys"
    }  # fmt: skip
    for name in secrets:
        assert f"create secret generic {name}" in readme, name


# --- jobs ---------------------------------------------------------------------------------------


def test_the_jobs_are_as_rendered_and_a_change_of_one_is_found(tmp_path: Path) -> None:
    command = [sys.executable, str(KUBERAY / "render.py"), "--check"]
    assert subprocess.run(command).returncode == 0
    for name in ("cluster/kuberay", "pyproject.toml", "constraints.txt"):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, target)
    copy = tmp_path / "cluster" / "kuberay"
    (copy / "jobs" / "pack.yaml").write_text("kind: RayJob\n")
    command = [sys.executable, str(copy / "render.py"), "--check"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1 and "pack.yaml" in ended.stderr


def arguments(entrypoint: str) -> list[str]:
    """The flags of an entrypoint, once its script has been found in the checkout."""
    python, script, *flags = shlex.split(entrypoint)
    assert python == "python" and script.startswith("/opt/medray/jobs/"), entrypoint
    path = ROOT / script.removeprefix("/opt/medray/")
    assert path.exists(), f"{script} is not in the checkout"
    return [path.stem, *flags]


def parsed(entrypoint: str) -> Any:
    """The job's configuration: what the job itself would make of its flags."""
    from medray import config as configuration
    from medray.job import JobConfig

    name, *flags = arguments(entrypoint)
    module = importlib.import_module(f"jobs.{name}")
    kinds = [
        c for _, c in inspect.getmembers(module, inspect.isclass)
        if issubclass(c, JobConfig) and c.__module__ == module.__name__
    ]  # fmt: skip
    here = [flag.replace("/opt/medray/", f"{ROOT}/") for flag in flags]
    return configuration.parse(kinds[0], here, prog=name)


@pytest.mark.parametrize(
    ("name", "job"), named("RayJob"), ids=lambda x: x if isinstance(x, str) else ""
)
def test_a_job_takes_its_flags_keeps_its_place_and_ends_its_cluster(
    name: str, job: Document
) -> None:
    config = parsed(job["spec"]["entrypoint"])
    where = getattr(config, "run_dir", None) or getattr(config, "out", None)
    assert str(where).startswith("s3://"), "a retry would not find what the try before it did"
    if hasattr(config, "resume"):
        assert config.resume, "a retry would be refused"
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] and spec["backoffLimit"] > 0
    most = sum(group["maxReplicas"] for group in spec["rayClusterSpec"]["workerGroupSpecs"])
    gpus = getattr(config, "gpus_per_worker", 0)
    groups = spec["rayClusterSpec"]["workerGroupSpecs"]
    has_gpu = all(
        "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]
        for group in groups
        for pod in pods(group)
    )
    assert has_gpu == bool(gpus)
    workers = getattr(config, "workers", None) or 1
    cpus = float(groups[0]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    each = getattr(config, "cpus_per_worker", 1)
    assert each <= cpus, "no machine is large enough for a worker"
    room = most if gpus else most * cpus // each
    assert workers <= room, f"{workers} workers do not fit"


def test_control_a_job_that_is_not_there_or_a_flag_that_is_wrong_is_found() -> None:
    from medray.errors import UsageError

    with pytest.raises(AssertionError, match="not in the checkout"):
        parsed("python /opt/medray/jobs/pgan.py --out s3://x/y")
    with pytest.raises(UsageError):
        parsed("python /opt/medray/jobs/pack.py --source a --out s3://x/y --size-pixels 3")


def test_stages_read_what_the_stage_before_wrote() -> None:
    jobs = yaml.safe_load((KUBERAY / "jobs.yaml").read_text())
    written = set()
    for job in jobs.values():
        config = parsed(f"python /opt/medray/jobs/{job['script']} {job['flags']}")
        written.add(getattr(config, "run_dir", None) or config.out)
    read = set()
    for job in jobs.values():
        read |= {word for word in job["flags"].split() if word.startswith("s3://BUCKET/")}
    assert read - written == {"s3://BUCKET/source/labels.csv"}


# --- the service ----------------------------------------------------------------------------------


def serve_config() -> Document:
    found: Document = yaml.safe_load(named("RayService")[0][1]["spec"]["serveConfigV2"])
    return found


def serve_schema() -> Any:
    """Ray Serve's own; it uses what pydantic has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.serve.schema import ServeDeploySchema
    return ServeDeploySchema


def test_serve_takes_its_configuration_and_the_service_its_settings() -> None:
    if not (ROOT / "serve" / "app.py").exists():
        pytest.skip("serve/app.py is not in this checkout")
    from serve.settings import Args

    config = serve_config()
    serve_schema().model_validate(config)
    for application in config["applications"]:
        module, _, name = application["import_path"].partition(":")
        assert callable(getattr(importlib.import_module(module), name))
        Args.model_validate(application["args"])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("applications/0/import_path", "serve"),
        ("http_options/port", "eight"),
        ("proxy_location", "Everywhere"),
        ("applications", None),
    ],
)
def test_control_serve_refuses_a_broken_configuration(path: str, value: Any) -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        serve_schema().model_validate(changed(serve_config(), path, value))


def test_control_the_service_refuses_a_setting_that_it_does_not_have() -> None:
    from pydantic import ValidationError

    from serve.settings import Args

    with pytest.raises(ValidationError):
        Args.model_validate({**serve_config()["applications"][0]["args"], "generater": "x"})


def test_an_upgrade_lets_the_old_cluster_answer_until_the_new_one_does() -> None:
    spec = named("RayService")[0][1]["spec"]
    assert spec["upgradeStrategy"]["type"] == "NewCluster"
    args = serve_config()["applications"][0]["args"]
    assert spec["rayClusterDeletionDelaySeconds"] > args["drain_s"]
    group = spec["rayClusterConfig"]["workerGroupSpecs"][0]
    assert group["minReplicas"] >= 2 and args["min_replicas"] >= 2


# --- what survives -------------------------------------------------------------------------------


def test_long_lived_heads_keep_what_they_know_and_jobs_have_none_to_keep() -> None:
    for file, spec in clusters():
        kept = "gcsFaultToleranceOptions" in spec
        assert kept == (not file.startswith("jobs/")), file


def test_spot_is_tried_before_on_demand_and_heads_are_never_spot() -> None:
    for file, spec in clusters():
        head = spec["headGroupSpec"]["template"]["spec"]
        assert head["nodeSelector"]["medray/capacity"] == "on-demand", file
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", file
        by_name = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
        for name, group in by_name.items():
            capacity = group["template"]["spec"]["nodeSelector"]["medray/capacity"]
            assert name.endswith(capacity) or name == "replicas", file
            other = by_name.get(name.replace("-spot", "-on-demand"))
            if name.endswith("-spot") and other is not None:
                assert group["priority"] > other["priority"], file
                assert _shape(group) == _shape(other), f"{file}: the fall-back is another machine"


def _shape(group: Document) -> Any:
    return group["template"]["spec"]["containers"][0]["resources"]


def test_every_head_has_a_budget_of_its_own_that_kubernetes_takes_for_a_foreign_owner() -> None:
    """Pods of a custom resource may have an integer `minAvailable` and nothing else."""
    budgets = [d["spec"] for _, d in named("PodDisruptionBudget")]
    for budget in budgets:
        assert budget["minAvailable"] == 1 and "maxUnavailable" not in budget
    for file, spec in clusters():
        labels = {
            **spec["headGroupSpec"]["template"]["metadata"]["labels"],
            "ray.io/node-type": "head",
        }
        matching = [
            b for b in budgets if b["selector"]["matchLabels"].items() <= labels.items()
        ]  # fmt: skip
        assert len(matching) == 1, f"{file}: {len(matching)} budgets"
