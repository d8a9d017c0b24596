"""`jobs/pack.py` as a person uses it: flags, exit codes, messages."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.pack import main
from medray.images import encode_png
from medray.shards import read_index
from medray.store import Store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("MEDRAY_SECRET_KEY", "0123456789abcdef")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(12):
        path = tmp_path / "in" / "xy"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(rng.integers(0, 256, (9, 9), np.uint8)))
    return tmp_path / "in"


def run(source, out, *more):
    return main(["--source", str(source), "--out", str(out), "--size-px", "8", *more])


def test_a_folder_per_class_becomes_a_set(source, tmp_path, capsys):
    assert run(source, tmp_path / "out", "--val", "0", "--test", "0") == 0
    index = read_index(Store(tmp_path / "out"))
    assert index.classes == ("x", "y") and index.name == "out"
    assert index.shards[0].class_counts == {"x": 6, "y": 6}
    said = capsys.readouterr().err
    assert "2 folders taken as classes (x, y)" in said and "contact.png" in said
    assert run(source, tmp_path / "out", "--val", "0", "--test", "0") == 0


@pytest.mark.parametrize(
    "more, said",
    [
        (["--sizepx", "8"], "unknown argument '--sizepx' (did you mean --size-px?)"),
        (["--window", "wide"], "CENTRE,WIDTH"),
        (["--val", "0.9", "--test", "0.5"], "nothing for train"),
        (["--source", "/absent"], "no such folder"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_names_the_thing(source, tmp_path, capsys, more, said):
    assert run(source, tmp_path / "out", *more) == 2
    text = capsys.readouterr().err
    assert said in text and "Traceback" not in text
    assert not (tmp_path / "out").exists()


def test_bad_data_is_exit_code_3_and_the_same_command_can_accept_it(source, tmp_path, capsys):
    (source / "x" / "bad.png").write_bytes(b"junk")
    assert run(source, tmp_path / "out") == 3
    text = capsys.readouterr().err
    assert "MR-D101" in text and "--max-rejected 1" in text and "Traceback" not in text
    assert run(source, tmp_path / "out", "--max-rejected", "1") == 0


def test_an_empty_folder_is_exit_code_3(tmp_path):
    (tmp_path / "in").mkdir()
    assert run(tmp_path / "in", tmp_path / "out") == 3


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['pack', '--help']\n"
        "try:\n    import jobs.pack; jobs.pack.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'ray', 'torch', 'cupy', 'monai', 'pydicom', 'cv2', 'numpy'} & set(sys.modules)\n"
        "print('HEAVY', heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "HEAVY set()" in done.stdout and "--max-rejected" in done.stdout, done.stderr
