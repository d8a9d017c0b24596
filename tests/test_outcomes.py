"""The record of what faults cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import outcomes


def note(**more: object) -> dict[str, object]:
    usual = {
        "part": "archive",
        "fault": "node lost",
        "trials": 1,
        "lost": 1,
        "unit": "shards",
        "recovered_s": 2.25,
        "wrong": 0,
    }
    return outcomes.record(**{**usual, **more})


def test_lines_are_appended_to_the_file_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "outcomes.jsonl"
    monkeypatch.setenv(outcomes.FILE, str(path))
    note()
    note(trials=4, lost=2, recovered_s=None, wrong=1)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["recovered_s"], line["wrong"]) for line in lines] == [(2.2, 0), (None, 1)]


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(outcomes.FILE, raising=False)
    monkeypatch.chdir(tmp_path)
    assert note()["wrong"] == 0
    assert list(tmp_path.iterdir()) == []
