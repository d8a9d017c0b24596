"""Secrets are not among what `medray submit` tells a cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medray import submit
from medray.submit import SECRETS


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What would be run for `medray submit pack`."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "pack.py").touch()
    monkeypatch.chdir(tmp_path)
    for name in SECRETS:
        monkeypatch.setenv(name, "canary-of-a-secret")
    monkeypatch.setenv("MEDRAY_LOG_LEVEL", "debug")
    seen: list[str] = []
    monkeypatch.setattr(submit, "_run_and_read_code", lambda words: seen.extend(words) or 0)
    monkeypatch.setattr(submit, "_check_package", lambda folder: None)
    assert submit.submit("pack", ["--out", "s3://x/y"]) == 0
    return seen


def test_a_secret_is_in_no_word_of_the_command_and_that_is_said(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert not any("canary" in word for word in command)
    given = json.loads(command[command.index("--runtime-env-json") + 1])["env_vars"]
    assert given["MEDRAY_LOG_LEVEL"] == "debug"  # the control: what is no secret is sent


def test_it_says_which_and_where_they_must_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert submit._sent({"MEDRAY_SECRET_KEY": "canary", "MEDRAY_RUNS_DIR": "r", "HOME": "/"}) == {
        "MEDRAY_RUNS_DIR": "r"
    }
    said = capsys.readouterr().err
    assert "MEDRAY_SECRET_KEY: not sent" in said and "canary" not in said
    submit._sent({"MEDRAY_RUNS_DIR": "r"})
    assert submit._sent({"MEDRAY_SECRET_KEY": "canary"}, ours=True) == {}
    assert "not sent" not in capsys.readouterr().err


def test_a_ray_of_this_machine_has_them_in_its_own_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Started(Exception):
        """Ends the start."""

    seen: dict[str, str] = {}

    def popen(command: list[str], env: dict[str, str], **_: object) -> None:
        seen.update(env)
        assert not any("canary" in word for word in command)
        raise Started

    monkeypatch.setenv("MEDRAY_SECRET_KEY", "canary")
    monkeypatch.setattr(submit.subprocess, "Popen", popen)
    with pytest.raises(Started), submit.local_ray():
        pass
    assert seen["MEDRAY_SECRET_KEY"] == "canary" and seen["RAY_AUTH_MODE"] == "token"
