"""Jobs through `ray job submit`: their own exit codes, relative paths, plain output, the token."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from medray import cli, submit
from tests.faults.kill import wait_for
from tests.jobs import pggan_runs
from tests.jobs.pggan_runs import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
SMALL = ("pggan", *pggan_runs.SMALL, "--backend", "local")
RAY = (sys.executable, "-m", "ray.scripts.scripts", "job", "submit")
LONGEST_S = 400


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the user's commands are given in."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def environment(home: Path) -> Iterator[dict[str, str]]:
    """What a shell needs to reach a Ray that was started in the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.delenv("RAY_ADDRESS", raising=False)
        with submit.local_ray() as (address, token):
            yield {
                **pggan_runs.environment(home / "cache"),
                "RAY_API_SERVER_ADDRESS": address,
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": token,
            }


class Shell:
    """A command with its output in a file, as on a cluster's front end."""

    def __init__(self, command: tuple[str, ...], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=output
            )

    def ends(self) -> tuple[int, str]:
        """Its exit code and what it said."""
        try:
            return self.process.wait(LONGEST_S), self.log.read_text()
        finally:
            self.process.kill()


def medray(environment: dict[str, str], home: Path, name: str, *argv: str) -> Shell:
    """`medray submit ...`, given in `home`."""
    command = (sys.executable, "-m", "medray.cli", "submit", *argv)
    return Shell(command, {**environment, "MEDRAY_SUBMIT_DIR": str(home)}, home / f"{name}.log")


@pytest.fixture(scope="module")
def failing(environment: dict[str, str], home: Path) -> dict[str, Shell]:
    """Three submissions that fail, side by side."""
    (home / "empty").mkdir()
    refused = (*RAY, "--working-dir", ".", "--", "python", "jobs/pggan.py", "--run-dir", "runs/x")
    return {
        "usage": medray(environment, home, "usage", "pggan", "--final-pxx", "16"),
        "data": medray(environment, home, "data", *SMALL, "--run-dir", "bad", "--data", "empty"),
        "refused": Shell(refused, environment, home / "refused.log"),
    }


def test_a_wrong_flag_comes_back_as_2(failing: dict[str, Shell]) -> None:
    code, said = failing["usage"].ends()
    assert code == 2 and "did you mean --final-px?" in said, said


def test_bad_data_comes_back_as_3_with_its_message(failing: dict[str, Shell], home: Path) -> None:
    code, said = failing["data"].ends()
    assert code == 3 and f"{home}/empty" in said and "fix:" in said, said
    assert "Traceback" not in said and len(said.splitlines()) <= 15, said
    status = json.loads((home / "bad" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 3)


def test_a_relative_run_folder_that_would_be_lost_with_the_package_is_refused(
    failing: dict[str, Shell],
) -> None:
    code, said = failing["refused"].ends()
    assert code != 0 and "'runs/x' would be lost inside Ray's package cache" in said, said
    assert "absolute path" in said and "MEDRAY_SUBMIT_DIR" in said


def test_a_job_that_ends_well_comes_back_as_0_with_its_results_where_the_command_was_given(
    environment: dict[str, str], home: Path
) -> None:
    code, said = medray(environment, home, "good", *SMALL, "--run-dir", "results/good").ends()
    assert code == 0, said
    assert (home / "results" / "good" / "model" / "generator.safetensors").exists()
    assert f"{home}/results/good/report.html" in said, "says where the pictures are"
    assert [c for c in said if ord(c) < 32 and c != "\n"] == [], "no control codes"
    # One line more of progress for each half minute that it takes.
    lines = [line for line in said.splitlines() if not re.match(r"train [\d,]+/[\d,]+ ", line)]
    assert "medray-exit" not in said and len(lines) <= 20, said


def test_a_stopped_job_comes_back_as_75_and_the_same_command_goes_on(
    environment: dict[str, str], home: Path
) -> None:
    argv = (
        *SMALL,
        "--run-dir",
        "stopped",
        "--resume",
        "--total-images",
        "4000",
        "--snapshot-images",
        "2000",
    )
    shell = medray(environment, home, "stopped", *argv)
    folder = home / "stopped"
    wait_for((folder / "metrics.jsonl").exists, LONGEST_S)
    os.kill(pggan_runs.writer(folder)["pid"], signal.SIGTERM)
    code, said = shell.ends()
    assert code == 75 and "everything is saved" in said and "--resume" in said, said
    assert pggan_runs.sound_checkpoints(folder)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("package", ("--working-dir", ".", "--", "python", "jobs/pggan.py")),
        # Where Ray was started in the checkout: by its first line, no package.
        ("executable", ("--", "jobs/pggan.py")),
    ],
)
def test_plain_ray_job_submit_works(
    name: str, how: tuple[str, ...], environment: dict[str, str], home: Path
) -> None:
    folder = home / name
    flags = (*SMALL[1:], "--total-images", "16", "--run-dir", str(folder))
    code, said = Shell((*RAY, *how, *flags), environment, home / "plain.log").ends()
    assert code == 0, said
    assert (folder / "DONE").exists() and f"{folder}/report.html" in said


def test_local_gives_the_job_its_ray_and_its_exit_code(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    address, token = environment["RAY_API_SERVER_ADDRESS"], environment["RAY_AUTH_TOKEN"]
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "MEDRAY_SUBMIT_DIR"):
        monkeypatch.setenv(name, "elsewhere")
    monkeypatch.setattr(submit, "local_ray", lambda: contextlib.nullcontext((address, token)))
    monkeypatch.chdir(ROOT)
    assert cli.main(["local", "pggan", "--batch", "0"]) == 2
    assert "--batch" in capfd.readouterr().err


# --- the token --------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "0" * 64], ids=["none", "wrong"])
def test_without_the_token_nothing_is_taken(environment: dict[str, str], token: str | None) -> None:
    url = f"{environment['RAY_API_SERVER_ADDRESS']}/api/jobs/"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    body = json.dumps({"entrypoint": "true"}).encode()
    for data in (None, body):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30)
        assert caught.value.code in (401, 403)
        caught.value.close()


def test_with_the_token_the_same_question_is_answered(environment: dict[str, str]) -> None:
    url = f"{environment['RAY_API_SERVER_ADDRESS']}/api/jobs/"
    headers = {"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"}
    with urllib.request.urlopen(urllib.request.Request(url, None, headers), timeout=30) as answer:
        assert answer.status == 200


def test_a_submission_with_a_wrong_token_is_an_error_that_names_it(
    environment: dict[str, str], home: Path
) -> None:
    wrong = {**environment, "RAY_AUTH_TOKEN": "0" * 64}
    code, said = medray(wrong, home, "wrong", "pggan", "--dry-run").ends()
    assert code == 4 and "RAY_AUTH_TOKEN" in said and "Traceback" not in said, said
    assert len(said.splitlines()) <= 15, said


def test_a_submission_to_a_dead_cluster_is_an_error_that_names_it(
    environment: dict[str, str], home: Path
) -> None:
    dead = {**environment, "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
    code, said = medray(dead, home, "dead", "pggan", "--dry-run").ends()
    assert code == 4 and "127.0.0.1:9" in said and "RAY_API_SERVER_ADDRESS" in said, said
    assert "Traceback" not in said and len(said.splitlines()) <= 15, said
