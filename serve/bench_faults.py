"""Rows of the suite `serve` about what goes wrong: overload, a lost replica, twenty minutes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serve.bench_rigs import (
    Access,
    Case,
    ask_images,
    free_port,
    load,
    make_generator,
    only,
    ray_serve,
)
from serve.callers import Callers
from serve.client import Client
from serve.settings import Args, parsed

PX, NAME = 64, "bench"
OVER, OVER_S, HALF_S, RECOVERED_S = 10, 60.0, 10.0, 5.0
REFUSED_S = 0.5
GROWTH = 1.1
CLIENTS, CHECKED = 16, 64
SOAK_S, SOAK_SHARE, WARM_S = 1200.0, 0.7, 20.0
PAGE = os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def service(folder: str, **more: Any) -> Iterator[tuple[Access, Args]]:
    """A generator of 64 px on Ray Serve."""
    access = Access.new(folder)
    settings = parsed(
        {
            "generator": make_generator(folder, PX), "keys": access.path, "port": free_port(),
            "state_dir": folder, "replica_cpus": 0, **more,
        }
    )  # fmt: skip
    with ray_serve(free_port()) as serve:
        from serve.app import app

        serve.run(app(settings), name=NAME, route_prefix="/")
        yield access, settings


def pids(deployment: str) -> list[int]:
    """The processes of a deployment's running replicas."""
    from ray.serve.context import _get_global_client

    details = _get_global_client().get_serve_details()
    found = details["applications"][NAME]["deployments"][deployment]["replicas"]
    return [int(replica["pid"]) for replica in found if replica["state"] == "RUNNING"]


def memory_mib() -> float:
    """Resident memory of gates and models together."""
    numbers = [*pids("Gate"), *pids("Models"), *pids("Shared")]
    pages = [int(Path(f"/proc/{number}/statm").read_text().split()[1]) for number in numbers]
    return sum(pages) * PAGE / 2**20


def at_rate(args: Args, access: Access, per_s: float, seconds: float) -> dict[str, Any]:
    """Images at a rate, whether earlier ones are answered or not."""
    return load(
        port=args.port, key=access.token, path="/v1/images/generations", numbered=True,
        body='{"n": 1, "seed": 7, "start": {n}}', rate_per_s=per_s, seconds=seconds,
    )  # fmt: skip


@contextlib.contextmanager
def overload(rounds: int) -> Iterator[Case]:
    """The latency of what is accepted at ten times the capacity against that at half of it."""
    del rounds
    with tempfile.TemporaryDirectory(prefix="medray-bench-") as folder:
        # A queue of one batch: who would wait for longer is told to come again.
        with service(folder, queue_images=16) as (access, args):
            capacity = 0.0

            def check() -> None:
                nonlocal capacity
                capacity = float(only(ask_images(args, access, seconds=6.0), 200, 503)["per_s"])

            def half() -> float:
                return float(only(at_rate(args, access, capacity / 2, HALF_S), 200)["p99_ms"])

            def ten() -> float:
                before_mib = memory_mib()
                told = only(at_rate(args, access, OVER * capacity, OVER_S), 200, 429, 503)
                assert told["refused_p99_ms"] < 1000 * REFUSED_S, f"refused late: {told}"
                begun_s = time.monotonic()
                only(at_rate(args, access, 2, 1), 200)
                assert time.monotonic() - begun_s < RECOVERED_S + 1, "it does not recover"
                after_mib = memory_mib()
                assert after_mib < GROWTH * before_mib, f"{before_mib:.0f} to {after_mib:.0f} MiB"
                return float(told["p99_ms"])

            yield Case(check, ten, half)


@contextlib.contextmanager
def replica_killed(rounds: int) -> Iterator[Case]:
    """Requests that failed, of those that may have been in flight on a replica that was killed."""
    del rounds
    with tempfile.TemporaryDirectory(prefix="medray-bench-") as folder:
        with service(folder, min_replicas=2, max_replicas=2) as (access, args):
            expected: dict[int, bytes] = {}

            def connect() -> Client:
                return Client(f"http://127.0.0.1:{args.port}", access.token, patience_s=0)

            def check() -> None:
                with connect() as client:
                    images = client.generate(CHECKED, seed=Callers.SEED)
                    expected.update({n: image.data for n, image in enumerate(images)})

            def killed() -> float:
                while len(pids("Models")) < 2:
                    time.sleep(0.2)
                with Callers(connect, CLIENTS, expected) as callers:
                    time.sleep(2)
                    os.kill(pids("Models")[0], signal.SIGKILL)
                    time.sleep(6)
                print(f"killed: {callers.statuses}", file=sys.stderr, flush=True)
                assert not callers.wrong, f"{callers.wrong} wrong answers"
                assert set(callers.statuses) <= {200, 503}, f"{callers.statuses}"
                return float(callers.statuses[503])

            yield Case(check, killed, lambda: float(CLIENTS))


@contextlib.contextmanager
def soak(rounds: int) -> Iterator[Case]:
    """Memory under a long load of 70%: at the end of each part of it, and at its beginning."""
    with tempfile.TemporaryDirectory(prefix="medray-bench-") as folder:
        with service(folder) as (access, args):
            capacity = start_mib = 0.0

            def check() -> None:
                nonlocal capacity, start_mib
                capacity = float(only(ask_images(args, access, seconds=6.0), 200)["per_s"])
                only(at_rate(args, access, SOAK_SHARE * capacity, WARM_S), 200)
                start_mib = memory_mib()

            def part() -> float:
                seconds = float(os.environ.get("MEDRAY_BENCH_SOAK_S", SOAK_S)) / rounds
                only(at_rate(args, access, SOAK_SHARE * capacity, seconds), 200)
                now_mib = memory_mib()
                print(f"soak: {start_mib:.0f} -> {now_mib:.0f} MiB", file=sys.stderr, flush=True)
                return now_mib

            yield Case(check, part, lambda: start_mib)
