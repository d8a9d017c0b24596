"""One worker function, one process or several: what a rank sees, and how failures come back."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from medray.dist import _failures, _processes, _stop, context
from medray.errors import DataError, MedrayError, ResourceError, Stopped, UsageError
from tests.dist import rank_tasks
from tests.faults.kill import wait_for


def launch(task: context.Worker, workers: int = 2, **config: Any) -> Any:
    return context.launch(task, config, backend="torchrun", workers=workers, threads_per_rank=1)


def test_a_worker_sees_its_rank_and_the_collectives_agree() -> None:
    seen = launch(rank_tasks.about, note="kept")
    assert seen["ranks"] == [[0, 2, 0], [1, 2, 1]]
    assert seen["broadcast"] == [[0.0, 0.0], [0, 0, 0]]
    assert (seen["mean"], seen["any"]) == ([0.5], [True, False])
    assert (seen["threads"], seen["config"]) == (1, {"note": "kept"})


def test_one_process_needs_no_group() -> None:
    seen = context.launch(rank_tasks.about, {}, backend="local", threads_per_rank=1)
    assert (seen["ranks"], seen["mean"], seen["any"]) == ([[0, 1, 0]], [0.0], [False, False])
    assert not torch.distributed.is_initialized()


def test_a_typed_error_of_one_rank_comes_back_as_itself(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        launch(rank_tasks.fail, folder=str(tmp_path), kind="typed")
    error = caught.value
    assert (error.message, error.code, error.where) == ("shard is short", "MR-D042", "train-0.tar")
    assert (error.hint, error.exit_code) == ("pack again", 3)


def test_any_other_error_names_the_rank_that_failed_first(tmp_path: Path) -> None:
    with pytest.raises(MedrayError, match="rank 1 failed: KeyError: 'surprise'") as caught:
        launch(rank_tasks.fail, folder=str(tmp_path), kind="untyped")
    assert type(caught.value) is MedrayError


@pytest.mark.parametrize("codes", [[1, None], [None, 1], [1, 1]])
@pytest.mark.parametrize("how", ["Connection closed by peer [::1]", "Read error [::1]: reset"])
def test_the_echo_of_a_failure_is_not_named_though_its_rank_ended_first(
    how: str, codes: list[int | None], tmp_path: Path
) -> None:
    (tmp_path / "trace-0.txt").write_text(f"RuntimeError: [{_failures.ECHO}:553] {how}")
    with pytest.raises(MedrayError, match="rank 0 failed: RuntimeError"):
        _processes._result(tmp_path, [1, None])
    (tmp_path / "trace-1.txt").write_text("KeyError: 'surprise'")
    with pytest.raises(MedrayError, match="rank 1 failed: KeyError: 'surprise'"):
        _processes._result(tmp_path, codes)


def test_a_rank_that_is_done_ends_without_taking_its_interpreter_down(tmp_path: Path) -> None:
    assert launch(rank_tasks.leave_something_behind, folder=str(tmp_path)) == "done"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ended-0", "ended-1"]


def pids_of_ranks(folder: Path) -> list[int]:
    """The processes of both ranks, once both have begun to wait for a stop."""
    files = [folder / f"pid-{rank}" for rank in (0, 1)]
    wait_for(lambda: all(file.exists() and file.read_text() for file in files), 120)
    return [int(file.read_text()) for file in files]


def test_sigterm_of_one_rank_stops_all_ranks_with_the_same_reason(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="SIGTERM"):
        launch(rank_tasks.until_stopped, folder=str(tmp_path), own_sigterm=True)
    assert [(tmp_path / f"stopped-{rank}").read_text() for rank in (0, 1)] == ["SIGTERM"] * 2


def test_sigterm_of_the_driver_reaches_the_ranks(tmp_path: Path) -> None:
    def send() -> None:
        pids_of_ranks(tmp_path)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(Stopped, match="SIGTERM"):
        launch(rank_tasks.until_stopped, folder=str(tmp_path))
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_in_a_single_process_is_a_reason_and_the_handler_is_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    here = context.local(threads_per_rank=1)
    assert here.agree_to_stop() is None
    os.kill(os.getpid(), signal.SIGTERM)
    assert here.stop_reason() == here.agree_to_stop() == "SIGTERM"
    here.close()
    assert signal.getsignal(signal.SIGTERM) is before
    _stop.clear()


def test_ray_is_asked_about_preemption_rarely_and_its_notice_is_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(context, "PREEMPTION_POLL_S", 600.0)
    asked: list[int] = []

    def notice() -> str | None:
        asked.append(1)
        return None if len(asked) < 2 else "preemption notice for ranks [0]"

    ray = context.RaySide(report=lambda metrics: None, preemption=notice)
    here = context.Context(0, 1, 0, torch.device("cpu"), threads_per_rank=1, ray=ray)
    _stop.clear()
    assert [here.agree_to_stop() for _ in range(50)] == [None] * 50
    assert len(asked) == 1
    ray.poll_at_s = 0.0
    assert here.agree_to_stop() == here.stop_reason() == "preemption notice for ranks [0]"
    _stop.clear()


def test_ray_is_sent_a_report_now_and_then_and_prometheus_every_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(context, "REPORT_S", 600.0)
    sent: list[int] = []
    told: list[int] = []
    ray = context.RaySide(
        report=lambda row: sent.append(row["images"]),
        preemption=lambda: None,
        tell=lambda row: told.append(row["images"]),
    )
    here = context.Context(0, 1, 0, torch.device("cpu"), threads_per_rank=1, ray=ray)
    for images in range(50):
        here.report({"images": images})
    assert (sent, told) == ([0], list(range(50)))
    ray.report_at_s = 0.0
    here.report({"images": 50})
    assert sent == [0, 50]


def test_ranks_of_one_machine_listen_on_loopback_alone(tmp_path: Path) -> None:
    launched = threading.Thread(
        target=lambda: pytest.raises(
            Stopped, launch, rank_tasks.until_stopped, folder=str(tmp_path)
        ),
        daemon=True,
    )
    launched.start()
    pids = pids_of_ranks(tmp_path)
    addresses = {address for pid in pids for address in listening(pid)}
    os.kill(pids[0], signal.SIGTERM)
    launched.join(timeout=60)
    assert addresses and addresses <= {"127.0.0.1", "::1"}


def listening(pid: int) -> set[str]:
    """Addresses on which a process listens for TCP, from /proc."""
    links = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(address_of(fields[1].split(":")[0], family))
    return found


def address_of(text: str, family: socket.AddressFamily) -> str:
    words = [bytes.fromhex(text[start : start + 8])[::-1] for start in range(0, len(text), 8)]
    return socket.inet_ntop(family, b"".join(words))


def test_the_listening_test_would_see_an_open_port() -> None:
    with socket.create_server(("0.0.0.0", 0)):
        assert "0.0.0.0" in listening(os.getpid())


def test_a_script_can_launch_its_own_worker(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from medray.dist import context\n"
        "def work(here, config):\n    return [here.world, config['x']]\n"
        "if __name__ == '__main__':\n"
        "    print(context.launch(work, {'x': 5}, backend='torchrun', workers=2))\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[2, 5]"


def test_errors_keep_type_and_fields_through_json() -> None:
    given = DataError("short", code="MR-D042", where="a.tar", hint="pack again")
    got = _failures.rebuild(_failures.describe(given, rank=3))
    assert (type(got), str(got), vars(got)) == (DataError, str(given), vars(given))


def test_an_error_of_a_private_type_comes_back_as_its_public_one() -> None:
    class Sharper(ResourceError):
        pass

    assert type(_failures.rebuild(_failures.describe(Sharper("no disk"), 0))) is ResourceError


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"backend": "local", "workers": 2}, "workers = 2 with backend local, allowed: 1"),
        ({"backend": "torchrun", "workers": 0}, "workers = 0 .* allowed: 1 or more"),
        ({"backend": "slurm"}, "backend = 'slurm', allowed: ray, torchrun, local"),
    ],
)
def test_an_impossible_launch_is_refused_with_what_is_allowed(
    asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        context.launch(rank_tasks.about, {}, **asked)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ResourceError, match="needs a GPU, torch sees 0"):
        context.launch(rank_tasks.about, {}, backend="local", gpus_per_worker=1)


def test_without_torchruns_variables_its_context_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UsageError, match="the environment has no RANK"):
        context.torchrun()
