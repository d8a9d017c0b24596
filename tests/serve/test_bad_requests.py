"""Every bad request is refused with a problem that says what, given and allowed; none hangs."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from pathlib import Path

import httpx
import pytest

from tests.serve.bad_requests import BYTES, CLASSIFY, MODEL, PNG, Bad, every
from tests.serve.small_service import running

TABLE = every()
# A broken upload may cost its child five seconds of processor; nothing else takes one.
LONGEST_S = 20
# By the clock, on a machine however busy.
HUNG_S = 90
LEAKS = ("Traceback", 'File "', "/site-packages", "/tmp/", "medray/", "serve/", ".py", "0x7f")


@pytest.fixture(scope="module")
def small(small_models, tmp_path_factory):
    """A service that takes bodies of 2 MiB, so that one past the cap is small."""
    with running(small_models, tmp_path_factory.mktemp("small"), body_mib=2) as found:
        yield found


def sent(service, bad: Bad) -> httpx.Response:
    request = dict(bad.request)
    headers = {**(service.headers(bad.who) if bad.who else {}), **request.pop("headers", {})}
    raw = {k.encode(): v.encode("latin-1", "replace") for k, v in headers.items()}
    coroutine = service.client.request(bad.method, bad.path, headers=list(raw.items()), **request)
    return service.wait(coroutine, HUNG_S)


def processor_s() -> float:
    """What this process and its children have computed: a child that decodes lives on."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = time.process_time() + ended.ru_utime + ended.ru_stime
    pids: list[str] = []
    for children in Path("/proc/self/task").glob("*/children"):
        # A thread, or a child, may end while one looks.
        with contextlib.suppress(OSError):
            pids += children.read_text().split()
    for pid in pids:
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found += (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
    return found


def check_problem(response: httpx.Response, statuses: tuple[int, ...]) -> None:
    assert response.status_code in statuses, f"{response.status_code} {response.text[:300]}"
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == response.status_code and problem["code"] and problem["request_id"]
    assert len(problem["detail"]) >= 10 and len(response.content) < 8000
    assert not [leak for leak in LEAKS if leak in response.text], response.text
    assert "x-evil" not in response.headers and "\n" not in problem["detail"]
    if response.status_code in (400, 413, 415, 422):
        text = problem["detail"] + problem.get("hint", "")
        assert "given" in text or "allowed" in text or ": " in text, text


def test_there_are_at_least_two_hundred() -> None:
    assert len(TABLE) >= 200 and len({bad.name for bad in TABLE}) == len(TABLE)


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.name.encode("ascii", "replace").decode())
def test_a_bad_request_is_refused(small, bad: Bad) -> None:
    before_s = processor_s()
    response = sent(small, bad)
    check_problem(response, bad.statuses)
    assert processor_s() - before_s < LONGEST_S


def test_a_good_request_is_taken_all_the_same(small) -> None:
    """The control: the table does not pass because everything is refused."""
    good = Bad("good", CLASSIFY, (200,), {"content": PNG, "headers": BYTES, "params": MODEL})
    assert sent(small, good).status_code == 200
