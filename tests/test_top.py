"""`medray top`: reads what runs write, while they run and afterwards."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from medray import cli, top
from medray.errors import UsageError

ROW = {"perf/images_per_s": 20.0, "perf/data_wait_share": 0.25, "mem/peak_gib": 1.5}


def run(folder: Path, state: str = "running", images: int = 400, **status: object) -> str:
    """A run folder with five rows up to `images` and one snapshot."""
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps({"state": state, **status}))
    (folder / "config.yaml").write_text("total_images: 1000\n")
    rows = [
        {"images": images * (k + 1) // 5, "train/loss_d": 5.0 - k, "train/loss_g": 2.0, **ROW}
        for k in range(5)
    ]
    rows.append({"images": images, "snapshot/score": 12.5})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text)
    return str(folder)


def test_a_running_run_shows_rate_wait_losses_score_and_time_left(tmp_path: Path) -> None:
    view = top.look(run(tmp_path / "00001-pggan"))
    assert (view.name, view.state, view.images, view.total) == ("00001-pggan", "running", 400, 1000)
    assert view.left_s == pytest.approx(30.0)
    assert view.losses == {"loss_d": 1.0, "loss_g": 2.0} and view.score == 12.5
    assert view.curve == "█▆▄▂▁"
    shown = top.cells(view)
    assert shown[2:5] == ("400 40%", "20.0", "25.0%") and shown[8] == "30 s"


def test_a_row_that_is_being_written_is_left_for_the_next_look(tmp_path: Path) -> None:
    url = run(tmp_path / "a")
    with open(Path(url, "metrics.jsonl"), "a") as file:
        file.write('{"images": 900, "train/lo')
    assert top.look(url).images == 400
    with open(Path(url, "metrics.jsonl"), "a") as file:
        file.write('ss_d": 1.0}\n')
    assert top.look(url).images == 900


def test_of_a_long_run_only_the_end_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = run(tmp_path / "a")
    monkeypatch.setattr(top, "TAIL_BYTES", 300)
    assert Path(url, "metrics.jsonl").stat().st_size > 300
    view = top.look(url)
    assert view.images == 400 and view.score == 12.5 and len(view.curve) < 5


def test_how_long_ago_the_last_row_came_is_told_of_a_running_run_alone(tmp_path: Path) -> None:
    url, done = run(tmp_path / "a"), run(tmp_path / "b", "complete", 1000)
    os.utime(Path(url, "metrics.jsonl"), (1000, 1000))
    assert top.look(url, now_s=1600.0).age_s == 600.0
    assert "10 min ago" in top.cells(top.look(url, now_s=1600.0))[1]
    assert top.look(done).age_s is None and top.look(done).left_s is None


def test_once_prints_every_run_without_control_codes_and_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(tmp_path / "00001-pggan")
    second = run(tmp_path / "00002-classify", "stopped", reason="stopped at 400 images (SIGTERM)")
    assert cli.main(["top", first, second, "--once"]) == 0
    said = capsys.readouterr().out
    assert "00001-pggan" in said and "00002-classify" in said and "\x1b" not in said
    assert "00002-classify: stopped: stopped at 400 images (SIGTERM)" in said


def test_it_ends_by_itself_when_the_last_run_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = run(tmp_path / "a")
    looks = []

    def end_it(seconds: float) -> None:
        looks.append(seconds)
        assert len(looks) < 3, "it goes on after the run has ended"
        Path(url, "status.json").write_text('{"state": "complete"}')

    monkeypatch.setattr(top.time, "sleep", end_it)
    assert [view.state for view in top._live([url], 0.5)] == ["complete"]
    assert looks == [0.5]


def test_an_object_store_is_read_like_a_folder(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in Path(run(tmp_path / "a")).iterdir():
        memory.pipe_file(f"/top-test/{path.name}", path.read_bytes())
    assert top.look("memory://top-test").images == 400


def test_a_folder_of_something_else_is_named_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no run in .*status\.json"):
        top.look(str(tmp_path))
    assert cli.main(["top", str(tmp_path), "--once"]) == 2
    assert cli.main(["top", run(tmp_path / "a"), "--every", "0"]) == 2


def test_a_curve_without_rise_or_numbers_is_shown_too() -> None:
    assert top.spark([2.0, 2.0]) == "▁▁" and top.spark([]) == ""
    assert top.spark([float("nan"), 0.0, 7.0]) == "▁█"
