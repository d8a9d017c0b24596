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
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve import keys
from serve.settings import Args, parsed

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


GENERATOR = {"channels": 1, "latent_dims": 128, "fmap_base": 2048, "fmap_max": 128}
SHAPES = (1, 2, 4, 8, 16, 32)
BARE_S = 1.0


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


def rate(work: Callable[[], int], seconds: float = BARE_S) -> float:
    """Units per second of work that says how many it did."""
    work()
    begun_s, units = time.perf_counter(), 0
    while (spent_s := time.perf_counter() - begun_s) < seconds:
        units += work()
    return units / spent_s


def generator_rate(url: str, batch: int) -> float:
    """Images per second of the bare generator at a batch."""
    import numpy as np

    from medray.models.weights import load_generator
    from medray.sample.images import Renderer

    renderer = Renderer(*load_generator(url), batch=batch)
    latents_ND = np.random.default_rng(0).standard_normal((batch, renderer.dims), np.float32)
    return rate(lambda: len(renderer.unrounded(latents_ND)))


def classifier_rate(url: str, batch: int) -> float:
    """Images per second of the bare classifier at a batch."""
    import torch

    from medray.models.weights import load_classifier

    network, _ = load_classifier(url)
    images_NCHW = torch.zeros(batch, 1, network.size_px, network.size_px)

    def work() -> int:
        with torch.inference_mode():
            return len(network(images_NCHW))

    torch.set_num_threads(1)
    return rate(work)


def bare_gain(rate_of: Callable[[str, int], float], url: str) -> float:
    """What a network gains by its best batch over one image at a time."""
    rates = {batch: rate_of(url, batch) for batch in SHAPES}
    print(f"bare: {rates}", file=sys.stderr, flush=True)
    return max(rates.values()) / rates[1]


@contextlib.contextmanager
def two_services(
    folder: str, one: dict[str, Any], **models: str
) -> Iterator[tuple[Access, Args, Args]]:
    """The same service with batches and, by the settings `one`, without, both on Ray Serve."""
    access = Access.new(folder)
    common = {**models, "keys": access.path, "replica_cpus": 0, "queue_images": 4096}
    batched = parsed({**common, "port": free_port(), "state_dir": f"{folder}/batched"})
    single = parsed(
        {**common, "window_ms": 0, **one, "port": free_port(), "state_dir": f"{folder}/single"}
    )
    with ray_serve(free_port()) as serve:
        from serve.app import app

        serve.run(app(batched), name="batched", route_prefix="/batched")
        serve.run(app(single), name="single", route_prefix="/single")
        yield access, batched, single


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


@contextlib.contextmanager
def generate(px: int, against_bare: bool) -> Iterator[Case]:
    """One image a request from many clients, with batches and without.

    Without: every image has a pass of its own, at the render shape, which makes the same bytes; or,
    `against_bare`, of a batch of one, which is quicker and makes others.
    """
    one = {"batch": 1} if against_bare else {"join": 1}
    with tempfile.TemporaryDirectory(prefix="medray-bench-") as folder:
        url = make_generator(folder, px)
        with two_services(folder, one, generator=url) as (access, batched, single):

            def per_s(args: Args) -> float:
                return float(only(ask_images(args, access, seconds=SLOW_S), 200)["per_s"])

            def check() -> None:
                for args in (batched, single):
                    only(ask_images(args, access, clients=2), 200)

            if against_bare:
                ours = lambda: per_s(batched) / per_s(single)  # noqa: E731
                yield Case(check, ours, lambda: bare_gain(generator_rate, url))
            else:
                yield Case(check, lambda: per_s(batched), lambda: per_s(single))


@contextlib.contextmanager
def classify(px: int) -> Iterator[Case]:
    """One small PNG a request from many clients, with batches and without."""
    import numpy as np

    from medray.images.png import encode_png

    with tempfile.TemporaryDirectory(prefix="medray-bench-") as folder:
        url = make_classifier(folder, px)
        body = encode_png(np.random.default_rng(0).integers(0, 255, (px, px), np.uint8)).hex()
        with two_services(folder, {"join": 1}, classifier=url) as (access, batched, single):

            def per_s(args: Args) -> float:
                return float(only(ask_classes(args, access, body), 200)["per_s"])

            def check() -> None:
                for args in (batched, single):
                    per_s(args)

            ours = lambda: per_s(batched) / per_s(single)  # noqa: E731
            yield Case(check, ours, lambda: bare_gain(classifier_rate, url))


ROWS: dict[str, Callable[[], contextlib.AbstractContextManager[Case]]] = {
    "noop_default": noop,
    "noop_haproxy": lambda: noop(haproxy=True),
    "generate_32": lambda: generate(32, against_bare=False),
    "generate_64": lambda: generate(64, against_bare=True),
    "classify_128": lambda: classify(128),
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
