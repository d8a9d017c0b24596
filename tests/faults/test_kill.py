"""The random killer itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults import kill

# Appends a line per 20 ms until there are ten, and goes on with those that are there.
COUNTER = """
import sys, time, pathlib
path = pathlib.Path(sys.argv[1])
path.open("a").close()
while len(path.read_text().splitlines()) < 10:
    time.sleep(0.02)
    with path.open("a") as file:
        file.write("line\\n")
"""


def _run(tmp_path: Path, seed: int) -> list[kill.Kill]:
    command = [sys.executable, "-c", COUNTER, str(tmp_path / "out" / "lines")]
    (tmp_path / "out").mkdir(parents=True)
    return kill.run_killed(command, seed=seed, kills=4, clean_s=0.3)


def test_kills_are_drawn_from_the_seed_and_the_command_ends_in_the_end(tmp_path: Path) -> None:
    first, second = (_run(tmp_path / name, 3) for name in "ab")
    assert [k.delay_s for k in first] == [k.delay_s for k in second]
    assert not all(k.finished for k in first), "no attempt was killed"
    trees = [kill.tree_sha256(tmp_path / name / "out") for name in "ab"]
    assert trees[0] == trees[1] and list(trees[0]) == ["lines"]


def test_a_command_that_fails_by_itself_is_told_with_its_seed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(AssertionError, match=r"seed 5.*ended with 3:\nbroken"):
        script = "import sys; print('broken', flush=True); sys.exit(3)"
        kill.run_killed([sys.executable, "-c", script], seed=5, kills=0, clean_s=1, log=log)


def test_a_kill_reaches_the_whole_group(tmp_path: Path) -> None:
    script = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n"
        "    open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "time.sleep(60)"
    )
    path = tmp_path / "child"
    process = subprocess.Popen([sys.executable, "-c", script, str(path)], start_new_session=True)
    kill.wait_for(lambda: path.exists() and bool(path.read_text()))
    child = int(path.read_text())
    kill.kill_group(process)
    kill.wait_for(lambda: not _runs(child))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    # A dead child that nobody has waited for is still there in name.
    return state != "Z"


def test_a_frozen_process_stands_still_and_wakes(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    script = "import sys, time\nwhile True: open(sys.argv[1], 'a').write('x'); time.sleep(0.01)"
    process = subprocess.Popen([sys.executable, "-c", script, str(path)])
    try:
        kill.wait_for(path.exists)
        with kill.frozen(process.pid):
            time.sleep(0.05)
            size = path.stat().st_size
            time.sleep(0.1)
            assert path.stat().st_size == size
        kill.wait_for(lambda: path.stat().st_size > size)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_trees_differ_by_one_byte_and_by_what_is_left_out(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "file").write_text("same")
        (tmp_path / name / "time").write_text(name)

    def keep(name: str) -> bool:
        return name != "time"

    assert kill.tree_sha256(tmp_path / "a", keep) == kill.tree_sha256(tmp_path / "b", keep)
    assert kill.tree_sha256(tmp_path / "a") != kill.tree_sha256(tmp_path / "b")
    (tmp_path / "b" / "deep" / "file").write_text("samf")
    assert kill.tree_sha256(tmp_path / "a", keep) != kill.tree_sha256(tmp_path / "b", keep)
