"""The pins are above every version that is known to be bad; images and files have those pins."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.cluster.documents import CLUSTER, RAY_UP, ROOT, clusters, named, of, pods

Floors = list[dict[str, Any]]


def advisories() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CLUSTER / "advisories.yaml").read_text())
    return found


def pins(path: Path = ROOT / "constraints.txt") -> dict[str, Version]:
    lines = [line for line in path.read_text().splitlines() if "==" in line]
    pairs = [line.partition("==") for line in lines]
    return {canonicalize_name(name): Version(version) for name, _, version in pairs}


def known_bad(pinned: dict[str, Version], floors: Floors) -> list[str]:
    """The pins that lie below a floor."""
    return [
        f"{entry['package']} {pinned[name]} has {', '.join(entry['advisories'])}: {entry['floor']}"
        for entry in floors
        if (name := canonicalize_name(entry["package"])) in pinned
        and pinned[name] < Version(str(entry["floor"]))
    ]


def test_no_pin_is_known_to_be_bad() -> None:
    assert known_bad(pins(), advisories()["floors"]) == []
    assert known_bad(pins(CLUSTER / "constraints-store.txt"), advisories()["floors"]) == []


@pytest.mark.parametrize("entry", advisories()["floors"], ids=lambda entry: entry["package"])
def test_control_the_version_before_the_floor_is_found(entry: dict[str, Any]) -> None:
    name = canonicalize_name(entry["package"])
    before = Version(f"{Version(str(entry['floor']))}.dev0")
    assert len(known_bad(pins() | {name: before}, [entry])) == 1
    assert name in pins(), f"{name} is pinned no more: the entry is of no use"
    assert entry["advisories"] and entry["from"].startswith("https://") and entry["about"]


def test_what_an_installation_may_take_without_the_pins_is_not_known_to_be_bad_either() -> None:
    """The ranges of pyproject.toml: their lowest version is what a resolver may choose."""
    text = (ROOT / "pyproject.toml").read_text()
    floors = {canonicalize_name(e["package"]): e["floor"] for e in advisories()["floors"]}
    low = []
    for word in re.findall(r'^  "([A-Za-z][^"]*>=[^"]*)"', text, re.M):
        requirement = Requirement(word)
        name = canonicalize_name(requirement.name)
        lowest = next(Version(s.version) for s in requirement.specifier if s.operator == ">=")
        if name in floors and lowest < Version(str(floors[name])):
            low.append(f"{name}>={lowest}, known to be bad below {floors[name]}")
    assert low == []


@pytest.mark.parametrize("entry", advisories()["open"], ids=lambda entry: entry["package"])
def test_what_has_no_fix_yet_is_never_called(entry: dict[str, Any]) -> None:
    assert entry["why"] and calls(entry["never_called"], _sources()) == []
    source = "engine.load_checkpoint(folder)"
    assert calls(["load_checkpoint"], {"x.py": source}) == ["x.py calls load_checkpoint"]  # control


def calls(names: list[str], sources: dict[str, str]) -> list[str]:
    found = []
    for where, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            called = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
            if called in names:
                found.append(f"{where} calls {called}")
    return found


def _sources() -> dict[str, str]:
    folders = ("medray", "jobs", "serve")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


# --- versions ---------------------------------------------------------------------------------


def images() -> list[tuple[str, str]]:
    """(file, image) of everything that is started."""
    found = [
        (path.name, of(path)[0]["docker"]["image"]) for path in RAY_UP if of(path)[0].get("docker")
    ]
    for file, document in named():
        found += [(file, c["image"]) for pod in pods(document) for c in pod["containers"]]
    return found


def wrong_images(found: list[tuple[str, str]]) -> list[str]:
    """Images that are not medray's at its version and Ray's, nor pinned others."""
    import medray

    tag = f"{medray.__version__}-ray{pins()['ray']}"
    good = {f"REGISTRY/medray:{tag}-{kind}" for kind in ("cpu", "gpu")}
    redis = r"docker\.io/library/redis:\d+\.\d+-alpine"
    return [
        f"{file}: {image}"
        for file, image in found
        if image not in good and not re.fullmatch(redis, image)
    ]


def test_every_image_is_of_this_version_and_of_the_pinned_ray() -> None:
    assert images() and wrong_images(images()) == []
    stale = [("x.yaml", "REGISTRY/medray:0.1.0-ray2.59.0-cpu"), ("y.yaml", "redis:latest")]
    assert len(wrong_images(stale)) == 2  # the control


def test_kuberay_and_the_workers_agree_on_rays_version() -> None:
    for file, spec in clusters():
        assert spec["rayVersion"] == str(pins()["ray"]), file


def test_the_image_is_built_of_the_pins_by_nobody_in_particular() -> None:
    import medray

    text = (CLUSTER / "Containerfile").read_text()
    tag = f"{medray.__version__}-ray{pins()['ray']}"
    assert f"medray:{tag}-gpu" in text and f"medray:{tag}-cpu" in text
    for install in re.findall(r"pip install (?!-c /tmp/pins\.txt).*", text):
        pytest.fail(f"not pinned: {install}")
    last = text.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 1000:100$", last, re.M) and "PIP_NO_INDEX=1" in last
    assert "RAY_AUTH_MODE=token" in last and "curl" not in last
    for line in re.findall(r"^COPY (?:--\S+ )*(.+)$", text, re.M):
        for name in line.split()[:-1]:
            assert name.startswith("/opt/") or (ROOT / name).exists(), name


def test_the_stores_clients_change_no_pin() -> None:
    base, more = pins(), pins(CLUSTER / "constraints-store.txt")
    assert {name for name in more if name in base and more[name] != base[name]} == set()
    assert {"s3fs", "gcsfs", "boto3", "google-api-python-client"} <= set(more)
    assert more["s3fs"].release[:2] == base["fsspec"].release[:2]
