"""`make models`: its commands are ones that medray takes, in order; what is finished is skipped."""

import importlib
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from medray.config import parse

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {
    "pack": "PackJob",
    "pggan": "PgganJob",
    "classify": "ClassifyJob",
    "latents": "LatentsJob",
}

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def commands(folder: Path) -> list[list[str]]:
    """What `make models` would run with sets and models in `folder`: job name and flags."""
    places = [f"SETS={folder}/sets", f"MODELS={folder}/models"]
    told = subprocess.run(
        ["make", "--no-print-directory", "-n", "models-all", *places],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = told.stdout.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if "/bin/medray " in line]


def test_every_command_is_one_that_its_job_takes(tmp_path: Path) -> None:
    found = commands(tmp_path)
    names = [name for name, *_ in found]
    assert sorted(names) == sorted(2 * ["pack", "pggan", "classify", "classify", "latents"])
    for name, *flags in found:
        flags = [f"{ROOT / flag}" if flag.startswith("jobs/configs/") else flag for flag in flags]
        config = parse(
            getattr(importlib.import_module(f"jobs.{name}"), CONFIGS[name]), flags, prog=name
        )
        assert name in ("pack", "latents") or config.resume


def test_steering_classifier_and_judge_share_neither_patients_nor_network(tmp_path: Path) -> None:
    from jobs.classify import ClassifyJob

    runs = {}
    for name, *flags in commands(tmp_path):
        if name == "classify":
            flags = [f"{ROOT / flag}" if flag.startswith("jobs/") else flag for flag in flags]
            config = parse(ClassifyJob, flags, prog=name)
            runs[Path(str(config.run_dir)).name] = config
    for part in ("chest", "brain"):
        steers, judges = runs[f"{part}-classifier"], runs[f"{part}-judge"]
        assert {steers.patients, judges.patients} == {"half-a", "half-b"}
        assert steers.architecture != judges.architecture and steers.seed != judges.seed


def test_what_is_finished_is_left_alone_and_the_rest_is_made(tmp_path: Path) -> None:
    for done in ("sets/chest64/index.json", "sets/lgg64/index.json", "models/chest-generator/DONE"):
        (tmp_path / done).parent.mkdir(parents=True)
        (tmp_path / done).touch()
    found = [" ".join(command) for command in commands(tmp_path)]
    assert not any(line.startswith("pack") for line in found)
    assert not any("--run-dir" in line and "chest-generator" in line for line in found)
    assert any("--run-dir" in line and "brain-generator" in line for line in found)
    assert found[-1].startswith("latents")
    # A newer set does not make models of it again: a run belongs to its data by digest.
    (tmp_path / "sets/chest64/index.json").touch()
    assert [" ".join(command) for command in commands(tmp_path)] == found
