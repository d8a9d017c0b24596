"""Jobs: answered at once, seen and stopped by their owner alone, made by the archive's own job."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from medray.shards import read_index
from medray.store import Store
from serve import jobbook
from serve.jobbook import command, entrypoint
from serve.records import ModelSpec
from tests.archive.made_parts import make_generator
from tests.serve.conftest import FullDisk
from tests.serve.fakes import args, asking, book, run

JOBS = "/v1/jobs"


class Runner:
    """Runs nothing, and remembers what it was asked."""

    def __init__(self) -> None:
        self.commands: dict[str, list[str]] = {}
        self.states: dict[str, str] = {}
        self.broken = False

    async def start(self, command: list[str], log_path: str) -> str:
        if self.broken:
            raise ConnectionError("nobody there")
        handle = f"run-{len(self.commands)}"
        self.commands[handle], self.states[handle] = command, "running"
        return handle

    async def state(self, handle: str) -> str:
        return self.states[handle]

    async def stop(self, handle: str) -> None:
        self.states[handle] = "canceled"

    async def close(self) -> None:
        pass


def test_a_job_is_its_owners_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with asking(args(tmp_path), runner=Runner()) as ask:
            answer = await ask("POST", JOBS, "maker", json={"count": 5000, "seed": 7})
            assert answer.status_code == 202
            job = answer.json()
            where = answer.headers["location"]
            assert where == f"{JOBS}/{job['id']}" and job["state"] == "running"
            assert (await ask("GET", where, "maker")).json()["of"] == 5000
            for method in ("GET", "DELETE"):
                answer = await ask(method, where, "other")
                unknown = await ask(method, f"{JOBS}/{'0' * 24}", "other")
                # Another's job and none at all are told apart by nothing but the id asked for.
                assert answer.status_code == unknown.status_code == 404
                assert answer.json()["code"] == unknown.json()["code"] == "job_unknown"
                assert (await ask(method, where, "reader")).status_code == 403
                assert (await ask(method, where, None)).status_code == 401
            assert (await ask("GET", JOBS, "other")).json() == {"jobs": []}
            assert len((await ask("GET", JOBS, "maker")).json()["jobs"]) == 1
            assert len((await ask("GET", JOBS, "admin")).json()["jobs"]) == 1
            assert (await ask("GET", where, "admin")).status_code == 200
            assert (await ask("DELETE", where, "maker")).json()["state"] == "canceled"
            assert (await ask("DELETE", where, "maker")).json()["state"] == "canceled"

    run(main())


def test_on_a_full_disk_a_job_is_refused_and_none_runs_unknown(
    tmp_path: Path, full_disk: FullDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner()
    limited = book(images_per_day=4000)

    async def main() -> None:
        async with asking(args(tmp_path), runner=runner, key_book=limited) as ask:
            await ask.services.limits.trade()
            first = (await ask("POST", JOBS, "maker", json={"count": 1000})).json()
            for writes in (0, 1):
                # Before the job begins, and when its handle is to be kept.
                with full_disk(after=writes):
                    answer = await ask("POST", JOBS, "maker", json={"count": 1000})
                assert (answer.status_code, answer.json()["code"]) == (503, "storage")
                assert answer.headers["retry-after"] and str(tmp_path) not in answer.text
            assert list(runner.states.values()) == ["running", "canceled"]
            # Of the day's images only the first job's are spent.
            assert ask.services.limits.asks()["maker"]["images"] == 3000
            where = f"{JOBS}/{first['id']}"
            with full_disk():
                assert (await ask("GET", where, "maker")).json()["state"] == "running"
                assert (await ask("DELETE", where, "maker")).status_code == 503
            assert runner.states["run-0"] == "canceled"
            assert (await ask("GET", where, "maker")).json()["state"] == "canceled"
            # What was never known to have begun counts for nobody for ever.
            states = {j["state"] for j in (await ask("GET", JOBS, "maker")).json()["jobs"]}
            monkeypatch.setattr(jobbook, "START_S", 0.0)
            later = {j["state"] for j in (await ask("GET", JOBS, "maker")).json()["jobs"]}
            assert (states, later) == ({"canceled", "queued"}, {"canceled", "failed"})

    run(main())


def test_odd_ids_reach_no_file(tmp_path: Path) -> None:
    async def main() -> None:
        async with asking(args(tmp_path), runner=Runner()) as ask:
            for odd in ("..", "%2e%2e%2fkeys", "a" * 23, "A" * 24, "0" * 24 + "%00", "é" * 12):
                answer = await ask("GET", f"{JOBS}/{odd}", "maker")
                assert answer.status_code in (404, 405, 422), odd

    run(main())


def test_wrong_orders_are_refused_and_cost_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        settings = args(tmp_path, job_images=100_000)
        runner = Runner()
        async with asking(settings, runner=runner, key_book=book(images_per_day=1000)) as ask:
            for body, status in (
                ({}, 422),
                ({"count": 0}, 422),
                ({"count": "5"}, 422),
                ({"count": 1.5}, 422),
                ({"count": 5, "seed": -1}, 422),
                ({"count": 5, "out": "/etc"}, 422),
                ({"count": 5, "labels": "--gate=/etc"}, 422),
                ({"count": 5, "labels": "balanced"}, 422),
                ({"count": 5, "model": "nobody"}, 404),
                ({"count": 100_001}, 422),
                ({"count": 1001}, 429),
            ):
                answer = await ask("POST", JOBS, "maker", json=body)
                assert answer.status_code == status, (body, answer.text)
            runner.broken = True
            answer = await ask("POST", JOBS, "maker", json={"count": 1000})
            assert (answer.status_code, answer.json()["code"]) == (503, "job_not_started")
            runner.broken = False
            assert (await ask("POST", JOBS, "maker", json={"count": 1000})).status_code == 202

    run(main())


def test_so_many_jobs_of_a_key_run_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with asking(args(tmp_path, jobs_per_key=2), runner=Runner()) as ask:
            answers = [await ask("POST", JOBS, "maker", json={"count": 5}) for _ in range(3)]
            assert [a.status_code for a in answers] == [202, 202, 429]
            assert (await ask("POST", JOBS, "other", json={"count": 5})).status_code == 202
            await ask("DELETE", answers[0].headers["location"], "maker")
            assert (await ask("POST", JOBS, "maker", json={"count": 5})).status_code == 202

    run(main())


def test_no_word_of_an_order_becomes_a_flag_or_a_command(tmp_path: Path) -> None:
    ask = {"count": 5, "seed": 1, "format": "png", "samples_per_shard": 10, "labels": "balanced"}
    spec = ModelSpec("generator", "/models/a; rm -rf $HOME", "/models/latents")
    words = command(spec, ask, "/out", args(tmp_path))
    assert words[words.index("--generator") + 1] == spec.url
    assert "'/models/a; rm -rf $HOME'" in entrypoint(words)


def test_an_archive_is_made_with_progress_and_a_second_one_is_stopped(tmp_path: Path) -> None:
    make_generator(tmp_path / "real")
    settings = args(tmp_path, generator=str(tmp_path / "real"))

    async def until_ended(ask: Any, where: str) -> dict[str, Any]:
        for _ in range(3000):
            job: dict[str, Any] = (await ask("GET", where, "maker")).json()
            if job["state"] not in ("queued", "running"):
                return job
            await asyncio.sleep(0.1)
        raise AssertionError(f"it did not end: {job}")

    async def main() -> None:
        async with asking(settings) as ask:
            order = {"count": 40, "samples_per_shard": 10, "seed": 5}
            where = (await ask("POST", JOBS, "maker", json=order)).headers["location"]
            job = await until_ended(ask, where)
            folder = tmp_path / "state" / "jobs" / job["id"]
            assert job["state"] == "done", (folder / "log.txt").read_text()
            assert (job["images"], job["of"], job["shards"]) == (40, 40, 4)
            index = read_index(Store(folder / "archive"))
            assert sum(shard.samples for shard in index.shards) == 40
            order = {"count": 500_000, "samples_per_shard": 10}
            where = (await ask("POST", JOBS, "maker", json=order)).headers["location"]
            await asyncio.sleep(0.3)
            assert (await ask("DELETE", where, "maker")).json()["state"] == "canceled"
            job = (await ask("GET", where, "maker")).json()
            assert job["state"] == "canceled" and job["images"] < 500_000

    run(main())
