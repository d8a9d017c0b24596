"""The run folder: ways in, what it refuses, what it says, what a resumed run's curves are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from medray import lease, log
from medray.errors import DataError, ResourceError, Stopped, UsageError
from medray.lease import LeaseLost
from medray.rundir import RunDir, numbered
from medray.store import Store
from tests.faults.kill import tree_sha256

CONFIG = "seed: 0\nfinal_px: 64\nlr: 0.001\nprecision: bf16\nworkers: 1\nresume: false\n"
COMMAND = ["medray", "pggan", "--run-dir", "a folder", "--overwrite", "--init-from", "x"]


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(lease, "SETTLE_S", 0.0)
    return str(tmp_path / "run") if request.param == "folder" else f"memory:/{tmp_path}/run"


def start(url: str, config: str = CONFIG, **ways: Any) -> RunDir:
    return RunDir.start(
        url,
        config_yaml=config,
        config_hash="0" * 64,
        command=COMMAND,
        changeable=frozenset({"workers"}),
        wait_s=0.2,
        **ways,
    )


def read(run: RunDir, name: str) -> Any:
    return json.loads(run.store.read_bytes(name))


# --- ways in ----------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", [False, True])
def test_an_absent_or_empty_folder_starts_with_and_without_resume(url: str, resume: bool) -> None:
    with start(url, resume=resume) as run:
        assert not run.complete
        assert run.store.read_bytes("config.yaml").decode() == CONFIG
        assert read(run, "status.json")["state"] == "running"
        assert read(run, "env.json")["packages"]["numpy"]
        command = "medray pggan --run-dir 'a folder' --overwrite --init-from x\n"
        assert run.store.read_bytes("command.txt").decode() == command
        assert read(run, "status.json")["resume_command"] == (
            "medray pggan --run-dir 'a folder' --resume"
        )


def test_a_folder_that_is_not_empty_is_refused_with_the_ways_out(url: str) -> None:
    start(url).close()
    with pytest.raises(UsageError, match="is not empty") as caught:
        start(url)
    for way in ("--resume", "--overwrite", "--run-dir", "--init-from"):
        assert way in caught.value.hint
    start(url, resume=True).close()


def test_overwrite_empties_the_folder_but_for_the_lease(url: str) -> None:
    with start(url) as run:
        run.write_picture("deep/fakes.png", b"png")
        run.append_metrics({"images": 8})
        run.finish()
    with start(url, CONFIG.replace("64", "32"), overwrite=True) as run:
        assert run.lease.epoch == 2 and not run.complete
        left = [n for n in run.store.names() if not n.startswith(".lease/")]
        texts = {"command.txt", "config.yaml", "env.json", "status.json"}
        assert texts <= set(left) <= texts | {"train.log"}
        assert "final_px: 32" in run.store.read_bytes("config.yaml").decode()


@pytest.mark.parametrize("way", ["resume", "overwrite"])
def test_a_folder_that_is_no_run_folder_is_never_touched(tmp_path: Path, way: str) -> None:
    (tmp_path / "thesis.tex").write_text("three years")
    with pytest.raises(UsageError, match="no run folder"):
        start(str(tmp_path), **{way: True})
    assert (tmp_path / "thesis.tex").read_text() == "three years"
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_start_that_died_before_its_configuration_was_there_left_an_empty_folder(
    tmp_path: Path,
) -> None:
    for name in (".lease/driver.lock", "config.yaml.17.part", "checkpoints/x/y.part"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    start(str(tmp_path)).close()
    assert not list(tmp_path.rglob("*.part"))


def test_a_file_or_an_unknown_scheme_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="must be a folder"):
        start(str(tmp_path / "file"))
    with pytest.raises(UsageError, match="cannot open nowhere://x"):
        start("nowhere://x")


def test_a_complete_run_says_so_and_is_not_touched(url: str) -> None:
    with start(url) as run:
        run.finish({"images": 8})
    before = {name: run.store.read_bytes(name) for name in run.store.names()}
    with start(url, resume=True) as again:
        assert again.complete
    after = {name: run.store.read_bytes(name) for name in run.store.names()}
    lease_record = ".lease/epoch.json"
    assert {k: v for k, v in before.items() if k != lease_record} == (
        {k: v for k, v in after.items() if k != lease_record}
    )


CHANGED = {
    "seed: 0": "seed: 1",
    "final_px: 64": "final_px: 128",
    "lr: 0.001": "lr: 0.002",
    "precision: bf16": "precision: fp32",
}


@pytest.mark.parametrize("old", CHANGED)
def test_a_changed_field_is_refused_on_resume_with_old_and_new(url: str, old: str) -> None:
    start(url).close()
    name, _, before = old.partition(": ")
    after = CHANGED[old].partition(": ")[2]
    with pytest.raises(UsageError, match=f"(?m)^    {name}: {before} -> {after}$") as caught:
        start(url, CONFIG.replace(old, CHANGED[old]), resume=True)
    assert str(caught.value).count("->") == 1 and "--init-from" in caught.value.hint


def test_all_changes_are_listed_at_once_new_and_lost_keys_too(url: str) -> None:
    start(url, "a: 1\nnested:\n  b: 2\n  c: 3\ngone: 4\n").close()
    with pytest.raises(UsageError) as caught:
        start(url, "a: 2\nnested:\n  b: 2\n  c: 5\nnew: 6\n", resume=True)
    lines = re.findall(r"(?m)^    (.*)$", caught.value.message)
    assert lines == [
        "a: 1 -> 2",
        "nested.c: 3 -> 5",
        "gone: 4 -> (absent)",
        "new: (absent) -> 6",
    ]


def test_an_edited_configuration_in_the_folder_is_refused_too(tmp_path: Path) -> None:
    start(str(tmp_path / "run")).close()
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace("lr: 0.001", "lr: 0.1"))
    with pytest.raises(UsageError, match="lr: 0.1 -> 0.001"):
        start(str(tmp_path / "run"), resume=True)
    path.write_text("{ not yaml")
    with pytest.raises(DataError, match="is not YAML"):
        start(str(tmp_path / "run"), resume=True)
    with start(str(tmp_path / "run"), overwrite=True) as run:
        assert run.config()["lr"] == 0.001, "a folder whose configuration is garbled can be emptied"


def test_what_may_change_changes_and_auto_takes_what_was_chosen(url: str) -> None:
    start(url).close()
    changed = CONFIG.replace("workers: 1", "workers: 4").replace("resume: false", "resume: true")
    with start(url, changed.replace("bf16", "auto"), resume=True) as run:
        stored = run.store.read_bytes("config.yaml").decode()
    assert "workers: 4" in stored and "precision: bf16" in stored
    assert run.store.read_bytes("command.txt").decode().count("\n") == 2


def test_another_environment_on_resume_is_told(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with start(url) as run:
        env = read(run, "env.json")
    start(url, resume=True).close()
    assert "another environment" not in capsys.readouterr().err
    env["packages"]["numpy"] = "1.0"
    run.store.write_bytes("env.json", json.dumps(env).encode())
    start(url, resume=True).close()
    assert re.search(r"another environment.*packages.numpy: 1\.0 -> ", capsys.readouterr().err)


def test_a_second_driver_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with start(str(folder)) as run:
        run.append_metrics({"images": 8})
        before = tree_sha256(folder, lambda name: name != "train.log")
        for way in ("resume", "overwrite"):
            with pytest.raises(ResourceError, match="in use by process"):
                start(str(folder), **{way: True})
        assert before == tree_sha256(folder, lambda name: name != "train.log")
    start(str(folder), resume=True).close()


# --- workers ----------------------------------------------------------------------------------


def test_a_worker_of_an_older_start_writes_nothing(url: str) -> None:
    first = start(url)
    worker = RunDir.attach(url, first.lease.epoch, writer=True)
    worker.append_metrics({"images": 8})
    RunDir.attach(url, first.lease.epoch, writer=True).close()
    for write in (
        lambda: worker.append_metrics({"images": 16}),
        lambda: worker.cut_metrics(0),
        lambda: worker.write_picture("a.png", b""),
        lambda: worker.write_text("a.html", ""),
        lambda: worker.status("failed"),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert first.metrics() == [{"images": 8}] and not first.store.exists("a.png")
    worker.close()
    first.close()
    with pytest.raises(LeaseLost):
        RunDir.attach(url, 7)


# --- metrics ----------------------------------------------------------------------------------


def test_rows_past_a_checkpoint_are_dropped_as_if_never_written(url: str) -> None:
    rows = [{"images": n, "loss": n / 7} for n in range(8, 48, 8)]
    with start(url) as run:
        for row in rows:
            run.append_metrics(row)
        undisturbed = run.store.read_bytes("metrics.jsonl")
        run.cut_metrics(24)
        assert run.metrics() == rows[:3]
        for row in rows[3:]:
            run.append_metrics(row)
        assert run.store.read_bytes("metrics.jsonl") == undisturbed
        run.cut_metrics(-1)
        assert run.metrics() == []


def test_a_torn_last_row_is_dropped(tmp_path: Path) -> None:
    with start(str(tmp_path / "run")) as run:
        run.append_metrics({"images": 8})
        with (tmp_path / "run" / "metrics.jsonl").open("ab") as file:
            file.write(b'{"images": 1')
        run.cut_metrics(8)
        assert run.store.read_bytes("metrics.jsonl") == b'{"images": 8}\n'


def test_a_row_without_images_is_refused(url: str) -> None:
    with start(url) as run, pytest.raises(ValueError, match=r"must have 'images', got \['loss'\]"):
        run.append_metrics({"loss": 1})


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../../x", "a//b"])
def test_names_outside_the_folder_are_refused(url: str, name: str) -> None:
    with start(url) as run, pytest.raises(ValueError, match="must be relative"):
        run.write_text(name, "x")


# --- the end ----------------------------------------------------------------------------------


def test_a_finished_run_has_summary_versions_and_a_last_state(url: str) -> None:
    with start(url) as run:
        run.finish({"images": 48, "duration_s": 1.5})
        assert run.complete
        summary, status = read(run, "summary.json"), read(run, "status.json")
    assert summary["images"] == 48 and summary["environment"]["hardware"]["cores"] >= 1
    assert (status["state"], status["exit_code"], status["resume_command"]) == ("complete", 0, "")


ENDS = {
    "failed 3": DataError("label 7", code="MR-D014", hint="add it"),
    "stopped 75": Stopped("preempted", hint="again"),
    "failed 1": ZeroDivisionError("x"),
    "interrupted 130": KeyboardInterrupt(),
    "interrupted 143": SystemExit(143),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_ended_a_run_stands_in_its_status(url: str, end: str) -> None:
    error = ENDS[end]
    with pytest.raises(type(error)), start(url):
        raise error
    status = json.loads(Store(url).read_bytes("status.json"))
    assert f"{status['state']} {status['exit_code']}" == end
    assert status["reason"] and status["resume_command"].endswith("--resume")
    start(url, resume=True).close()


def test_a_worker_that_fails_leaves_the_status_to_the_driver(url: str) -> None:
    with start(url) as run:
        with pytest.raises(ZeroDivisionError), RunDir.attach(url, 1):
            raise ZeroDivisionError
        assert read(run, "status.json")["state"] == "running"


def test_the_log_has_every_line_and_grows_over_starts(url: str) -> None:
    for number in (1, 2):
        with start(url, resume=True) as run:
            log.debug("detail", f"line {number}")
    lines = run.store.read_bytes("train.log").decode().splitlines()
    assert [line.split(" ", 1)[1] for line in lines if "line" in line] == ["line 1", "line 2"]


def _say(url: str, epoch: int, writer: bool, line: str) -> None:
    with RunDir.attach(url, epoch, writer=writer):
        log.event("said", line)


def test_the_log_of_a_folder_has_the_lines_of_the_worker_that_writes(tmp_path: Path) -> None:
    folder, context = str(tmp_path / "run"), get_context("forkserver")
    with start(folder) as run:
        log.event("said", "driver before")
        for writer, line in ((True, "from rank 0"), (False, "from rank 1")):
            process = context.Process(target=_say, args=(folder, run.lease.epoch, writer, line))
            process.start()
            process.join(60)
            assert process.exitcode == 0
        log.event("said", "driver after")
    lines = [line.split(" ", 1)[1] for line in _log_lines(folder)]
    assert lines == ["driver before", "from rank 0", "driver after"]


def _log_lines(url: str) -> list[str]:
    return Store(url).read_bytes("train.log").decode().splitlines()


def test_a_worker_in_the_drivers_own_process_writes_each_line_once(url: str) -> None:
    with start(url) as run:
        with RunDir.attach(url, run.lease.epoch, writer=True) as worker:
            log.event("said", "working")
            worker.append_metrics({"images": 8})
            assert _log_lines(url)[-1].endswith(" working"), "not only at the end"
        log.event("said", "worked")
    assert [line.split(" ", 1)[1] for line in _log_lines(url)] == ["working", "worked"]


@pytest.mark.parametrize("fenced", [True, False])
def test_a_worker_that_was_replaced_adds_nothing_to_the_log(
    url: str, fenced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fenced:  # the negative control
        monkeypatch.setattr(lease, "_check", lambda *_: None)
    with start(url) as run, RunDir.attach(url, run.lease.epoch, writer=True):
        log.event("said", "before")
        RunDir.attach(url, run.lease.epoch, writer=True).close()
        log.event("said", "awake again")
    said = "".join(_log_lines(url)) if run.store.exists("train.log") else ""
    assert ("awake again" in said) is not fenced


def test_an_unknown_state_is_refused(url: str) -> None:
    with start(url) as run, pytest.raises(ValueError, match="state must be one of running, "):
        run.status("finished")


# --- numbered folders -------------------------------------------------------------------------


def test_folders_are_numbered_and_latest_points_to_the_last(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    made = [Path(numbered(str(runs), f"pggan-{n}")) for n in range(3)]
    assert [p.name for p in made] == ["00000-pggan-0", "00001-pggan-1", "00002-pggan-2"]
    assert os.readlink(runs / "latest") == "00002-pggan-2"
    (runs / "00041-old").mkdir()
    assert Path(numbered(str(runs), "x")).name == "00042-x"
    (runs / "00042-x").rmdir()
    assert Path(numbered(str(runs), "y")).name == "00043-y", "a removed number is not used again"


def _number(folder: str) -> str:
    return numbered(folder, "x")


def test_commands_at_the_same_instant_get_different_numbers(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("forkserver")) as pool:
        made = list(pool.map(_number, [str(tmp_path / "runs")] * 24))
    assert sorted(Path(p).name for p in made) == [f"{n:05d}-x" for n in range(24)]


def test_a_url_is_not_numbered_and_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="local disk only"):
        numbered("memory://runs", "x")
    (tmp_path / "runs").write_text("")
    with pytest.raises(ResourceError, match="cannot make a run folder"):
        numbered(str(tmp_path / "runs"), "x")


def test_the_run_folder_imports_no_heavy_library() -> None:
    code = (
        "import sys, medray.rundir, medray.checkpoints; "
        "sys.exit(bool({'ray', 'torch', 'cupy', 'pydicom', 'monai'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
