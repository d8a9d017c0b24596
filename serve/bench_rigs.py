"""What the rows of the suite `serve` are made of: Ray Serve, keys, random models, loads."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve import keys
from serve.settings import Args

GENERATOR = {"channels": 1, "latent_dims": 128, "fmap_base": 2048, "fmap_max": 128}
ROOT = Path(__file__).resolve().parent.parent
CLIENTS, BODY_BYTES, SECONDS = 32, 1024, 3.0
# Where an answer takes seconds.
SLOW_S = 8.0
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
    limit_s = START_S + float(words["seconds"])
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s)
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

    # One of its own, whatever other Ray is on this machine.
    quiet: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    ray.init("local", num_cpus=CPUS, include_dashboard=False, **quiet)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": proxy_port})
        yield serve
    finally:
        serve.shutdown()
        ray.shutdown()


def make_generator(folder: str, px: int) -> str:
    """A generator of random weights, as wide as the presets for 64 px."""
    import torch

    from medray.models.pggan import Generator
    from medray.models.weights import save_generator
    from medray.store import Store

    torch.manual_seed(0)
    arguments = {**GENERATOR, "final_px": px}
    url = f"{folder}/generator-{px}"
    about = {"kind": "pggan", "arguments": arguments, "px": px, "seed": 0}
    network = Generator(**arguments)
    save_generator(Store(url), network.state_dict(), about, "a benchmark")
    return url


def make_classifier(folder: str, px: int) -> str:
    """A classifier of random weights, as wide as the preset."""
    from medray.models.classifier import Classifier
    from medray.models.weights import save_network
    from medray.store import Store

    network = Classifier(("a", "b"), size_px=px, width=16).seed_weights(0)
    url = f"{folder}/classifier-{px}"
    about = {"kind": "classifier", "arguments": network.arguments()}
    save_network(Store(url), "classifier", network.state_dict(), about, "a benchmark")
    return url


def ask_images(args: Args, access: Access, **more: Any) -> dict[str, Any]:
    """Clients that want an image each, every time another."""
    words = {"clients": CLIENTS, "seconds": SECONDS, **more}
    return load(
        port=args.port, key=access.token, path="/v1/images/generations", numbered=True,
        body='{"n": 1, "seed": 7, "start": {n}}', **words,
    )  # fmt: skip


def ask_classes(args: Args, access: Access, body: str) -> dict[str, Any]:
    """Clients that show an image each."""
    return load(
        port=args.port, key=access.token, path="/v1/classify", clients=CLIENTS, seconds=SECONDS,
        hex_body=body, content_type="image/png",
    )  # fmt: skip
