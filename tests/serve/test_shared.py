"""What replicas share: kept over a restart, told once, added up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medray.errors import ResourceError
from serve import shared as shared_module
from serve.metrics import Metrics
from serve.records import ModelInfo, ModelSpec
from serve.registry import Version
from serve.shared import Shared
from tests.serve.conftest import FullDisk
from tests.serve.fakes import args


def version(folder: Path, name: str) -> dict[str, Any]:
    spec = ModelSpec("generator", str(folder / name))
    return Version(spec, ModelInfo("generator", "generator", name, ("a",), 8)).body()


def test_the_table_is_sent_when_it_changed_and_kept_over_a_restart(tmp_path: Path) -> None:
    shared = Shared(args(tmp_path))
    _, number, table = shared.exchange("gate", {}, None, -1)
    assert table == {}
    assert shared.exchange("gate", {}, None, number)[2] is None
    shared.put("generator", version(tmp_path, "two"), 1.0)
    _, later, table = shared.exchange("gate", {}, None, number)
    assert (
        later != number and table is not None and table["generator"][0]["info"]["sha256"] == "two"
    )
    again = Shared(args(tmp_path)).exchange("gate", {}, None, -1)[2]
    assert again == table
    # Started with other models, what was put before is not what is wanted.
    other = args(tmp_path, generator=str(tmp_path / "other"))
    assert Shared(other).exchange("gate", {}, None, -1)[2] == {}


def test_on_a_full_disk_a_put_changes_nothing_and_rates_are_given_out_as_before(
    tmp_path: Path, full_disk: FullDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_module, "SAVE_EVERY_S", 0.0)
    shared = Shared(args(tmp_path))
    shared.put("generator", version(tmp_path, "one"), 1.0)
    ask = {"held": 0.0, "images": 0.0, "day": -1.0, "rate": 5.0, "burst": 10.0, "quota": 100.0}
    before = shared.exchange("gate", {}, None, -1)
    with full_disk():
        with pytest.raises(ResourceError, match="No space left"):
            shared.put("generator", version(tmp_path, "two"), 1.0)
        assert shared.exchange("gate", {}, None, -1) == before
        granted, _, _ = shared.exchange("gate", {"key": {**ask, "block": 50.0}}, None, -1)
    assert granted["key"]["requests"] == 10 and granted["key"]["images"] == 50
    shared.put("generator", version(tmp_path, "two"), 1.0)
    assert Shared(args(tmp_path)).exchange("gate", {}, None, -1)[2] != before[2]


def test_a_damaged_state_is_no_reason_not_to_start(tmp_path: Path) -> None:
    Shared(args(tmp_path)).put("generator", version(tmp_path, "two"), 1.0)
    (tmp_path / "state" / "shared.json").write_text("{half")
    assert Shared(args(tmp_path)).exchange("gate", {}, None, -1)[2] == {}


def test_counts_of_all_replicas_are_added_up(tmp_path: Path) -> None:
    shared = Shared(args(tmp_path))
    for replica, images in (("a", 3), ("b", 4)):
        counts = Metrics()
        counts.count("medray_images_total", "m", "generate", by=images)
        shared.exchange(replica, {}, counts.snapshot(), -1)
    summed = shared.counts("c", Metrics().snapshot())
    assert summed["values"] == [["medray_images_total", ["m", "generate"], 7.0]]
