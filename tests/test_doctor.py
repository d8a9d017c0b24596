"""`medray doctor`: what it finds, and that it says what to do."""

from __future__ import annotations

import importlib.metadata
import os
import socket
from pathlib import Path

import pytest

from medray import cli, doctor
from medray.store import Store


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MODE", "TOKEN", "TOKEN_PATH"):
        monkeypatch.delenv(f"RAY_AUTH_{name}", raising=False)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_it_names_versions_cores_gpu_disk_token_and_network(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    for word in ("python", "cores", "torch", "ray", "gpu", "disk", "ray token", "network"):
        assert any(line.startswith(word) for line in said.splitlines()), word
    assert importlib.metadata.version("ray") in said


def test_the_speed_of_a_store_is_measured_and_nothing_is_left_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", str(tmp_path / "runs")]) == 0
    assert "MiB/s" in capsys.readouterr().out
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_store_that_cannot_be_written_is_exit_4_with_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["doctor", str(tmp_path / "file" / "runs")]) == 4
    assert "do: check the URL" in capsys.readouterr().out


def test_a_store_that_returns_other_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Store, "read_bytes", lambda self, name: b"something else")
    assert doctor._storage(str(tmp_path)) is False
    assert "do: do not use this store" in capsys.readouterr().out


def test_the_token_is_never_shown_and_each_lack_has_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    doctor._token()
    assert "do: ray get-auth-token --generate" in capsys.readouterr().out
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 8 + "SECRET")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    doctor._token()
    said = capsys.readouterr().out
    assert "SECRET" not in said and "do:" not in said
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    doctor._token()
    assert "do: unset RAY_AUTH_MODE" in capsys.readouterr().out


def test_a_token_that_others_can_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "token"
    path.write_text("SECRET")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    os.chmod(path, 0o644)
    doctor._token()
    assert f"do: chmod 600 {path}" in capsys.readouterr().out
    os.chmod(path, 0o600)
    doctor._token()
    said = capsys.readouterr().out
    assert "do:" not in said and "SECRET" not in said


def test_an_old_ray_and_a_cluster_that_does_not_answer_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen()
        port = door.getsockname()[1]
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{port}")
        doctor._ray()
        said = capsys.readouterr().out
        assert f"127.0.0.1:{port}: answers" in said and "do:" not in said
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.55.1")
    doctor._ray()
    said = capsys.readouterr().out
    assert "no answer" in said and "do: pip install -c constraints.txt ray" in said


def test_a_full_disk_has_a_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "LOW_DISK_GIB", 1e9)
    monkeypatch.setattr(doctor, "LOW_SHM_GIB", 0.0)
    doctor._disk()
    said = capsys.readouterr().out
    assert "do: free some" in said and "shm-size" not in said
