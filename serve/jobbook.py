"""Large work: archives made by `jobs/archive.py` outside of the service, which keeps the book.

A job is a folder `jobs/<id>` below the state folder: `job.json` (owner, order, handle of who runs
it), `log.txt`, `archive/`. Any gate reads it, so any gate answers. Who asks for another's job gets
the answer of one that does not exist.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from medray.errors import MedrayError
from medray.shards import INDEX
from medray.store import Store
from serve.problems import Problem, busy, shown, too_many
from serve.records import ModelSpec
from serve.registry import Registry
from serve.settings import Args

JOB, LOG, ARCHIVE = "job.json", "log.txt", "archive"
MADE = f"{ARCHIVE}/.archive/"
ENDED = ("done", "failed", "canceled")
STOP_WAIT_S = 10.0
# A job that has not begun by then never will.
START_S = 300.0
ROOT = Path(__file__).resolve().parent.parent


class Runner(Protocol):
    """Who runs a command outside of the service."""

    async def start(self, command: list[str], log_path: str) -> str:
        """Starts it; gives the handle by which it is found again."""
        ...

    async def state(self, handle: str) -> str:
        """`running`, `done`, `failed` or `canceled`."""
        ...

    async def stop(self, handle: str) -> None:
        """Asks it to end; what it made stays."""
        ...

    async def close(self) -> None: ...


class Processes:
    """Runs commands as processes of this machine, which end with the service."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def start(self, command: list[str], log_path: str) -> str:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with open(log_path, "ab") as file:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=ROOT,
                env=environment, start_new_session=True,
            )  # fmt: skip
        # The process's number alone could be another's after a restart.
        handle = f"{os.getpid()}-{process.pid}"
        self._running[handle] = process
        return handle

    async def state(self, handle: str) -> str:
        process = self._running.get(handle)
        if process is None:
            return "failed"
        if process.returncode is None:
            return "running"
        return "done" if process.returncode == 0 else "failed"

    async def stop(self, handle: str) -> None:
        process = self._running.get(handle)
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_WAIT_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def close(self) -> None:
        await asyncio.gather(*map(self.stop, list(self._running)))


class Book:
    """The jobs of a service."""

    def __init__(self, args: Args, registry: Registry, runner: Runner) -> None:
        self._args, self._registry, self._runner = args, registry, runner
        self._store = Store(args.state_dir).child("jobs")
        self._lock = asyncio.Lock()

    async def create(self, owner: str, ask: dict[str, Any]) -> dict[str, Any]:
        """Starts a job; Problem where the model is not there or the owner has too many."""
        version = self._registry.choose(ask["model"], "generator")
        allowed = "natural" if latents_of(version.spec) is None else "balanced"
        if ask["labels"] not in (None, allowed):
            detail = f"given: labels {shown(ask['labels'])}; allowed for this model: {allowed!r}"
            raise Problem(422, "labels_unknown", detail)
        async with self._lock:
            running = [job for job in await self.names(owner) if job["state"] not in ENDED]
            if len(running) >= self._args.jobs_per_key:
                text = f"{len(running)} jobs of {owner} run, {self._args.jobs_per_key} may"
                raise too_many("jobs_exceeded", text, 30, "wait for one, or DELETE it")
            job_id = secrets.token_hex(12)
            record = {
                "id": job_id, "owner": owner, "created": time.time(), "ask": ask,
                "model_sha256": version.info.sha256, "handle": None, "state": "queued",
            }  # fmt: skip
            await asyncio.to_thread(self._write, record)
            folder = self._store.child(job_id)
            try:
                handle = await self._runner.start(
                    command(version.spec, ask, f"{folder.url}/{ARCHIVE}", self._args),
                    str(folder.path(LOG)) if folder.is_local else os.devnull,
                )
            except Exception as error:
                record |= {"state": "failed"}
                await asyncio.to_thread(self._write, record)
                raise busy("job_not_started", "who runs jobs does not answer", 10) from error
            record |= {"handle": handle, "state": "running"}
            try:
                await asyncio.to_thread(self._write, record)
            except MedrayError:
                # Nobody could ask about it, or stop it.
                await self._runner.stop(handle)
                raise
        return await self._shown(record)

    async def get(self, owner: str | None, job_id: str) -> dict[str, Any]:
        """How far a job is; Problem 404 where it is not or is another's."""
        return await self._shown(await self._record(owner, job_id))

    async def names(self, owner: str | None) -> list[dict[str, Any]]:
        """The jobs of an owner (None: all), the newest first."""
        ids = await asyncio.to_thread(self._ids)
        records = [await asyncio.to_thread(self._read, job_id) for job_id in ids]
        mine = [r for r in records if r and owner in (None, r["owner"])]
        mine.sort(key=lambda record: -record["created"])
        return [await self._shown(record) for record in mine]

    async def cancel(self, owner: str | None, job_id: str) -> dict[str, Any]:
        """Stops a job; one that has ended stays as it is. What it made stays."""
        record = await self._record(owner, job_id)
        if await self._state(record) not in ENDED:
            record["state"] = "canceled"
            try:
                await asyncio.to_thread(self._write, record)
            finally:
                if record["handle"]:
                    await self._runner.stop(record["handle"])
        return await self._shown(record)

    async def close(self) -> None:
        await self._runner.close()

    def _ids(self) -> list[str]:
        if not self._store.is_local:
            names = self._store.names()
            return [name.partition("/")[0] for name in names if name.endswith(f"/{JOB}")]
        # Not what the jobs made: that may be much.
        folder = self._store.path()
        return [p.name for p in folder.iterdir() if p.is_dir()] if folder.exists() else []

    def _write(self, record: dict[str, Any]) -> None:
        self._store.write_bytes(f"{record['id']}/{JOB}", json.dumps(record, indent=1).encode())

    def _read(self, job_id: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self._store.read_bytes(f"{job_id}/{JOB}"))
        except (FileNotFoundError, ValueError):
            return None
        return found

    async def _record(self, owner: str | None, job_id: str) -> dict[str, Any]:
        well_formed = len(job_id) == 24 and set(job_id) <= set("0123456789abcdef")
        found = await asyncio.to_thread(self._read, job_id) if well_formed else None
        if found is None or owner not in (None, found["owner"]):
            raise Problem(404, "job_unknown", f"there is no job {shown(job_id)}")
        return found

    async def _state(self, record: dict[str, Any]) -> str:
        if record["state"] in ENDED:
            return str(record["state"])
        if not record["handle"]:
            # Who was to start it was killed meanwhile, or could not keep that it had.
            late = time.time() - record["created"] > START_S
            return "failed" if late else str(record["state"])
        state = await self._runner.state(record["handle"])
        if state in ("done", "failed"):
            # The index is written last: who ran it may have been lost, what it made is whole.
            index = f"{record['id']}/{ARCHIVE}/{INDEX}"
            state = "done" if await asyncio.to_thread(self._store.exists, index) else "failed"
        if state in ENDED:
            record["state"] = state
            with contextlib.suppress(MedrayError):  # it is found out again
                await asyncio.to_thread(self._write, record)
        return state

    async def _shown(self, record: dict[str, Any]) -> dict[str, Any]:
        """What an owner sees: no place, no handle."""
        state = await self._state(record)
        ask, folder = record["ask"], self._store.child(record["id"])
        names = await asyncio.to_thread(folder.names, MADE)
        shards = sum(name.endswith(".json") for name in names)
        made = min(ask["count"], shards * ask["samples_per_shard"])
        return {
            "id": record["id"], "state": state, "owner": record["owner"],
            "created": record["created"], "ask": ask, "model_sha256": record["model_sha256"],
            "images": ask["count"] if state == "done" else made, "of": ask["count"],
            "shards": shards,
        }  # fmt: skip


def command(spec: ModelSpec, ask: dict[str, Any], out: str, args: Args) -> list[str]:
    """The command line of a job."""
    words = [
        *(sys.executable, "-m", "medray.cli", "archive", "--generator", spec.url, "--out", out),
        *("--count", str(ask["count"]), "--seed", str(ask["seed"]), "--format", ask["format"]),
        *("--samples-per-shard", str(ask["samples_per_shard"]), "--workers", str(args.job_workers)),
        *("--batch", str(args.batch), "--dtype", args.dtype, "--name", "archive", "--json"),
    ]
    latents = latents_of(spec)
    if latents:
        words += ["--latents", latents]
    return [*words, "--labels", ask["labels"] or ("balanced" if latents else "natural")]


def latents_of(spec: ModelSpec) -> str | None:
    """The latents that a generator is used with: those told, or those beside it."""
    if spec.latents is None and Store(spec.url).exists("latents/latents.json"):
        return f"{Store(spec.url).url}/latents"
    return spec.latents


def entrypoint(words: list[str]) -> str:
    """A command line as Ray takes it: one text, which goes through a shell."""
    return shlex.join(words)
