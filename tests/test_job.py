"""The frame of a job and the command line: exit codes, readable errors, fast help."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from medray import cli, log
from medray.config import JobConfig
from medray.errors import DataError, GateError, MedrayError, ResourceError, Stopped, UsageError
from medray.job import job

ROOT = Path(__file__).resolve().parent.parent
JOBS = sorted(cli.job_names())


def ends_with(error: BaseException | None, argv: list[str] | None = None) -> int:
    def run(config: JobConfig) -> None:
        if error is not None:
            raise error

    return job(JobConfig, run)(argv or [])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (RuntimeError("odd"), 1),
        (UsageError("flag"), 2),
        (DataError("bad", code="MR-D001", where="a.csv:3", hint="drop it"), 3),
        (ResourceError("no CPU"), 4),
        (OSError(errno.ENOSPC, "No space left on device", "a.tar.part"), 4),
        (OSError(errno.EIO, "Input/output error"), 4),
        (MemoryError(), 4),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), 4),
        (RuntimeError("CUDA error: out of memory\nSome kernels are asynchronous"), 4),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), 4),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), 1),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.tar"), 1),
        (GateError("too close"), 5),
        (Stopped("saved"), 75),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_kind_of_end_has_its_exit_code(error: BaseException | None, code: int) -> None:
    assert ends_with(error) == code


@pytest.mark.parametrize(
    "ask, told",
    [
        (lambda: torch.empty(2**48), "can't allocate memory: you tried to allocate 11258"),
        (lambda: np.empty(2**50), "Unable to allocate 8.00 PiB"),
        (lambda: bytearray(2**60), "out of memory\n"),
    ],
)
def test_out_of_memory_says_how_much_was_asked_for_and_what_to_do(
    ask: Callable[[], object], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        ask()
    assert ends_with(caught.value) == 4
    text = capsys.readouterr().err
    assert told in text and "images-at-once" in text and "goes on" in text
    assert "enforce fail" not in text and "Traceback" not in text


def test_of_a_gpu_s_account_the_need_and_the_size_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    account = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB"
        " of which 1.20 GiB is free. Process 12 has 77.9 GiB in use. Of the allocated memory ..."
    )
    assert ends_with(torch.OutOfMemoryError(account)) == 4
    text = capsys.readouterr().err
    assert "out of memory: Tried to allocate 2.00 GiB. GPU 0 has a total capacity" in text
    assert "CUDA" not in text and "Process 12" not in text


def test_an_error_shows_what_where_and_fix_and_no_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ends_with(DataError("label 7 is unknown", code="MR-D014", where="a.csv:3", hint="drop the row"))
    text = capsys.readouterr().err
    assert "MR-D014" in text and "a.csv:3" in text and "drop the row" in text
    assert "Traceback" not in text


def test_a_full_disk_is_named_whoever_wrote(capsys: pytest.CaptureFixture[str]) -> None:
    ends_with(OSError(errno.ENOSPC, "No space left on device", "a.tar.part"))
    text = capsys.readouterr().err
    assert "a.tar.part: No space left on device" in text and "traceback" not in text


def test_an_unexpected_error_keeps_its_traceback_in_a_file_and_debug_shows_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ends_with(RuntimeError("odd"))
    text = capsys.readouterr().err
    assert "Traceback" not in text
    file = Path(text.split("traceback is in ")[1].split()[0])
    assert "odd" in file.read_text()
    file.unlink()
    ends_with(RuntimeError("odd"), ["--debug"])
    assert "Traceback" in capsys.readouterr().err


def test_json_gives_one_object_per_event(capsys: pytest.CaptureFixture[str]) -> None:
    ends_with(UsageError("flag"), ["--json"])
    line = json.loads(capsys.readouterr().err)
    assert line["event"] == "usage" and line["exit_code"] == 2
    log.setup()


def test_an_error_survives_the_way_between_processes() -> None:
    error = DataError("bad", code="MR-D001", where="x", hint="y")
    # Ray moves errors this way; the bytes come from this process.
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, DataError) and str(again) == str(error)
    assert isinstance(pickle.loads(pickle.dumps(MedrayError("m", hint="h"))), MedrayError)


def processor_seconds(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("name", JOBS)
def test_help_answers_in_half_a_second_and_imports_nothing_heavy(name: str) -> None:
    code = (
        "import sys, contextlib, io\n"
        f"from medray.cli import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:\n"
        f"    main([{name!r}, '--help'])\n"
        "heavy = {'torch', 'ray', 'monai', 'cupy', 'pydicom'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert '(default:' in out.getvalue()\n"
    )
    # Processor time beyond an empty program's: the clock would time the neighbours. They can only
    # add to it, so the least of three counts.
    empty_s = processor_seconds("pass")
    assert any((took_s := processor_seconds(code) - empty_s) < 0.5 for _ in range(3)), took_s


def test_an_unknown_command_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pgan"]) == 2
    assert "pggan" in capsys.readouterr().err


def test_help_lists_every_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in JOBS)


def test_sigterm_ends_a_job_with_143(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom medray.config import JobConfig\nfrom medray.job import job\n"
        "def run(config):\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "sys.exit(job(JobConfig, run)([]))\n"
    )
    script = tmp_path / "sleepy.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    process.stdout.close()
