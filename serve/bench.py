"""Rows of the benchmark's suite `serve`, each a process that waits for words on its standard input.

`python -m serve.bench ROW`: answers `check`, `ours`, `other` with a line of JSON each, until its
input ends. Client, service and whatever it is compared with share this machine's cores.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve import keys
from serve.settings import Args, parsed

ROOT = Path(__file__).resolve().parent.parent
CLIENTS, BODY_BYTES, SECONDS = 32, 1024, 3.0
CPUS = 2
START_S = 300
# Ray's workers at the niceness of everything else; its own token is not what is measured.
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}


@dataclass(frozen=True)
class Case:
    """What a row can be asked; figures as `jobs/bench.py` wants them."""

    check: Callable[[], None]
    ours: Callable[[], float]
    other: Callable[[], float]


def load(**words: Any) -> dict[str, Any]:
    """A load from a process of its own; what it measured."""
    command = [sys.executable, "-m", "serve.load", json.dumps(words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=START_S)
    assert done.returncode == 0, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(done.stdout)
    print(f"{words.get('port')} {words.get('path', '')}: {told}", file=sys.stderr, flush=True)
    return told


def only(told: dict[str, Any], *statuses: int) -> dict[str, Any]:
    """What was measured, where every answer had one of these statuses; else AssertionError."""
    others = {s: n for s, n in told["statuses"].items() if int(s) not in statuses}
    assert not others and told["statuses"], f"answers other than {statuses}: {others}"
    return told


def free_port() -> int:
    """A port that nobody has at present."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


@dataclass(frozen=True)
class Access:
    """A key that may do everything, within limits that are counted and never reached."""

    token: str
    path: str

    @classmethod
    def new(cls, folder: str) -> Access:
        limits = {"rate_per_s": 1e6, "burst": 1_000_000, "images_per_day": 10**9}
        token, key = keys.make("bench", ["read", "generate"], **limits)
        path = Path(folder, f"keys-{secrets.token_hex(4)}.json")
        keys.write(path, [key])
        return cls(token, str(path))


@contextlib.contextmanager
def ray_serve(proxy_port: int) -> Iterator[Any]:
    """Ray with Serve on this machine's cores."""
    os.environ.update(ENVIRONMENT)
    import ray
    from ray import serve

    ray.init(num_cpus=CPUS, include_dashboard=False, logging_level="error", log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": proxy_port})
        yield serve
    finally:
        serve.shutdown()
        ray.shutdown()


def plain_deployment(args: Args) -> Any:
    """The same application as Ray Serve's documentation has it: an ingress behind Serve's proxy."""
    from ray import serve

    settings = args.model_dump(mode="json")

    def application() -> Any:
        from serve import gate
        from serve.in_process import InProcess

        return gate.front(InProcess(Args.model_validate(settings)))

    made = serve.ingress(application)()
    return serve.deployment(
        made, name="Plain", max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0}
    ).bind()


@contextlib.contextmanager
def noop(haproxy: bool = False) -> Iterator[Case]:
    """An authenticated POST of 1 KB through all checks: own door against Serve's proxy."""
    if haproxy:
        os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
    with tempfile.TemporaryDirectory(prefix="medray-bench-") as folder:
        access = Access.new(folder)
        # HAProxy's port is Ray's own choice, in a network of its own.
        proxy_port = 8000 if haproxy else free_port()
        common = {"keys": access.path, "state_dir": folder}
        ours = parsed({**common, "port": free_port()})
        plain = parsed({**common, "door": False})
        with ray_serve(proxy_port) as serve:
            from serve.app import app

            serve.run(app(ours), name="ours", route_prefix="/ours")
            serve.run(plain_deployment(plain), name="plain", route_prefix="/")

            def asked(port: int, seconds: float = SECONDS) -> dict[str, Any]:
                return load(
                    port=port, key=access.token, body_bytes=BODY_BYTES, clients=CLIENTS,
                    seconds=seconds,
                )  # fmt: skip

            def check() -> None:
                for port in (ours.port, proxy_port):
                    only(asked(port, 1.0), 200)
                    wrong = load(
                        port=port, key="mrk_wrong", body_bytes=8, clients=1, seconds=0.3, expect=401
                    )
                    only(wrong, 401)

            yield Case(
                check,
                lambda: float(only(asked(ours.port), 200)["per_s"]),
                lambda: float(only(asked(proxy_port), 200)["per_s"]),
            )


ROWS: dict[str, Callable[[], contextlib.AbstractContextManager[Case]]] = {
    "noop_default": noop,
    "noop_haproxy": lambda: noop(haproxy=True),
}


def main(argv: list[str] | None = None) -> int:
    """Sets up the row and answers until the input ends."""
    words = sys.argv[1:] if argv is None else argv
    if len(words) != 1 or words[0] not in ROWS:
        print(f"usage: python -m serve.bench {{{','.join(ROWS)}}}", file=sys.stderr)
        return 2
    with ROWS[words[0]]() as case:
        _tell("ready")
        for line in sys.stdin:
            try:
                if line.strip() == "check":
                    case.check()
                    _tell("ok")
                else:
                    _tell({"ours": case.ours, "other": case.other}[line.strip()]())
            except AssertionError as error:
                _tell({"failed": str(error)})
    return 0


def _tell(what: Any) -> None:
    print("bench: " + json.dumps(what), flush=True)


if __name__ == "__main__":
    sys.exit(main())
