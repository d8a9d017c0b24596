#!/usr/bin/env python3
"""Writes jobs/NAME.yaml for each entry of jobs.yaml; `--check` says whether they are as written."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# The image's copy of the checkout (Containerfile).
INSIDE = "/opt/medray"
RETRIES = 3


def versions() -> tuple[str, str]:
    """medray's version and Ray's pin."""
    medray = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    ray = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert medray and ray, "pyproject.toml and constraints.txt name no version"
    return medray[1], ray[1]


def image(kind: str) -> str:
    """The image's name and tag; `kind` is cpu or gpu."""
    return "REGISTRY/medray:{}-ray{}-{}".format(*versions(), kind)


def group(name: str, job: dict[str, Any], capacity: str, priority: int) -> str:
    """One group of workers: spot first, on demand where spot cannot be had."""
    gpu = bool(job.get("gpu"))
    gpu_toleration = "{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}"
    return _filled(
        (HERE / "group.template").read_text(),
        NAME=name,
        GROUP=f"{'gpu' if gpu else 'cpu'}-{capacity}",
        PRIORITY=priority,
        MOST=job["workers"],
        CAPACITY=capacity,
        IMAGE=image("gpu" if gpu else "cpu"),
        CPUS=7 if gpu else 8,
        MEMORY="28Gi" if gpu else "24Gi",
        GPU_LIMIT=', nvidia.com/gpu: "1"' if gpu else "",
        GPU_TOLERATION=f"              - {gpu_toleration}" if gpu else "",
    )


def rendered(name: str, job: dict[str, Any]) -> str:
    """The text of jobs/NAME.yaml."""
    groups = group(name, job, "spot", 10) + group(name, job, "on-demand", 0)
    entrypoint = f"python {INSIDE}/jobs/{job['script']} {' '.join(job['flags'].split())}"
    return _filled(
        (HERE / "job.template").read_text(),
        NAME=name,
        ENTRYPOINT=entrypoint,
        RETRIES=RETRIES,
        RAY=versions()[1],
        CPU_IMAGE=image("cpu"),
        GROUPS=groups.rstrip("\n"),
    )


def _filled(text: str, **values: Any) -> str:
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    lines = [line for line in text.splitlines() if line.strip() or line == ""]
    return "\n".join(line for line in lines if line) + "\n"


def main() -> int:
    """The command: 1 where `--check` finds a file that is not as rendered."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    jobs = yaml.safe_load((HERE / "jobs.yaml").read_text())
    wanted = {HERE / "jobs" / f"{name}.yaml": rendered(name, job) for name, job in jobs.items()}
    stale = [path for path, text in wanted.items() if not _is(path, text)]
    stale += sorted(set((HERE / "jobs").glob("*.yaml")) - set(wanted))
    for path in stale:
        if check:
            print(f"not as rendered: {path.relative_to(ROOT)}", file=sys.stderr)
        elif path in wanted:
            path.write_text(wanted[path])
        else:
            path.unlink()
    return 1 if check and stale else 0


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main())
