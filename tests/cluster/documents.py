"""The YAML of cluster/, and KubeRay's schemas, as the tests of it use them."""

from __future__ import annotations

import copy
import functools
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
CLUSTER = ROOT / "cluster"
KUBERAY = CLUSTER / "kuberay"
SCHEMAS = ROOT.parent / "shared" / "data" / "kuberay-crds.tar.xz"
NOT_APPLIED = {"jobs.yaml", "kustomization.yaml"}
RAY_UP = sorted(CLUSTER / f"{name}.yaml" for name in ("local", "aws", "gcp"))
MANIFESTS = sorted(path for path in KUBERAY.rglob("*.yaml") if path.name not in NOT_APPLIED)

Document = dict[str, Any]


LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@functools.cache
def _loaded(path: Path) -> list[Document]:
    found = yaml.load_all(path.read_text(encoding="utf-8"), Loader=LOADER)
    return [document for document in found if document is not None]


def of(path: Path) -> list[Document]:
    """The documents of a file, aliases resolved; the caller may change them."""
    # Through JSON: aliases become copies, so that a change of one is not a change of all.
    found: list[Document] = json.loads(json.dumps(_loaded(path)))
    return found


def named(kind: str | None = None) -> list[tuple[str, Document]]:
    """(file, document) of all that is applied to Kubernetes, of one kind or all."""
    found = [(path.relative_to(KUBERAY).as_posix(), d) for path in MANIFESTS for d in of(path)]
    return [(name, d) for name, d in found if kind in (None, d.get("kind"))]


def clusters() -> list[tuple[str, Document]]:
    """(file, specification) of every Ray cluster: alone, of a job, of a service."""
    inside = {"RayCluster": None, "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
    found = []
    for name, document in named():
        if document["kind"] in inside:
            key = inside[document["kind"]]
            found.append((name, document["spec"][key] if key else document["spec"]))
    return found


def pods(document: Document) -> Iterator[Document]:
    """Every pod's specification inside a document."""
    if isinstance(document, dict):
        if isinstance(document.get("containers"), list):
            yield document
        for value in document.values():
            yield from pods(value)
    elif isinstance(document, list):
        for value in document:
            yield from pods(value)


@functools.cache
def schema(kind: str) -> Document:
    """KubeRay's schema of a kind, with unknown fields refused; skips where it is not here."""
    if not SCHEMAS.exists():
        pytest.skip("KubeRay's schemas (../shared/data/kuberay-crds.tar.xz) are not here")
    with tarfile.open(SCHEMAS) as tar:
        file = tar.extractfile(f"kuberay-crds/ray.io_{kind.lower()}s.yaml")
        assert file is not None
        crd = yaml.load(file, Loader=LOADER)
    version = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")
    found: Document = _strict(version["schema"]["openAPIV3Schema"])
    return found


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: _strict(value) for key, value in node.items()}
    closed = made.get("type") == "object" and isinstance(made.get("properties"), dict)
    if closed and not node.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def errors_of(document: Document) -> list[str]:
    """What KubeRay's schema has against a document."""
    found = _validator(document["kind"]).iter_errors(document)
    return [f"{error.json_path}: {error.message[:200]}" for error in found]


@functools.cache
def _validator(kind: str) -> Any:
    return jsonschema.Draft7Validator(schema(kind))


def changed(document: Document, path: str, value: Any) -> Document:
    """A copy in which `a.0.b` is `value`, or gone where that is None."""
    made = copy.deepcopy(document)
    *way, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    here: Any = made
    for part in way:
        here = here[part]
    if value is None:
        del here[last]
    else:
        here[last] = value
    return made
